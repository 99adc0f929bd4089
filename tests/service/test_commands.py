"""The `epochd` command: what it sends, what it prints for people and for programs, and how it ends."""

import csv
import io
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx2
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service import feed
from service.client import policy as policies
from service.commands import following, predicting
from service.commands import logs as log_commands
from service.commands import specs as spec_commands
from service.commands import sweeps as sweep_commands
from service.commands.command import Cli
from service.commands.ending import Exit
from tests.end_to_end.serving import environment
from tests.service.commanding import Commands
from tests.service.predictor import FakePredictor
from tests.service.test_checkpoints import job as job  # a fixture: three checkpoints on disk
from tests.service.test_checkpoints import weights
from tests.service.test_client import ended, png
from tests.service.test_logs import written
from tests.service.unreliable import answered, cut, lost
from tests.worker.jobs.making import finish, progress, record, report, result, running, saved
from worker.jobs import control, queue, records, submitting, sweeps
from worker.jobs.db import Database
from worker.jobs.errors import BadImage
from worker.jobs.failures import Failure
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome
from worker.jobs.tables import Job as Row

ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "<b>[red]\u202e\u2067[/]&%s{}"  # the service itself refuses control characters in names


@pytest.fixture
def epochd(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setattr(policies, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(feed, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(log_commands, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(sweep_commands, "_LOOK_SECONDS", 0.01)
    for name in ("EPOCHD_URL", "EPOCHD_API_KEY", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Commands(client, monkeypatch)


def spec_of(epochd: Commands, *arguments: str, **more: Any) -> dict[str, Any]:
    """What `epochd submit` has made of it."""
    done = epochd("submit", *arguments, "--json", **more)
    assert done.code == 0, done.err
    spec: dict[str, Any] = json.loads(done.out)["spec"]
    return spec


def test_submit_says_the_id_in_a_pipe_and_more_on_a_terminal(epochd: Commands, db: Database) -> None:
    piped = epochd("submit")
    (row,) = [queue.get(db, piped.out.strip())]
    assert piped == (0, f"{row.id}\n", "")
    shown = epochd("submit", "--name", "shoes", terminal=True)
    assert "Submitted" in shown.out
    assert "(shoes)" in shown.out
    assert "epochd watch" in shown.out


def test_a_spec_comes_from_a_file_of_yaml_or_json_or_from_a_pipe(epochd: Commands, tmp_path: Path) -> None:
    yaml, as_json = tmp_path / "a.yaml", tmp_path / "a.json"
    yaml.write_text("# a comment\noptimizer: {lr: 1e-3, weight_decay: 5e-4}\nname: no\nepochs: 3\n")
    as_json.write_text('{"epochs": 4, "labels": {"team": "\\u00e4"}}')
    spec = spec_of(epochd, str(yaml))
    assert (spec["optimizer"]["lr"], spec["optimizer"]["weight_decay"]) == (0.001, 0.0005)
    assert (spec["name"], spec["epochs"]) == ("no", 3)
    assert spec_of(epochd, str(as_json))["labels"] == {"team": "ä"}
    assert spec_of(epochd, "-", stdin=b"epochs: 7")["epochs"] == 7
    assert spec_of(epochd, "-", stdin=b"")["epochs"] == 5


def test_the_specs_that_come_with_it_are_taken_by_name(
    epochd: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text("# A small one.\nepochs: 1\n")
    monkeypatch.setattr(spec_commands, "OWN", tmp_path)
    assert spec_of(epochd, "small")["epochs"] == 1
    assert epochd("specs").out == "small\tA small one.\n"
    assert epochd("specs", "small").out == "# A small one.\nepochs: 1\n"
    assert json.loads(epochd("specs", "small", "--json").out) == {"epochs": 1}
    unknown = epochd("specs", "large")
    assert (unknown.code, "there are small" in unknown.err) == (Exit.NOT_FOUND, True)
    unknown = epochd("submit", "large")
    assert (unknown.code, "no file large" in unknown.err, "small" in unknown.err) == (Exit.USAGE, True, True)


def test_set_changes_fields_list_items_and_whole_parts(epochd: Commands) -> None:
    chain = b"model: {name: layers, layers: [{name: flatten}, {name: linear, features: 8}, {name: linear}]}"
    spec = spec_of(
        epochd,
        "-",
        *("--set", "optimizer.lr=1e-2", "--set", "model.layers.1.features=16", "--set", "schedule={name: cosine}"),
        *("--set", "name='7'", "--label", "a=b=c", "--label", "b=c"),
        stdin=chain,
    )
    assert spec["optimizer"]["lr"] == 0.01
    assert spec["model"]["layers"][1]["features"] == 16
    assert spec["schedule"]["name"] == "cosine"
    assert (spec["name"], spec["labels"]) == ("7", {"a": "b=c", "b": "c"})


@pytest.mark.parametrize(
    ("arguments", "stdin", "why"),
    [
        (["--set", "epochs"], "", "give a path and a value"),
        (["--set", "=3"], "", "give a path and a value"),
        (["--set", "epochs.x=3"], "epochs: 5", "epochs is 5, which has no fields"),
        (["--set", "a.7=3"], "a: [1, 2]", "a is a list of 2: say which, from 0 to 1"),
        (["--set", "a=[1"], "", "--set a, line 1"),
        (["--set", "seed=.nan"], "", "nan; JSON has no such thing"),
        (["--label", "team"], "", "give a key and a value"),
        ([], "epochs: 1\nname: x\nepochs: 2\n", 'line 3, column 1: this field is there twice: "epochs"'),
        ([], "model: [1,\n  {a: b", "line 2, column"),
        ([], "epochs: 1\n\tseed: 2", "line 2, column 1"),
        ([], "- 1\n- 2", "is a list; fields with values are wanted"),
        ([], "name: 2026-01-01", "name is a date"),
        ([], "1: 2", "should have a text for its name"),
        ([], "a: !!python/object:os.system x", "could not determine a constructor"),
        ([], "&a [*a]", "is a list"),
        ([], "a: &a [*a]", "too large for a spec"),
        ([], "[" * 1000 + "]" * 1000, "nested too deeply"),
        ([], "a: 'x\x07'", "special characters are not allowed"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said_with_its_place(
    epochd: Commands, arguments: list[str], stdin: str, why: str
) -> None:
    done = epochd("submit", "-", *arguments, stdin=stdin.encode())
    assert (done.code, done.out) == (Exit.USAGE, ""), done
    assert why in done.err
    assert done.err.count("\n") == 1
    assert epochd.way.sent == []


def test_what_is_no_text_is_said_to_be_none(epochd: Commands, tmp_path: Path) -> None:
    done = epochd("submit", "-", stdin=b"name: \xff")
    assert (done.code, "no text in UTF-8 (byte 7)" in done.err) == (Exit.USAGE, True)
    done = epochd("submit", str(tmp_path))
    assert (done.code, "Is a directory" in done.err) == (Exit.USAGE, True)


def test_what_the_service_refuses_is_said_with_every_field(epochd: Commands) -> None:
    done = epochd("submit", "--set", "optimizer.lr=-1", "--set", "epochs=0")
    assert (done.code, done.out) == (Exit.REFUSED, "")
    assert [line.split(":")[1].strip() for line in done.err.splitlines()] == ["#/optimizer/lr", "#/epochs"]


def test_a_dry_run_says_what_the_job_would_be(epochd: Commands, db: Database) -> None:
    done = epochd("submit", "--dry-run", "--set", "epochs=2")
    assert "steps\t16 (2 epochs of 8)" in done.out
    assert json.loads(epochd("submit", "--dry-run", "--json").out)["steps"] == 40
    assert epochd("jobs").out == ""


def test_the_same_idempotency_key_is_the_same_job(epochd: Commands) -> None:
    ids = {epochd("submit", "--idempotency-key", "k").out for _ in range(2)}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["submit", "--idempotency-key", "größe"], "--idempotency-key: An idempotency key is of"),
        (["submit", "--label", "a=\udcff"], "--label a=\\udcff is no text in UTF-8"),
        (["jobs", "--label", "a=\udcff"], "--label a=\\udcff is no text in UTF-8"),
        (["datasets", "show", "\udcff"], "no text in UTF-8"),
        (["jobs", "--url", "http://ann:hunter2@here"], "no user and no password"),
    ],
)
def test_what_cannot_be_sent_is_wrong_usage(epochd: Commands, arguments: list[str], why: str) -> None:
    done = epochd(*arguments)
    assert (done.code, done.out, epochd.way.sent) == (Exit.USAGE, "", [])
    assert why in done.err
    assert "hunter2" not in done.err


def test_followed_in_a_pipe_each_epoch_is_a_line(epochd: Commands, db: Database) -> None:
    row = ended(db, 2)
    done = epochd("watch", row.id)
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split("  ")[:2] for line in lines[:2]] == [
        ["epoch 1", "train_loss 2.0000"],
        ["epoch 2", "train_loss 1.0000"],
    ]
    assert lines[-1].startswith("succeeded after")
    assert not ESCAPE.search(done.out)


def test_followed_with_json_each_epoch_is_a_document_and_the_job_is_the_last(epochd: Commands, db: Database) -> None:
    done = epochd("watch", ended(db, 2).id, "--json")
    *rows, last = map(json.loads, done.out.splitlines())
    assert [row["epoch"] for row in rows] == [1, 2]
    assert last["status"] == "succeeded"


def test_a_service_that_went_away_is_told_of_once(epochd: Commands, db: Database) -> None:
    row = ended(db, 3)
    epochd.meets(None, cut(900), lost, lost, answered(502))
    done = epochd("watch", row.id)
    assert (done.code, done.err.splitlines()) == (
        0,
        [f"epochd: {following.LOST}", f"epochd: {following.BACK}"],
    )
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("epoch")] == ["1", "2", "3"]


@pytest.mark.parametrize(("terminal", "before"), [(False, 2), (True, 1), (True, 3)])
def test_a_service_that_is_away_as_following_begins_or_ends_is_waited_for(
    epochd: Commands, db: Database, terminal: bool, before: int
) -> None:
    row = ended(db, 1)
    epochd.meets(*[None] * before, *[lost] * 3)
    done = epochd("watch", row.id, terminal=terminal)
    assert (done.code, done.err.splitlines()) == (0, [f"epochd: {following.LOST}", f"epochd: {following.BACK}"])
    assert "succeeded" in done.out


def test_followed_on_a_terminal_epochs_are_a_table(epochd: Commands, db: Database) -> None:
    row = ended(db, 2)
    epochd.meets(None, None, cut(900), lost)
    done = epochd("watch", row.id, terminal=True)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"epoch +train_loss +test_loss +test_accuracy", done.out)
    assert following.LOST in done.out
    assert "\x1b[" in done.out


def test_how_a_followed_job_ends_is_the_exit_code(epochd: Commands, db: Database) -> None:
    row = running(db)
    failure = Failure(code="diverged", message="The loss \x1b[2J is NaN.", hint="Try less.", suggestion={"seed": 1})
    queue.finish(db, row.id, 1, Outcome.FAILED, failure, max_attempts=3)
    done = epochd("watch", row.id)
    assert done.code == Exit.REFUSED
    assert re.fullmatch(r"failed after \d+\.\d s\n", done.out)
    assert r"The job has failed. The loss \x1b[2J is NaN. Try less." in done.err
    assert f"epochd retry {row.id[-8:]} --apply-suggestion" in done.err
    other = submitting.enqueue(db, Spec())
    control.cancel(db, other.id)
    done = epochd("watch", other.id)
    assert (done.code, "cancelled" in done.err) == (Exit.CANCELLED, True)


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(
    epochd: Commands, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ended(db, 1)

    def interrupted(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    epochd.meets(None, interrupted)  # as its bar begins
    done = epochd("watch", row.id, terminal=True)
    assert (done.code, "The job goes on without you." in done.err) == (Exit.INTERRUPTED, True)
    monkeypatch.setattr(following._Plain, "row", interrupted)
    done = epochd("watch", row.id)
    assert done.code == Exit.INTERRUPTED
    assert f"The job goes on without you. To come back: epochd watch {row.id[-8:]}" in done.err
    monkeypatch.setattr(time, "sleep", interrupted)
    done = epochd("logs", "-f", submitting.enqueue(db, Spec()).id)
    assert (done.code, "To come back: epochd logs -f" in done.err) == (Exit.INTERRUPTED, True)


def test_a_job_may_be_named_by_the_end_of_its_id(
    epochd: Commands, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert epochd("job", "last").code == Exit.NOT_FOUND
    ids = [submitting.enqueue(db, Spec()).id for _ in range(4)]
    assert json.loads(epochd("job", "last", "--json").out)["id"] == ids[-1]
    assert json.loads(epochd("job", ids[3][-8:].upper(), "--json").out)["id"] == ids[3]
    assert json.loads(epochd("job", ids[3][-4:], "--json").out)["id"] == ids[3]
    for what in (["delete"], ["sweeps", "delete"]):
        done = epochd(*what, ids[3][-3:])
        assert (done.code, "give at least 4 characters" in done.err) == (Exit.USAGE, True)
    monkeypatch.setattr("worker.jobs.ids.secrets", SimpleNamespace(token_hex=lambda _: "0badcafe"))
    alike = [submitting.enqueue(db, Spec()).id for _ in range(2)]
    done = epochd("job", "cafe")
    assert (done.code, f"2 jobs' ids end in cafe: {alike[1]}, {alike[0]}" in done.err) == (Exit.USAGE, True)
    assert epochd("job", "0" * 23).code == Exit.NOT_FOUND
    assert epochd("job", "0" * 24).code == Exit.NOT_FOUND
    assert epochd("job", "../../etc").code == Exit.USAGE


def test_jobs_are_listed_by_status_and_label(epochd: Commands, db: Database) -> None:
    made = [submitting.enqueue(db, Spec(name=f"n{number}", labels={"n": str(number % 2)})).id for number in range(22)]
    assert [line.split("\t")[0] for line in epochd("jobs").out.splitlines()] == made[:1:-1]
    assert len(epochd("jobs", "--all").out.splitlines()) == 22
    assert [each["id"] for each in json.loads(epochd("jobs", "--limit", "2", "--json").out)] == made[:-3:-1]
    assert len(epochd("jobs", "--label", "n=1", "--status", "queued").out.splitlines()) == 11
    assert epochd("jobs", "--status", "failed").out == ""
    table = epochd("jobs", terminal=True).out
    assert made[-1][-8:] in table
    assert made[-1] not in table
    assert epochd("jobs", "--status", "unheard-of").code == Exit.USAGE


def test_the_controls_say_what_the_job_is_now(epochd: Commands, db: Database) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    for command, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        assert epochd(command, job_id) == (0, f"{job_id} {status}\n", "")
    assert json.loads(epochd("cancel", "--now", job_id, "--json").out)["status"] == "cancelled"
    assert epochd("delete", job_id).out == f"{job_id} is deleted\n"
    assert epochd("pause", job_id).code == Exit.NOT_FOUND
    done = epochd("extend", ended(db, 1).id, "2")
    assert "queued" in done.out
    refused = epochd("extend", "last", "2")
    assert (refused.code, "only one that has succeeded" in refused.err) == (Exit.REFUSED, True)


def test_a_clone_has_the_spec_but_for_what_is_set(epochd: Commands, db: Database) -> None:
    row = submitting.enqueue(db, Spec.model_validate({"name": "one", "epochs": 9, "optimizer": {"lr": 0.5}}))
    done = epochd("clone", row.id, "--set", "model.name=cnn", "--set", "model.dropout=0.25", "--name", "two", "--json")
    body = json.loads(done.out)
    assert (body["name"], body["spec"]["epochs"], body["spec"]["optimizer"]["lr"]) == ("two", 9, 0.5)
    assert (body["spec"]["model"]["name"], body["spec"]["model"]["dropout"]) == ("cnn", 0.25)
    assert epochd("clone", row.id).out.strip() != row.id


def test_metrics_are_a_table_csv_json_or_curves(epochd: Commands, db: Database) -> None:
    row = ended(db, 3)
    assert [line.split("\t")[:2] for line in epochd("metrics", row.id).out.splitlines()] == [
        ["1", "2.0000"],
        ["2", "1.0000"],
        ["3", "0.6667"],
    ]
    table = list(csv.DictReader(io.StringIO(epochd("metrics", row.id, "--csv").out)))
    documents = json.loads(epochd("metrics", row.id, "--json").out)
    assert [float(each["train_loss"]) for each in table] == [each["train_loss"] for each in documents]
    assert (table[0]["test_mae"], table[0]["epoch"]) == ("", "1")
    few = epochd("metrics", row.id, "test_f1", "--csv").out
    assert few.splitlines()[0] == "epoch,test_f1"
    done = epochd("metrics", row.id, "speed")
    assert (done.code, "there are train_loss" in done.err) == (Exit.USAGE, True)
    assert "No epoch has ended yet" in epochd("metrics", submitting.enqueue(db, Spec()).id).err


def test_curves_keep_to_the_width_and_have_axes_and_names(epochd: Commands, db: Database) -> None:
    row = ended(db, 5)
    for width in (40, 100):
        drawn = epochd("metrics", row.id, "--plot", width=width).out
        assert max(map(len, drawn.splitlines())) <= width
        assert re.search(r"train_loss.*test_loss", drawn)
        assert "test_accuracy" in drawn
        assert re.search(r"^ *[0-9.]+┤.*[⠁-⣿]", drawn, re.MULTILINE)
        assert re.search(r"^ +1 +epoch +5$", drawn, re.MULTILINE)
    shown = epochd("metrics", row.id, "--plot", "learning_rate", terminal=True).out
    assert "learning_rate" in shown
    assert "loss" not in shown
    done = epochd("metrics", row.id, "--plot", "test_mae")
    assert (done.code, "no number to draw" in done.err) == (Exit.NOT_FOUND, True)


def test_logs_are_shown_and_followed_over_attempts(epochd: Commands, db: Database, data_dir: Path) -> None:
    row = running(db)
    written(data_dir, row.id, 1, b"one\n\x1b[31mtwo\n")
    assert epochd("logs", row.id).out == "one\n\\x1b[31mtwo\n"
    assert json.loads(epochd("logs", row.id, "--json").out) == ["one", "\x1b[31mtwo"]
    finish(db, row, Outcome.CRASHED)
    again = queue.claim(db, "worker-1", 60)
    assert again is not None
    written(data_dir, row.id, 2, b"three\n")
    finish(db, again, Outcome.SUCCEEDED)
    assert epochd("logs", row.id, "--attempt", "1").out == "one\n\\x1b[31mtwo\n"
    epochd.meets(None, lost, lost, lost)
    done = epochd("logs", "-f", row.id)
    assert (done.code, done.out) == (0, "three\n")
    assert done.err.splitlines() == [f"epochd: {following.LOST}", f"epochd: {following.BACK}"]
    followed = epochd("logs", "-f", row.id, "--attempt", "1", "--json").out.splitlines()
    assert json.loads(followed[1]) == {"attempt": 1, "line": "\x1b[31mtwo"}


@pytest.mark.parametrize("has_begun", [True, False])
def test_no_attempt_is_left_out_however_short_it_was(
    epochd: Commands, db: Database, data_dir: Path, has_begun: bool
) -> None:
    """Two begin and end between two looks."""
    row = submitting.enqueue(db, Spec())

    def begin(number: int) -> Row:
        found = queue.claim(db, "worker-1", 60)
        assert found is not None
        written(data_dir, row.id, number, b"of %d\n" % number)
        return found

    first = begin(1) if has_begun else None

    def meanwhile(_: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        response.read()
        finish(db, first or begin(1), Outcome.CRASHED)
        finish(db, begin(2), Outcome.CRASHED)
        finish(db, begin(3), Outcome.SUCCEEDED)
        return response

    epochd.meets(None, meanwhile)
    assert epochd("logs", "-f", row.id) == (0, "of 1\nof 2\nof 3\n", "")


def test_checkpoints_are_listed_and_downloaded(
    epochd: Commands, job: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line.split("\t") for line in epochd("checkpoints", job.id).out.splitlines()]
    assert [(line[0], line[3]) for line in lines] == [("1", ""), ("2", "best"), ("3", "last")]
    target = tmp_path / "some.safetensors"
    assert epochd("download", job.id, "3", "-o", str(target)).out == f"{target}\n"
    assert target.read_bytes() == weights(3)
    monkeypatch.chdir(tmp_path)
    done = epochd("download", job.id, "--json")
    assert json.loads(done.out) == {"file": f"{job.id}-best.safetensors", "bytes": len(weights(2))}
    assert epochd("download", job.id, "7").code == Exit.NOT_FOUND
    assert epochd("download", job.id, "-o", "nowhere/x").code == Exit.USAGE


def test_pictures_are_predicted(
    epochd: Commands, db: Database, predictor: FakePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_MOST_PICTURES", 2)
    row = ended(db, 2)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        path.write_bytes(png(Image.new("L", (2, 2))))
    done = epochd("predict", *map(str, paths), "--job", "last", "--top-k", "2", "--checkpoint", "1")
    assert done.code == 0
    assert done.out.splitlines()[0] == f"{paths[0]}\t1\tclass 9 50.0%\tclass 8 50.0%"
    assert epochd.way.sent.count("POST /predict") == 3
    assert len(done.out.splitlines()) == len(predictor.pictures) == 5
    assert f"{paths[0]}: warning: {paths[0].stat().st_size} bytes" in done.err
    documents = json.loads(epochd("predict", *map(str, paths), "--json").out)
    assert [each["file"] for each in documents] == list(map(str, paths))
    assert {(each["job"], each["epoch"], each["label"]) for each in documents} == {(row.id, 2, "class 9")}
    assert len(json.loads(epochd("predict", str(paths[0]), "--json").out)) == 1
    every = epochd("predict", str(paths[0]), "--job", row.id, "--checkpoint", "all", "--auto-fix").out
    assert [line.split("\t")[1] for line in every.splitlines()] == ["1", "2"]
    assert predictor.pictures[-1]["auto_fix"] is True
    done = epochd("predict", str(tmp_path / "none.png"))
    assert (done.code, "none.png: No such file" in done.err) == (Exit.USAGE, True)
    predictor.error = BadImage()
    assert epochd("predict", str(paths[0])).code == Exit.REFUSED


def test_datasets_are_added_shown_and_deleted(epochd: Commands, db: Database, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(png(Image.new("L", (2, 2))))
    done = epochd("datasets", "add", "pets-of-commands", str(tmp_path), "--image-size", "8", "--no-wait")
    assert "status\tuploaded" in done.out
    assert json.loads(epochd("datasets", "show", "pets-of-commands", "--json").out)["form"]["image_size"] == [8, 8]
    listed = {line.split("\t")[0]: line.split("\t")[2] for line in epochd("datasets", "list").out.splitlines()}
    assert (listed["pets-of-commands"], listed["fashion-mnist"], listed["cifar10"]) == (
        "uploaded",
        "ready",
        "available",
    )
    assert "status\tready" in epochd("datasets", "add", "fashion-mnist").out
    assert epochd("datasets", "add", "no-such-built-in").code == Exit.NOT_FOUND
    assert epochd("datasets", "delete", "pets-of-commands").out == "pets-of-commands is deleted\n"
    assert epochd("datasets", "show", "pets-of-commands").code == Exit.NOT_FOUND
    assert epochd("datasets", "add", "x", str(tmp_path / "none.zip")).code == Exit.USAGE


def test_aliases_are_set_rolled_back_and_deleted(epochd: Commands, job: Row) -> None:
    assert epochd("models", "set", "now", job.id, "--checkpoint", "1").out == f"now points at {job.id} epoch 1\n"
    epochd("models", "set", "now", "last")
    assert epochd("models", "list").out.split("\t")[:4] == ["now", job.id, "2", "2"]
    assert epochd("models", "rollback", "now").out == f"now points at {job.id} epoch 1\n"
    assert epochd("models", "delete", "now", "--json").out == '{"deleted": "now"}\n'
    assert epochd("models", "list").out == ""


SWEEP = b"""
name: rates
spec: {epochs: 2}
parameters: {optimizer.lr: {values: [0.1, 1e-2]}}
"""


def test_a_sweep_is_launched_looked_at_and_cancelled(epochd: Commands, db: Database) -> None:
    assert epochd("sweep", "-", "--dry-run", stdin=SWEEP).out == "1\toptimizer.lr=0.1\n2\toptimizer.lr=0.01\n"
    sweep_id = epochd("sweep", "-", stdin=SWEEP).out.strip()
    assert epochd("sweeps", "list").out.split("\t")[:3] == [sweep_id, "rates", "running"]
    assert epochd("sweeps", "show", "last").out.startswith(f"{sweep_id} rates running\n1  \t")
    assert epochd("sweeps", "cancel", sweep_id[-6:]).out == f"{sweep_id} cancelled\n"
    assert epochd("sweeps", "show", "0" * 24).code == Exit.NOT_FOUND
    assert epochd("sweep", "-", stdin=b"name: x").code == Exit.REFUSED


def test_a_sweep_is_followed_until_its_last_trial(epochd: Commands, db: Database) -> None:
    epochd.meets(None, lost, lost, lost)

    def train() -> None:
        for accuracy in (0.5, 0.75):
            while (row := queue.claim(db, "worker-1", 60)) is None:
                time.sleep(0.01)
            record(db, row, 1, test_accuracy=accuracy)
            record(db, row, 2, test_accuracy=accuracy)
            finish(db, row, Outcome.SUCCEEDED)
        sweeps.settle(db)

    worker = threading.Thread(target=train)
    worker.start()
    done = epochd("sweep", "-", "--follow", stdin=SWEEP)
    worker.join()
    assert done.code == 0, done
    assert "Best: trial 2, test_accuracy 0.7500, optimizer.lr=0.01" in done.out


@pytest.mark.parametrize(
    ("ends", "code", "why"),
    [
        (["succeeded", "failed"], 0, ""),
        (["failed", "cancelled"], Exit.REFUSED, "No trial has succeeded."),
        (["failed", "failed"], Exit.REFUSED, "No trial has succeeded."),
        (["cancelled", "cancelled"], Exit.CANCELLED, "All trials were cancelled."),
    ],
)
def test_how_its_trials_end_is_the_exit_code_of_a_sweep(
    epochd: Commands, db: Database, ends: list[str], code: int, why: str
) -> None:
    sweep_id = epochd("sweep", "-", stdin=SWEEP).out.strip()
    for trial, end in zip(json.loads(epochd("sweeps", "show", sweep_id, "--json").out)["trials"], ends, strict=True):
        if end == "cancelled":
            control.cancel(db, trial["job"])
            continue
        row = queue.claim(db, "worker-1", 60)
        assert row is not None
        if end == "failed":
            queue.finish(db, row.id, 1, Outcome.FAILED, Failure(code="x", message="No."), max_attempts=3)
        else:
            finish(db, row, Outcome.SUCCEEDED)
    sweeps.settle(db)
    done = epochd("sweeps", "watch", sweep_id)
    assert (done.code, done.err) == (code, f"epochd: {why}\n" if why else "")
    assert f"{sweep_id} rates finished" in done.out


def test_a_sweep_can_be_left_and_come_back_to_killed_and_deleted(
    epochd: Commands, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupted)
        done = epochd("sweep", "-", "--follow", stdin=SWEEP)
    sweep_id = done.out.strip()
    assert (done.code, f"epochd sweeps watch {sweep_id[-8:]}\n" in done.err) == (Exit.INTERRUPTED, True)
    other = submitting.enqueue(db, Spec()).id
    of_sweep = epochd("jobs", "--sweep", sweep_id[-8:]).out.splitlines()
    assert (len(of_sweep), any(other in line for line in of_sweep)) == (2, False)
    row = queue.claim(db, "worker-1", 60)
    assert row is not None
    assert epochd("sweeps", "cancel", "--now", "last").out == f"{sweep_id} cancelled\n"
    assert queue.get(db, row.id).stop_now
    finish(db, row, Outcome.RELEASED)
    sweeps.settle(db)
    assert epochd("sweeps", "watch", "last").code == Exit.CANCELLED
    assert epochd("sweeps", "delete", "last").out == f"{sweep_id} is deleted\n"
    assert epochd("sweeps", "list").out == ""


def test_a_field_of_a_sweep_is_set_and_a_parameters_name_is_one_key(epochd: Commands) -> None:
    def planned(*settings: str) -> str:
        return epochd("sweep", "-", "--dry-run", *settings, stdin=SWEEP).out

    assert planned("--set", "parameters.optimizer.lr.values=[0.2]") == "1\toptimizer.lr=0.2\n"
    assert planned("--set", "parameters.seed={values: [7]}").splitlines()[0] == "1\toptimizer.lr=0.1  seed=7"
    drawn = (
        "search={name: random, trials: 1}",
        "parameters.model.dropout.min=0.25",
        "parameters.model.dropout.max=0.5",
    )
    assert re.search(r"model\.dropout=0\.[2-5]", planned(*(word for each in drawn for word in ("--set", each))))
    epochd("sweep", "-", "--set", "spec.epochs=3", stdin=SWEEP)
    assert json.loads(epochd("job", "last", "--json").out)["spec"]["epochs"] == 3
    assert "spec.epochs=3" in epochd("sweep", "--help").out


def test_jobs_are_compared(epochd: Commands, db: Database) -> None:
    ids = []
    for wrong in (5, 3):
        row = running(db, epochs=wrong)
        records.record_epoch(db, row.id, 1, result(1), saved(1), progress(1), report(1, wrong))
        ids.append(row.id)
    done = epochd("compare", *ids)
    assert "spec /epochs\t5\t3\n" in done.out
    assert re.search(r"class cat\t0\.\d+\t0\.\d+ \(\+0\.\d+\)", done.out)
    assert json.loads(epochd("compare", *ids, "--json").out)["spec"][0]["pointer"] == "/epochs"
    assert epochd("compare", ids[0]).code == Exit.USAGE


def test_names_of_strangers_never_speak_to_the_terminal(epochd: Commands, db: Database) -> None:
    row = running(db, name=HOSTILE, labels={HOSTILE: HOSTILE})
    record(db, row, 1)
    queue.finish(db, row.id, 1, Outcome.FAILED, Failure(code="x", message="\x1b]0;x\x07\x9b31m\r\n!"), max_attempts=3)
    for command in (["jobs"], ["job", row.id], ["watch", row.id], ["compare", row.id, ended(db, 1).id]):
        for more in ([], ["--json"]):
            done = epochd(*command, *more)
            assert not ESCAPE.search(done.out + done.err), command
        shown = epochd(*command, terminal=True, width=300)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.out)  # ours
        assert not ESCAPE.search(text.replace("\r", "") + shown.err), command
    assert r"<b>[red]\u202e\u2067[/]&%s{}" in epochd("job", row.id).out
    assert r"\x1b]0;x\x07\x9b31m\r\n!" in epochd("job", row.id).out


def test_no_color_is_heeded_and_a_pipe_is_plain_whatever_is_forced(
    epochd: Commands, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(db, 1)
    assert "\x1b[32m" in epochd("jobs", terminal=True).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in epochd("jobs", terminal=True).out
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in epochd("jobs").out


def test_the_key_and_the_address_may_stand_before_or_behind_the_command(epochd: Commands) -> None:
    for arguments in (["--key", "epochd_k", "jobs"], ["jobs", "--key", "epochd_k"]):
        assert epochd(*arguments).code == 0
        assert epochd.way.headers[-1]["Authorization"] == "Bearer epochd_k"
    done = epochd("--url", "gopher://x", "jobs")
    assert (done.code, "no address" in done.err) == (Exit.USAGE, True)


def test_hints_lead_to_the_same_service_and_tell_no_key(epochd: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--url", "http://localhost", "submit"], ["submit", "--url", "http://localhost"]):
        shown = epochd(*arguments, "--key", "epochd_k", terminal=True).out
        assert re.search(r"epochd watch \w{8} --url http://localhost\s", shown)
        assert "epochd_k" not in shown
    assert "--url" not in epochd("submit", terminal=True).out
    cli = Cli(url="http://a b;c", key="epochd_k", as_json=False)
    assert cli.hint("watch", "0" * 24) == "epochd watch 00000000 --url 'http://a b;c'"


def test_nobody_there_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    env = environment() | {"EPOCHD_URL": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-m", "service.cli", "jobs"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (Exit.NO_SERVER, "")
    assert done.stderr.startswith("epochd: No epochd answers at http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1


def test_help_names_every_exit_code_and_loads_little(epochd: Commands) -> None:
    shown = " ".join(epochd("--help").out.split())
    for code in Exit:
        assert re.search(rf"\b{int(code)} ", shown.partition("Exit codes: 0 fine")[2])
    assert "--install-completion" in shown
    script = "import sys; sys.argv[1:] = ['--help']\nimport atexit; from service.cli import main\n"
    script += (
        "atexit.register(lambda: print(sorted({'sqlalchemy', 'httpx2', 'torch', 'fastapi'} & sys.modules.keys())))\n"
    )
    done = subprocess.run([sys.executable, "-c", script + "main()"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "revoke" in epochd("keys", "--help").out
    assert "restore" in epochd("admin", "--help").out


def test_every_command_answers_help_in_its_own_words(epochd: Commands) -> None:
    names = re.findall(r"^│ (\w+) ", epochd("--help").out.partition("Commands")[2], re.MULTILINE)
    assert {"serve", "worker", "sinks", "submit", "watch", "predict", "sweep", "keys", "admin", "version"} <= set(names)
    for name in names:
        done = epochd(name, "--help")
        assert done.code == 0
        assert f"Usage: epochd {name}" in done.out


def test_the_version_is_said(epochd: Commands) -> None:
    assert epochd("version").out.startswith("epochd ")
    assert json.loads(epochd("version", "--json").out).keys() == {"version"}
