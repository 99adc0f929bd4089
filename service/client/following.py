"""Following a job over server-sent events, through whatever happens to the connection. Nothing here does I/O."""

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Union

import httpx2
from pydantic import BaseModel

from . import answers
from .call import Answer, segment
from .policy import Policy, retry_after

if TYPE_CHECKING:
    from service.bodies.metrics import MetricsRow

SILENT_SECONDS: Final = 45.0  # the service says something every 15


class StepProgress(BaseModel):
    epoch: int
    batch: int
    batches: int


class StatusChange(BaseModel):
    """The job's status, phase or progress, which has changed."""

    status: str
    phase: str | None
    attempt: int
    progress: StepProgress


class Lost(NamedTuple):
    """The connection broke. It is made again, as long as it takes."""

    reason: str


class Back(NamedTuple):
    """It is there again, and nothing was missed."""


Event = Union["MetricsRow", StatusChange, Lost, Back]


class Following:
    """Where somebody who follows a job is. Rows come once each, in their order."""

    def __init__(self, policy: Policy, job_id: str, since: int = 0) -> None:
        self._policy, self._since = policy, since
        self._path = f"/jobs/{segment(job_id)}/stream"
        self._failures, self._is_lost, self._ever_connected = 0, False, False
        self.is_over = False
        self.pause = 0.0  # seconds, before the connection is made again

    def request(self, timeout: float) -> dict[str, Any]:
        headers = {"Last-Event-ID": str(self._since)} if self._since else {}
        patience = httpx2.Timeout(timeout, read=SILENT_SECONDS)
        return {"url": self._path, "headers": headers, "timeout": patience}

    def take(self, event: httpx2.ServerSentEvent) -> list[Event]:
        """What a server-sent event means."""
        found: list[Event] = [Back()] if self._is_lost else []
        self._failures, self._is_lost, self._ever_connected = 0, False, True
        if event.event == "metrics":
            row = answers.row(event.data)
            if row.seq > self._since:
                self._since = row.seq
                found.append(row)
        elif event.event == "status":
            found.append(answers.body_of(StatusChange, event.data))
        elif event.event == "end":
            self.is_over = True
        return found

    def refused(self, answer: Answer) -> list[Event]:
        """Raises ApiError where it is no use to ask again."""
        if not self._policy.may_change(answer) or self._is_spent():
            raise self._policy.refused(answer)
        return self._again(retry_after(answer.headers), f"HTTP {answer.status}")

    def broken(self, error: httpx2.RequestError | None) -> list[Event]:
        """The connection is gone, or (None) the service has closed it. Raises NoServer when there never was one."""
        if error is not None and self._is_spent():
            raise self._policy.lost(error) from error
        return self._again(None, type(error).__name__ if error else "closed by the service")

    def _again(self, seconds: float | None, reason: str) -> list[Event]:
        self.pause = seconds or self._policy.backoff(self._failures)
        self._failures += 1
        if self._is_lost or not self._ever_connected:
            return []
        self._is_lost = True
        return [Lost(reason)]

    def _is_spent(self) -> bool:
        return not self._ever_connected and self._failures >= self._policy.retries
