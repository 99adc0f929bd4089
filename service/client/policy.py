"""How calls are sent: when again, how often, and what is said when it is no use. Nothing here does I/O."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx2

from .call import Answer, Call, Flow, Pause
from .errors import ClientError, ConnectionLost, NoServer, refusal

T = TypeVar("T")

_NOT_NOW: Final = frozenset({429, 502, 503, 504})
_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_FIRST_SECONDS, _LONGEST_SECONDS, _LONGEST_RETRY_AFTER = 0.25, 5.0, 60.0


@dataclass(frozen=True)
class Policy:
    url: str
    has_key: bool
    retries: int

    def exchange(self, call: Call[T], *, patient: bool = False) -> Flow[T]:
        """One call and its answer, sent again where that may help and can do no harm.

        `patient`: as often as it takes. Raises ClientError.
        """
        tries, may_be_done = 0, False
        while True:
            last = tries >= self.retries and not patient
            try:
                answer: Answer = yield call
            except httpx2.RequestError as error:
                if last or not (call.is_repeatable or isinstance(error, _NOT_SENT)):
                    raise self.lost(error) from error
                may_be_done = may_be_done or not isinstance(error, _NOT_SENT)
                seconds = self.backoff(tries)
            else:
                is_gone = call.method == "DELETE" and call.is_repeatable and answer.status == 404
                if answer.status < 300 or (is_gone and may_be_done):  # the answer that said so got lost
                    return call.parse(answer)
                if last or answer.status not in _NOT_NOW or not call.is_repeatable:
                    raise self.refused(answer)
                seconds = retry_after(answer.headers) or self.backoff(tries)
            yield Pause(seconds)
            tries += 1

    def backoff(self, tries: int) -> float:
        return min(_FIRST_SECONDS * 2.0 ** min(tries, 10), _LONGEST_SECONDS) * random.uniform(0.75, 1.0)  # noqa: S311  # nosec B311

    def lost(self, error: httpx2.RequestError) -> ClientError:
        if isinstance(error, _NOT_SENT):
            return NoServer(self.url, _reason(error))
        if isinstance(error, httpx2.TimeoutException):
            return ConnectionLost(f"{self.url} has not answered in time. Try again, or give it longer: `timeout`.")
        return ConnectionLost(f"The connection to {self.url} broke before the answer came ({_reason(error)}).")

    def refused(self, answer: Answer) -> ClientError:
        return refusal(self.url, answer.status, answer.headers, answer.content, has_key=self.has_key)

    def may_change(self, answer: Answer) -> bool:
        """Whether the same question may be answered in a moment."""
        return answer.status in _NOT_NOW


def retry_after(headers: Mapping[str, str]) -> float | None:
    """In how many seconds the service wants to be asked again, if it says so."""
    said: Any = headers.get("Retry-After", "")
    return min(float(said), _LONGEST_RETRY_AFTER) if said.isdecimal() and said.isascii() else None


def _reason(error: httpx2.RequestError) -> str:
    return str(error).strip() or type(error).__name__
