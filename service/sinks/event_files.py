"""The sink `tensorboard`: one run a job, in event files.

A file is only ever appended to by the process that began it. Anything else begins a new one, from the first epoch on:
its name comes later, and its first event has whoever reads both forget what came before it (as TensorFlow does after a
crash). So a reader finds each epoch once, at any moment. The file before stays, or a TensorBoard that has read it would
wait at its end for ever; those before that one go.
"""

import json
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tensorboardX import summary
from tensorboardX.proto.api_pb2 import Status as RunStatus
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.record_writer import masked_crc32c
from worker.jobs.states import Status
from worker.jobs.tables import Epoch, Job, SinkRow

from .durable import append, replaced
from .flat import flattened, of_training

TAGS: Final = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "test_accuracy": "accuracy/test",
    "test_top5_accuracy": "accuracy/test_top5",
    "test_f1": "f1/test",
    "test_mae": "mae/test",
    "test_r2": "r2/test",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "samples_per_second": "speed/samples_per_second",
    "train_seconds": "seconds/train",
    "test_seconds": "seconds/test",
    "peak_memory_bytes": "memory/peak_bytes",
    "attempt": "attempt",
}
_COMPARED_BY: Final = ("loss/test", "accuracy/test", "mae/test")
_ENDED: Final = {Status.SUCCEEDED: "STATUS_SUCCESS", Status.FAILED: "STATUS_FAILURE"}
_END_TAG: Final = "_hparams_/session_end_info"
_NAME: Final = "events.out.tfevents."


class EventFiles:
    def __init__(self, folder: Path, spare_bytes: int) -> None:
        self._folder, self._spare_bytes = folder, spare_bytes

    def is_new(self) -> bool:
        return not self._folder.exists()

    def begin(self, job: Job, pages: Iterator[Sequence[Epoch]], known: SinkRow | None) -> None:  # noqa: ARG002
        folder = self._folder / job.id
        folder.mkdir(parents=True, exist_ok=True)
        before = _files(folder)
        number = max([int(time.time()), *(int(path.name.split(".")[3]) + 1 for path in before)])
        with replaced(folder / f"{_NAME}{number:010d}.epochd", self._spare_bytes) as file:
            file.write(b"".join(map(_record, _header(job))))
            for rows in pages:
                file.write(_records(rows))
        for path in before[:-1]:
            path.unlink(missing_ok=True)

    def add(self, job: Job, rows: Iterable[Epoch], run_id: str | None) -> None:  # noqa: ARG002
        self._append(job, _records(rows))

    def end(self, job: Job, run_id: str | None) -> None:  # noqa: ARG002
        self._append(job, _record(_end(job)))

    def _append(self, job: Job, contents: bytes) -> None:
        newest = _files(self._folder / job.id)[-1:]
        if not newest:
            raise FileNotFoundError(f"somebody has removed the event file of job {job.id}")
        append(newest[0], contents, self._spare_bytes)


def _files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in folder.glob(f"{_NAME}*.epochd") if path.name.split(".")[3].isdecimal())


def _header(job: Job) -> Iterator[Event]:
    at = job.created_at.timestamp()
    yield Event(wall_time=at, file_version="brain.Event:2")
    yield Event(wall_time=at, step=0, session_log=SessionLog(status=SessionLog.START))
    spec = json.dumps(of_training(job.spec), indent=2, ensure_ascii=False)
    as_code = "".join(f"    {line}\n" for line in spec.splitlines())  # Markdown
    yield Event(wall_time=at, step=0, summary=summary.text("spec", as_code))
    experiment, start, _ = summary.hparams(flattened(job.spec), dict.fromkeys(_COMPARED_BY))
    for each in (experiment, start):
        yield Event(wall_time=at, step=0, summary=each)


def _records(rows: Iterable[Epoch]) -> bytes:
    return b"".join(_record(event) for row in rows for event in _events(row))


def _events(row: Epoch) -> Iterator[Event]:
    """What is null is left out, and said in words where it should be a number."""
    numbers = {tag: getattr(row, name) for name, tag in TAGS.items()}
    values = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items() if number is not None]
    yield _event(row.recorded_at, row.epoch, Summary(value=values))
    if row.non_finite is not None:
        yield _event(row.recorded_at, row.epoch, summary.text("non_finite", row.non_finite))


def _end(job: Job) -> Event:
    at = job.finished_at or job.created_at
    status = RunStatus.Value(_ENDED.get(Status(job.status), "STATUS_UNKNOWN"))
    ended = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=at.timestamp()))
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=ended.SerializeToString())
    value = Summary.Value(tag=_END_TAG, metadata=SummaryMetadata(plugin_data=plugin))
    return _event(at, 0, Summary(value=[value]))


def _event(at: datetime, step: int, content: Any) -> Event:
    return Event(wall_time=at.timestamp(), step=step, summary=content)


def _record(event: Event) -> bytes:
    """As TensorFlow frames them: length and contents, each with its checksum."""
    contents: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(contents))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), contents, struct.pack("<I", masked_crc32c(contents)))
    )
