"""What can be asked of sweeps: many jobs of one spec, some of whose fields vary."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from . import answers
from .call import Call, idempotent, segment

if TYPE_CHECKING:
    from service.bodies.sweeps import SweepBody, SweepPage, SweepPlan


def submit(form: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call["SweepBody"]:
    """Launches a job for each trial. However often it is sent, it makes one sweep.

    Raises ValueError for an Idempotency-Key that cannot be sent.
    """
    more = {"json": dict(form), "headers": idempotent(idempotency_key)}
    return Call("POST", "/sweeps", answers.sweep, more=more, may_repeat=True, waits=60)


def plan(form: Mapping[str, Any]) -> Call["SweepPlan"]:
    """Which trials there would be. Nothing is stored."""
    return Call("POST", "/sweeps", answers.sweep_plan, {"dry_run": "true"}, {"json": dict(form)}, may_repeat=True)


def page(*, after: str | None = None, limit: int = 100) -> Call["SweepPage"]:
    """Some sweeps, newest first."""
    return Call("GET", "/sweeps", answers.sweeps, {"after": after, "limit": limit})


def show(sweep_id: str) -> Call["SweepBody"]:
    """Its trials, and which is the best so far."""
    return Call("GET", _of(sweep_id), answers.sweep)


def cancel(sweep_id: str, mode: Literal["save", "now"] = "save") -> Call["SweepBody"]:
    """Cancels every trial that has not ended."""
    return Call("POST", f"{_of(sweep_id)}/cancel", answers.sweep, more={"json": {"mode": mode}}, may_repeat=True)


def delete(sweep_id: str) -> Call[None]:
    """Deletes a sweep whose trials have ended, with all their files."""
    return Call("DELETE", _of(sweep_id), answers.nothing, may_repeat=True)  # an id is never given again


def _of(sweep_id: str) -> str:
    return f"/sweeps/{segment(sweep_id)}"
