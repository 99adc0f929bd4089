"""What a job or an attempt says about how it failed."""

import signal
import traceback
from typing import Final, Self

from pydantic import BaseModel, Field

from . import errors
from .errors import Crashed, EpochdError, Killed, SpecRefused
from .patches import Patch

_TRACEBACK_CHARACTERS = 4000
_LOST_PARENT = 255  # what multiprocessing says when its forkserver is gone

JOB_CODES: Final = frozenset(  # a job's error has one of these
    error.code
    for error in (
        errors.OutOfMemory,
        errors.Diverged,
        errors.DatasetMissing,
        errors.DatasetChanged,
        errors.DatasetInvalid,
        errors.DiskFull,
        errors.Killed,
        errors.Crashed,
        errors.Stalled,
        errors.WorkerLost,
        errors.CheckpointCorrupt,
        errors.DeviceUnavailable,
        errors.WeightsMissing,
        errors.WeightsUnfit,
        errors.SpecRefused,
        errors.Internal,
    )
)


class Failure(BaseModel):
    code: str = Field(description=f"A stable name. Of a job one of {', '.join(sorted(JOB_CODES))}")
    message: str = Field(description="One sentence for people")
    phase: str | None = Field(None, description="What the attempt was doing")
    signal: str | None = Field(None, description="The signal that ended the training process, such as `SIGKILL`")
    traceback_tail: str | None = Field(None, description="The end of the traceback, for unexpected errors")
    log_tail: str | None = Field(None, description="The end of the attempt's log, where the process could not say why")
    hint: str | None = Field(None, description="What to try, in a sentence")
    suggestion: Patch | None = Field(
        None,
        description="What to change in the spec (a merge patch), where that may help; "
        "`POST /jobs/{id}/retry` with `apply_suggestion` does it",
    )

    @classmethod
    def of(
        cls,
        error: EpochdError,
        *,
        phase: str | None = None,
        traceback_tail: str | None = None,
        log_tail: str | None = None,
    ) -> Self:
        return cls(
            code=error.code,
            message=f"{error.pointer}: {error.detail}" if isinstance(error, SpecRefused) else error.detail,
            phase=phase,
            traceback_tail=traceback_tail,
            log_tail=log_tail,
            hint=error.hint,
        )

    @classmethod
    def of_exit(
        cls,
        exit_code: int,
        *,
        hint: str,
        phase: str | None = None,
        log_tail: str | None = None,
        what: str = "training",
    ) -> Self:
        """The failure of a process that left without a word; a signal n is the exit code -n.

        `what` it did: training or preparing.
        """
        if exit_code >= 0:
            message = f"The {what} process left with exit code {exit_code} and without saying why."
            if exit_code == _LOST_PARENT:
                message = f"The {what} process ended together with the preloaded process that it was forked from."
            return cls(code=Crashed.code, message=message, phase=phase, log_tail=log_tail, hint=hint)
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-exit_code, f"signal {-exit_code}")  # real-time signals have no names
        cause = ", possibly because the machine ran out of memory" if name == "SIGKILL" else ""
        message = f"The {what} process was killed by {name}{cause}."
        return cls(code=Killed.code, message=message, phase=phase, signal=name, log_tail=log_tail, hint=hint)


def traceback_tail(error: BaseException) -> str:
    """The end of the traceback: for the row, not for people."""
    return "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
