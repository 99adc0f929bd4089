"""What can be asked of jobs."""

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel
from worker.jobs.patches import patched

from . import answers
from .call import Call, Flow, idempotent, segment
from .errors import WaitTimeout
from .policy import Policy
from .transfers import Receiving

if TYPE_CHECKING:
    from pathlib import Path

    from worker.jobs.plan import Plan
    from worker.jobs.report import Report
    from worker.jobs.spec import Spec

    from service.bodies.checkpoints import CheckpointBody
    from service.bodies.compare import ComparisonBody
    from service.bodies.jobs import JobBody, JobPage
    from service.bodies.metrics import MetricsPage, MetricsRow

Format = Literal["safetensors", "pt2", "onnx", "bundle"]

_PAGE: Final = 100
_POLL_SECONDS: Final = 20.0
_EXPORT_SECONDS: Final = 600.0
# What the job's own parts are called: a part that gets another name gets that one's defaults with it.
_NAMED: Final = ("dataset", "model", "loss", "optimizer", "schedule")


def submit(
    spec: "Mapping[str, Any] | Spec | None" = None, *, idempotency_key: str | None = None, **fields: Any
) -> Call["JobBody"]:
    """Launches a training. `{}` is a valid spec; fields of it may also be given by name.

    Sent with an Idempotency-Key, one of its own if need be: however often it is sent, it makes one job. Raises
    ValueError for a key that cannot be sent.
    """
    more = _json(_spec(spec, fields))
    more["headers"] |= idempotent(idempotency_key)
    return Call("POST", "/jobs", answers.job, more=more, may_repeat=True)


def plan(spec: "Mapping[str, Any] | Spec | None" = None, **fields: Any) -> Call["Plan"]:
    """What the job would be: its whole spec, parameters, steps and memory. Nothing is stored."""
    return Call(
        "POST", "/jobs", answers.plan, {"dry_run": "true"}, _json(_spec(spec, fields)), may_repeat=True, waits=60
    )


def show(job_id: str) -> Call["JobBody"]:
    return Call("GET", _of(job_id), answers.job)


def page(
    *,
    status: str | None = None,
    labels: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    sweep: str | None = None,
    after: str | None = None,
    limit: int = _PAGE,
) -> Call["JobPage"]:
    """Some jobs, newest first."""
    params: dict[str, str | int | None] = {f"label.{name}": value for name, value in (labels or {}).items()}
    since = created_after.astimezone().isoformat() if created_after else None
    asked = {"status": status, "created_after": since, "sweep": sweep, "after": after, "limit": limit}
    return Call("GET", "/jobs", answers.jobs, params | asked)


def cancel(job_id: str, mode: Literal["save", "now"] = "save") -> Call["JobBody"]:
    """Stops it for good. `now`: it is killed, and saves nothing."""
    return Call("POST", _of(job_id, "cancel"), answers.job, more=_json({"mode": mode}), may_repeat=True)


def pause(job_id: str) -> Call["JobBody"]:
    """Frees its slot until `resume`."""
    return Call("POST", _of(job_id, "pause"), answers.job, may_repeat=True)


def resume(job_id: str) -> Call["JobBody"]:
    """Lets a paused job go on."""
    return Call("POST", _of(job_id, "resume"), answers.job, may_repeat=True)


def retry(job_id: str, apply_suggestion: bool = False) -> Call["JobBody"]:
    """Tries a failed or cancelled job again, if you like with what its error suggests."""
    return Call("POST", _of(job_id, "retry"), answers.job, more=_json({"apply_suggestion": apply_suggestion}))


def extend(job_id: str, epochs: int) -> Call["JobBody"]:
    """Trains a job that has succeeded for so many epochs more."""
    return Call("POST", _of(job_id, "extend"), answers.job, more=_json({"epochs": epochs}))


def delete(job_id: str) -> Call[None]:
    """Deletes a job that has ended, with all its files."""
    return Call("DELETE", _of(job_id), answers.nothing, may_repeat=True)  # an id is never given again


def metrics_page(job_id: str, since: int = 0, wait: float = 0) -> Call["MetricsPage"]:
    """The rows behind `since`; where there are none, so many seconds are waited for one."""
    return Call("GET", _of(job_id, "metrics"), answers.metrics, {"since": since, "wait": wait or None}, waits=wait)


def logs_page(job_id: str, since: int = 0, attempt: int | None = None) -> Call[answers.LogsPage]:
    """Lines of an attempt's log, of the newest unless you say which."""
    return Call("GET", _of(job_id, "logs"), answers.logs, {"since": since, "attempt": attempt})


