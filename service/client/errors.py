"""What goes wrong between a client and its epochd. The text of each is a sentence for who uses the client."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

_MOST_FIELDS: Final = 20


class FieldProblem(NamedTuple):
    """Which field was refused, and why."""

    pointer: str  # `#/optimizer/lr` in the body, `?limit` in the query
    detail: str


class ClientError(Exception):
    """The service could not be asked, or it refused."""


class NoServer(ClientError):
    """No epochd answers at the address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"No epochd answers at {url} ({reason}). Start one with `epochd serve`, or say where it is: EPOCHD_URL."
        )
        self.url = url


class ConnectionLost(ClientError):
    """The connection broke before the answer came."""


class UnexpectedAnswer(ClientError):
    """What answered does not speak as this client understands it: it is no epochd, or one of another version."""


class WaitTimeout(ClientError, TimeoutError):
    """What was waited for has not come in time. It goes on."""


class ApiError(ClientError):
    """The service refused. `code` is a stable name for programs, `detail` a sentence for people."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[FieldProblem, ...] = (),
        request_id: str | None = None,
    ) -> None:
        self.status, self.code, self.detail = status, code, detail
        self.errors = errors
        self.request_id = request_id  # names the request in the service's log
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        if len(self.errors) < 2:
            return self.detail
        return "\n".join(f"{each.pointer}: {each.detail}" for each in self.errors)


class NotFound(ApiError):
    """There is no such job, dataset, alias or checkpoint, or it is another key's."""


def refusal(url: str, status: int, headers: Mapping[str, str], content: bytes, *, has_key: bool) -> ApiError:
    """The error that an answer of 300 or more is."""
    body = _problem(content)
    if body is None:
        detail = f"{url} answered with HTTP {status}, and not as an epochd does. Is it one that listens there?"
        return ApiError(status, f"http_{status}", detail)
    detail = str(body["detail"])
    if status == HTTPStatus.UNAUTHORIZED:
        detail = f"The epochd at {url} " + (
            "does not accept this API key: it is wrong, revoked or expired."
            if has_key
            else "needs an API key: set EPOCHD_API_KEY."
        )
    fields = [each for each in body.get("errors", [])[:_MOST_FIELDS] if isinstance(each, dict)]
    problems = tuple(FieldProblem(str(each.get("pointer", "#")), str(each.get("detail", ""))) for each in fields)
    kind = NotFound if status == HTTPStatus.NOT_FOUND else ApiError
    return kind(status, str(body["code"]), detail, problems, body.get("request_id") or headers.get("X-Request-Id"))


def _problem(content: bytes) -> dict[str, Any] | None:
    """None: this is not how an epochd refuses."""
    try:
        body = json.loads(content)
    except ValueError:
        return None
    is_ours = (
        isinstance(body, dict) and "code" in body and "detail" in body and isinstance(body.get("errors", []), list)
    )
    return body if is_ours else None
