"""The sink `tensorboard`, read by TensorBoard's own reader."""

import json
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tests.service.test_sinks import rewind, turn
from tests.service.test_sinks_kills import kill_everywhere
from tests.worker.jobs.making import claim, finish, record, running
from worker.jobs import control, records
from worker.jobs.db import Database
from worker.jobs.states import Outcome, SinkKind
from worker.jobs.tables import Job

with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    if "torch" not in sys.modules:
        patch.setitem(sys.modules, "torch", None)  # as in the process of the sinks
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboardX.proto.api_pb2 import Status

    from service.sinks.event_files import TAGS, EventFiles

TENSORBOARD = SinkKind.TENSORBOARD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tensorboard"


def run(folder: Path, job: Job) -> EventAccumulator:
    found = EventAccumulator(str(folder / job.id), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def single(number: float) -> float:
    """In single precision, which event files have."""
    value: float = struct.unpack("f", struct.pack("f", number))[0]
    return value


def told(folder: Path, job: Job) -> dict[str, list[tuple[int, float, float]]]:
    found = run(folder, job)
    return {tag: [(each.step, each.value, each.wall_time) for each in found.Scalars(tag)] for tag in scalars(found)}


def scalars(found: EventAccumulator) -> list[str]:
    tags: list[str] = found.Tags()["scalars"]
    return tags


def wanted(db: Database, job: Job) -> dict[str, list[tuple[int, float, float]]]:
    rows = records.epochs(db, job.id)
    found = {
        tag: [
            (row.epoch, single(getattr(row, name)), row.recorded_at.timestamp())
            for row in rows
            if getattr(row, name) is not None
        ]
        for name, tag in TAGS.items()
    }
    return {tag: values for tag, values in found.items() if values}


def text(found: EventAccumulator, tag: str) -> Iterator[tuple[int, str]]:
    for each in found.Tensors(f"{tag}/text_summary"):
        yield each.step, each.tensor_proto.string_val[0].decode()


def test_each_metric_is_a_curve_over_epochs(db: Database, folder: Path) -> None:
    job = running(db, name="<script>alert(1)</script>", labels={"team": "a"}, epochs=9)
    kept = turn(db, EventFiles(folder, 0), TENSORBOARD)
    for epoch in (1, 2, 3):
        record(db, job, epoch, train_loss=1 / 3 / epoch, peak_memory_bytes=2**40 + 1)
        kept.turn(Event())
        assert told(folder, job) == wanted(db, job)
    finish(db, job, Outcome.SUCCEEDED)
    kept.turn(Event())
    found = run(folder, job)
    assert {"loss/train", "loss/test", "accuracy/test", "learning_rate"} <= set(scalars(found))
    ((step, spec),) = text(found, "spec")
    assert step == 0
    assert all(line.startswith("    ") for line in spec.splitlines())  # code, for Markdown
    shown = json.loads(spec)
    assert shown["optimizer"] == job.spec["optimizer"]
    assert "script" not in spec
    assert [path.name for path in folder.iterdir()] == [job.id]


def test_the_spec_is_there_to_compare_runs_by(db: Database, folder: Path) -> None:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    job = running(db, optimizer={"name": "adam", "lr": 0.5}, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.FAILED)
    turn(db, EventFiles(folder, 0), TENSORBOARD)
    found = run(folder, job).summary_metadata
    parts = {tag: HParamsPluginData.FromString(each.plugin_data.content) for tag, each in found.items() if "_h" in tag}
    params = parts["_hparams_/session_start_info"].session_start_info.hparams
    assert params["optimizer.lr"].number_value == 0.5
    assert params["optimizer.name"].string_value == "adam"
    assert params["shuffle"].bool_value is True
    assert params["model.hidden"].string_value == "[512, 512]"
    assert not [name for name in params if name.startswith(("webhooks", "labels", "name"))]
    assert parts["_hparams_/session_end_info"].session_end_info.status == Status.Value("STATUS_FAILURE")


def test_what_is_not_finite_is_left_out_and_said(db: Database, folder: Path) -> None:
    job = running(db, epochs=9)
    record(db, job, 1, train_loss=float("inf"))
    record(db, job, 2)
    turn(db, EventFiles(folder, 0), TENSORBOARD)
    assert told(folder, job) == wanted(db, job)
    assert [step for step, *_ in told(folder, job)["loss/train"]] == [2]
    assert list(text(run(folder, job), "non_finite")) == [(1, "inf")]


def test_epochs_that_are_recorded_again_replace_the_earlier_ones(db: Database, folder: Path) -> None:
    job = running(db, epochs=9)
    for epoch in (1, 2, 3):
        record(db, job, epoch)
    kept = turn(db, EventFiles(folder, 0), TENSORBOARD)
    again = rewind(db, job, 1)
    record(db, again, 2, train_loss=9.0)
    kept.turn(Event())
    assert told(folder, job) == wanted(db, job)


def test_there_are_never_more_than_two_files_of_a_job(db: Database, folder: Path) -> None:
    job = running(db, epochs=9)
    for epoch in range(1, 6):
        record(db, job, epoch)
        turn(db, EventFiles(folder, 0), TENSORBOARD)
        assert told(folder, job) == wanted(db, job)
        assert len(list((folder / job.id).iterdir())) == min(epoch, 2)


def test_a_job_that_goes_on_after_its_end_says_its_new_spec(db: Database, folder: Path) -> None:
    job = running(db, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    kept = turn(db, EventFiles(folder, 0), TENSORBOARD)
    control.extend(db, job.id, 4)
    record(db, claim(db), 2)
    kept.turn(Event())
    assert told(folder, job) == wanted(db, job)
    *_, (_, spec) = text(run(folder, job), "spec")  # this reader forgets no text
    assert json.loads(spec)["epochs"] == 5


def test_a_reader_that_watches_sees_the_new_file(db: Database, folder: Path) -> None:
    """As TensorBoard does, which has read the file that is replaced."""
    job = running(db, epochs=9)
    for epoch in (1, 2, 3):
        record(db, job, epoch)
    turn(db, EventFiles(folder, 0), TENSORBOARD)
    watching = run(folder, job)
    record(db, rewind(db, job, 1), 2, train_loss=9.0)
    turn(db, EventFiles(folder, 0), TENSORBOARD)
    watching.Reload()
    assert [(each.step, each.value) for each in watching.Scalars("loss/train")] == [(1, 2.0), (2, 9.0)]


def test_a_kill_at_any_step_loses_and_doubles_nothing(db: Database, folder: Path) -> None:
    def check(job: Job, was_killed: bool) -> None:
        if was_killed and not list((folder / job.id).glob("events*")):
            return
        found = told(folder, job)
        if not was_killed:
            assert found == wanted(db, job)
            assert len(list((folder / job.id).iterdir())) <= 2
        steps = [step for step, *_ in found["loss/train"]]
        assert steps == sorted(set(steps))
        assert len(steps) >= 2

    assert kill_everywhere(db, lambda: EventFiles(folder, 0), check, TENSORBOARD) > 8


def test_a_cut_off_record_is_no_end_of_the_file(db: Database, folder: Path) -> None:
    job = running(db, epochs=9)
    record(db, job, 1)
    turn(db, EventFiles(folder, 0), TENSORBOARD)
    (path,) = (folder / job.id).iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    record(db, job, 2)
    turn(db, EventFiles(folder, 0), TENSORBOARD)
    assert told(folder, job) == wanted(db, job)