def checkpoints(job_id: str) -> Call["list[CheckpointBody]"]:
    """The checkpoints that are kept, oldest first."""
    return Call("GET", _of(job_id, "checkpoints"), answers.checkpoints)


def report(job_id: str) -> Call["Report"]:
    """The newest epoch's confusion matrix, and each class's scores."""
    return Call("GET", _of(job_id, "report"), answers.report)


def compare(*job_ids: str) -> Call["ComparisonBody"]:
    """What differs between jobs, and whether it made a difference: changes are against the first."""
    return Call("GET", "/compare", answers.comparison, {"jobs": ",".join(job_ids)}, waits=30)


def download(
    job_id: str,
    checkpoint: str | int = "best",
    path: "str | Path" = ".",
    format: Format = "safetensors",  # noqa: A002
) -> Call["Path"]:
    """Writes a checkpoint into a file, or under a name of its own into a folder; returns where it is.

    It appears whole, and only if it is what the service has. Raises OSError where it cannot be written.
    """
    address, params = _of(job_id, "checkpoints", str(checkpoint)), {}
    if format != "safetensors":
        address, params = f"{address}/export", {"format": format}
    ending = "zip" if format == "bundle" else format
    into = Receiving(path, f"{job_id}-{checkpoint}.{ending}")
    waits = 0.0 if format == "safetensors" else _EXPORT_SECONDS
    return Call("GET", address, into.finish, params, into=into, waits=waits)


def metrics(policy: Policy, job_id: str, /) -> Flow["list[MetricsRow]"]:
    """All rows that there are, one an epoch."""
    rows: list[MetricsRow] = []
    while True:
        page = yield from policy.exchange(metrics_page(job_id, rows[-1].seq if rows else 0))
        if not page.data:
            return rows
        rows += page.data


def logs(policy: Policy, job_id: str, /, attempt: int | None = None) -> Flow[list[str]]:
    """All lines that there are of an attempt's log, of the newest unless you say which."""
    found = yield from policy.exchange(logs_page(job_id, attempt=attempt))
    lines, last = found.data, found
    while last.data and last.attempt:
        last = yield from policy.exchange(logs_page(job_id, last.next_since, last.attempt))
        lines += last.data
    return lines


def wait(policy: Policy, job_id: str, /, timeout: float | None = None) -> Flow["JobBody"]:
    """The job, when it has ended. A service that goes away meanwhile is waited for.

    Raises WaitTimeout when it has not ended after so many seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    job = yield from policy.exchange(show(job_id))
    since, ended = 0, job.finished_at is not None
    while not ended:
        left = _POLL_SECONDS if deadline is None else min(deadline - time.monotonic(), _POLL_SECONDS)
        if left <= 0:
            raise WaitTimeout(f"The job {job_id} has not ended after {timeout:g} s; it goes on.")
        found = yield from policy.exchange(metrics_page(job_id, since, left), patient=deadline is None)
        since, ended = found.next_since, found.terminal
    return (yield from policy.exchange(show(job_id), patient=deadline is None))


def clone(policy: Policy, job_id: str, /, **changes: Any) -> Flow["JobBody"]:
    """A new job of the same spec, but for the changes, which are merged into it: `optimizer={"lr": 0.1}`.

    A part that gets another `name` begins with that one's defaults.
    """
    job = yield from policy.exchange(show(job_id))
    return (yield from policy.exchange(submit(changed(job.spec, changes))))


def changed(spec: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the changes. None goes back to the default."""
    return patched(begun_anew(spec, changes), dict(changes))


def begun_anew(spec: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The spec without the fields of those parts that the changes give another name: they are that one's own."""
    result = dict(spec)
    for part in _NAMED:
        change, was = changes.get(part), spec.get(part)
        if isinstance(change, Mapping) and isinstance(was, dict) and change.get("name") not in (None, was.get("name")):
            result[part] = {}
    return result


def _of(job_id: str, *rooms: str) -> str:
    return "/jobs/" + "/".join(segment(each) for each in (job_id, *rooms))


def _spec(spec: "Mapping[str, Any] | Spec | None", fields: Mapping[str, Any]) -> dict[str, Any]:
    if spec is None:
        return dict(fields)
    if fields:
        raise ValueError("Give a spec, or fields of one by their names, but not both.")
    return spec.model_dump(mode="json") if isinstance(spec, BaseModel) else dict(spec)


def _json(body: Any) -> dict[str, Any]:
    return {"content": json.dumps(body, allow_nan=False), "headers": {"Content-Type": "application/json"}}
