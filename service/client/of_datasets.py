"""What can be asked of datasets."""

import json
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from . import answers
from .call import Call, Flow, Pause, segment
from .errors import WaitTimeout
from .policy import Policy
from .transfers import Progress, Watched, packed

if TYPE_CHECKING:
    from service.bodies.datasets import DatasetBody, DatasetSummary

_ENDED: Final = ("ready", "invalid")
_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.1, 2.0


def every() -> Call["list[DatasetSummary]"]:
    """The newest version of each, built-in ones included."""
    return Call("GET", "/datasets", answers.datasets)


def show(name: str, version: int | None = None) -> Call["DatasetBody"]:
    """With its card: what it holds and what was found."""
    return Call("GET", _of(name), answers.dataset, {"version": version})


def delete(name: str, version: int | None = None) -> Call[None]:
    """All versions or one, and their files."""
    return Call("DELETE", _of(name), answers.nothing, {"version": version})


def prepare(name: str) -> Call["DatasetBody"]:
    """Has a built-in dataset prepared, ahead of the first job that needs it."""
    return Call("POST", "/datasets", answers.dataset, more={"json": {"name": name}}, may_repeat=True)


def upload(file: IO[bytes] | Watched, form: dict[str, Any]) -> Call["DatasetBody"]:
    more = {"files": {"archive": ("archive", file)}, "data": {"dataset": json.dumps(form)}}
    return Call("POST", "/datasets", answers.dataset, more=more, waits=60)


def add(
    policy: Policy, /, path: str | Path, *, name: str | None = None, progress: Progress | None = None, **form: Any
) -> Flow["DatasetBody"]:
    """Uploads an archive, or a folder as a zip. `form` is what the service's form knows: task, image_size, strict...

    Unless you give a name, it is the file's. Raises OSError where it cannot be read.
    """
    path = Path(path)
    given = {name: value for name, value in form.items() if value is not None}
    with packed(path) as file:
        sent = Watched(file, progress) if progress else file
        return (yield from policy.exchange(upload(sent, {"name": name or path.resolve().name.split(".")[0], **given})))


def wait(policy: Policy, /, name: str, version: int | None = None, timeout: float | None = None) -> Flow["DatasetBody"]:
    """The dataset, when it is ready or invalid. Raises WaitTimeout."""
    deadline = None if timeout is None else time.monotonic() + timeout
    seconds = _LOOK_SECONDS
    while True:
        dataset = yield from policy.exchange(show(name, version), patient=deadline is None)
        if dataset.status in _ENDED:
            return dataset
        if deadline is not None and time.monotonic() > deadline:
            raise WaitTimeout(f"The dataset {name} is not ready after {timeout:g} s; its preparation goes on.")
        yield Pause(seconds)
        seconds = min(1.5 * seconds, _LONGEST_LOOK_SECONDS)


def _of(name: str) -> str:
    return f"/datasets/{segment(name)}"
