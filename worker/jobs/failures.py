"""What a job or an attempt says about how it failed."""

import signal
import traceback
from typing import Self

from pydantic import BaseModel, Field

from .errors import Crashed, EpochdError, Killed, SpecRefused

_TRACEBACK_CHARACTERS = 4000
_LOST_PARENT = 255  # what multiprocessing says when its forkserver is gone


class Failure(BaseModel):
    code: str = Field(description="A stable name, such as `dataset_missing` or `killed`")
    message: str = Field(description="One sentence for people")
    phase: str | None = Field(None, description="What the attempt was doing")
    signal: str | None = Field(None, description="The signal that ended the training process, such as `SIGKILL`")
    traceback_tail: str | None = Field(None, description="The end of the traceback, for unexpected errors")
    suggestion: str | None = Field(None, description="What to try")

    @classmethod
    def of(cls, error: EpochdError, *, phase: str | None = None, traceback_tail: str | None = None) -> Self:
        return cls(
            code=error.code,
            message=f"{error.pointer}: {error.detail}" if isinstance(error, SpecRefused) else error.detail,
            phase=phase,
            traceback_tail=traceback_tail,
            suggestion=error.suggestion,
        )

    @classmethod
    def of_exit(cls, exit_code: int, *, log: str, phase: str | None = None, what: str = "training") -> Self:
        """The failure of a process that left without a word; a signal n is the exit code -n.

        `what` it did: training or preparing.
        """
        suggestion = f"The log of the attempt may say more: {log} in the data folder."
        if exit_code >= 0:
            message = f"The {what} process left with exit code {exit_code} and without saying why."
            if exit_code == _LOST_PARENT:
                message = f"The {what} process ended together with the preloaded process that it was forked from."
            return cls(code=Crashed.code, message=message, phase=phase, suggestion=suggestion)
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-exit_code, f"signal {-exit_code}")  # real-time signals have no names
        hint = ", possibly because the machine ran out of memory" if name == "SIGKILL" else ""
        message = f"The {what} process was killed by {name}{hint}."
        return cls(code=Killed.code, message=message, phase=phase, signal=name, suggestion=suggestion)


def traceback_tail(error: BaseException) -> str:
    """The end of the traceback: for the row, not for people."""
    return "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
