"""The Python client against the app: what it sends, what it makes of answers, and what it does when they get lost."""

import inspect
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service import feed
from service.client import (
    ApiError,
    AsyncClient,
    AsyncJob,
    Client,
    ClientError,
    ConnectionLost,
    Job,
    NoServer,
    NotFound,
    UnexpectedAnswer,
    WaitTimeout,
    answers,
    of_jobs,
    of_sweeps,
)
from service.client import policy as policies
from service.commands import screen
from service.routes.logs import LogsPage
from tests.service.conftest import Serve
from tests.service.predictor import FakePredictor
from tests.service.test_checkpoints import job as job  # a fixture: three checkpoints on disk
from tests.service.test_checkpoints import weights
from tests.service.test_logs import written
from tests.service.unreliable import Mishap, Way, answered, cut, damaged, lost
from tests.worker.jobs.making import finish, progress, record, report, result, running, saved
from worker.jobs import queue, records, submitting
from worker.jobs.db import Database
from worker.jobs.spec import MLP, Spec
from worker.jobs.states import Outcome, Status
from worker.jobs.tables import Job as Row

URL = "http://localhost"
SWEEP = {"spec": {"epochs": 2}, "parameters": {"optimizer.lr": {"values": [0.1, 0.01]}}}
Reach = Callable[..., Client]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the second try."""
    monkeypatch.setattr(policies, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(feed, "_LOOK_SECONDS", 0.01)
    for name in ("EPOCHD_URL", "EPOCHD_API_KEY", "EPOCHD_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def reach(client: TestClient) -> Reach:
    """A client whose first requests meet these mishaps."""
    return lambda *mishaps, **more: Client(URL, transport=Way(client, *mishaps), **more)


def ended(db: Database, epochs: int) -> Row:
    row = running(db, epochs=epochs)
    for epoch in range(1, epochs + 1):
        record(db, row, epoch)
    finish(db, row, Outcome.SUCCEEDED)
    return row


def sent(client: Client) -> list[str]:
    way = client._http._transport
    assert isinstance(way, Way)
    return way.sent


def test_a_spec_may_be_nothing_fields_a_dict_or_a_spec(reach: Reach) -> None:
    client = reach()
    assert client.submit().refresh().spec["epochs"] == 5
    assert client.submit(epochs=2, optimizer={"lr": 0.5}).refresh().spec["optimizer"]["lr"] == 0.5
    assert client.submit({"epochs": 3}).refresh().spec["epochs"] == 3
    assert client.submit(Spec(model=MLP(hidden=[7]))).refresh().spec["model"]["hidden"] == [7]
    with pytest.raises(ValueError, match="not both"):
        client.submit({"epochs": 3}, seed=1)


def test_a_job_whose_answer_got_lost_is_not_made_twice(reach: Reach, db: Database) -> None:
    client = reach(lost, answered(502), answered(503, **{"Retry-After": "0"}))
    job = client.submit(name="once")
    assert sent(client) == ["POST /jobs"] * 4
    assert [each.id for each in client.jobs()] == [job.id]


def test_a_key_of_ones_own_makes_the_same_job_again(reach: Reach) -> None:
    client = reach()
    first, again = (client.submit(idempotency_key="mine", epochs=2) for _ in range(2))
    assert first.id == again.id
    with pytest.raises(ApiError) as refused:
        client.submit(idempotency_key="mine", epochs=3)
    for wrong in ("größe", "a\nb", " "):
        for of in (of_jobs, of_sweeps):
            with pytest.raises(ValueError, match="choose another one"):
                of.submit({}, idempotency_key=wrong)
    assert (refused.value.status, refused.value.code) == (422, "idempotency_mismatch")


def test_what_must_not_be_done_twice_is_not_sent_twice(reach: Reach, db: Database) -> None:
    row = ended(db, 1)
    client = reach(None, lost)
    with pytest.raises(ConnectionLost, match="broke before the answer"):
        client.job(row.id).extend(2)
    assert sent(client)[1:] == [f"POST /jobs/{row.id}/extend"]
    assert queue.get(db, row.id).spec["epochs"] == 3


def test_a_deletion_whose_answer_got_lost_is_done(reach: Reach, db: Database) -> None:
    client = reach(None, lost)
    client.job(ended(db, 1).id).delete()
    assert list(client.jobs()) == []
    sweep = client.sweep(SWEEP)
    client.cancel_sweep(sweep.id)
    again = reach(lost)
    again.delete_sweep(sweep.id)
    assert sent(again) == [f"DELETE /sweeps/{sweep.id}"] * 2
    assert list(client.sweeps()) == []


def test_what_has_a_name_is_not_deleted_again_when_the_answer_got_lost(reach: Reach, job: Row) -> None:
    """By then the name may be that of another one."""
    client = reach()
    client.set_alias("now", job.id)
    for name, delete in (("/models/now", Client.delete_alias), ("/datasets/now", Client.delete_dataset)):
        for mishap, error in ((lost, ConnectionLost), (answered(503), ApiError)):
            unlucky = reach(mishap)
            with pytest.raises(error):
                delete(unlucky, "now")
            assert sent(unlucky) == [f"DELETE {name}"]
    assert client.models() == []


def not_sent(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    response.close()
    raise httpx2.ConnectError("nobody there", request=request)


@pytest.mark.parametrize("mishap", [answered(503), not_sent])
def test_what_was_never_there_is_not_deleted_by_being_asked_again(reach: Reach, mishap: Mishap) -> None:
    client = reach(mishap)
    with pytest.raises(NotFound):
        client.send(of_jobs.delete("0" * 24))
    assert len(sent(client)) == 2


def test_patience_ends(reach: Reach) -> None:
    client = reach(*[lost] * 3, retries=2)
    with pytest.raises(ConnectionLost):
        client.datasets()
    assert len(sent(client)) == 3


def test_what_is_not_ours_is_said_to_be_so(reach: Reach) -> None:
    with pytest.raises(ApiError, match="HTTP 418, and not as an epochd does") as refused:
        reach(answered(418)).datasets()
    assert refused.value.code == "http_418"
    with pytest.raises(UnexpectedAnswer, match="another version, or no epochd"):
        reach(answered(200)).datasets()


def test_a_refusal_names_every_field(reach: Reach) -> None:
    with pytest.raises(ApiError) as refused:
        reach().submit(optimizer={"lr": -1}, epochs=0)
    error = refused.value
    assert (error.status, error.code) == (422, "validation_error")
    assert [each.pointer for each in error.errors] == ["#/optimizer/lr", "#/epochs"]
    assert str(error).splitlines() == [f"{each.pointer}: {each.detail}" for each in error.errors]
    assert error.request_id


@pytest.mark.parametrize("name", ["0" * 24, "..", ".", "a/b", "x?y=1", "\x1b[31m", "日本"])
def test_what_is_not_there_is_not_found_whatever_its_name(reach: Reach, name: str) -> None:
    client = reach()
    for ask in (client.job, client.dataset, client.delete_alias, client.show_sweep):
        with pytest.raises(NotFound):
            ask(name)


def test_nobody_there_is_one_sentence_with_the_address() -> None:
    with pytest.raises(NoServer, match=r"http://127\.0\.0\.1:9 .*epochd serve.*EPOCHD_URL"):
        Client("http://127.0.0.1:9", retries=1).datasets()


def test_where_the_service_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().url == "http://127.0.0.1:8000"
    monkeypatch.setenv("EPOCHD_PORT", "81")
    assert Client().url == "http://127.0.0.1:81"
    monkeypatch.setenv("EPOCHD_URL", "https://gpu.example.com/epochd/")
    assert Client().url == "https://gpu.example.com/epochd"
    assert Client("http://here").url == "http://here"
    for wrong in ("here:80", "ftp://here", "http://"):
        with pytest.raises(ValueError, match="no address"):
            Client(wrong)


@pytest.mark.parametrize("url", ["http://ann:hunter2@here", "http://ann:hunt/er2@here", "ann:hunter2@here:80"])
def test_a_password_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="no user and no password") as refused:
        Client(url)
    assert "hunt" not in str(refused.value)


def test_a_key_is_sent_and_without_one_it_is_said_where_it_goes(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "epochd_secret-of-this-test"
    way = Way(serve(api_key=key))
    with pytest.raises(ApiError, match="needs an API key: set EPOCHD_API_KEY"):
        Client(URL, transport=way).datasets()
    with pytest.raises(ApiError, match="does not accept this API key"):
        Client(URL, "epochd_another", transport=way).datasets()
    assert Client(URL, key, transport=way).datasets()
    monkeypatch.setenv("EPOCHD_API_KEY", key)
    assert Client(URL, transport=way).datasets()
    with pytest.raises(ValueError, match="copy it again"):
        Client(URL, "epochd_ü")


def test_jobs_are_listed_over_all_pages(reach: Reach, db: Database) -> None:
    made = [submitting.enqueue(db, Spec(labels={"n": str(number % 2)})).id for number in range(103)]
    client = reach()
    assert [each.id for each in client.jobs()] == made[::-1]
    assert sent(client) == ["GET /jobs"] * 2
    assert [each.id for each in client.jobs(labels={"n": "1"}, status="queued")] == made[1::2][::-1]


def rows_of(job: Job) -> list[int]:
    return [row.seq for row in job.follow()]


@pytest.mark.parametrize("cleanly", [True, False])
def test_wherever_a_stream_breaks_no_row_is_lost_or_repeated(
    reach: Reach, client: TestClient, db: Database, cleanly: bool
) -> None:
    row = ended(db, 3)
    whole = len(client.get(f"/jobs/{row.id}/stream").content)
    cuts = [cut(at, cleanly=cleanly) for at in range(0, whole, 131)]
    for mishap in cuts:
        assert rows_of(reach(None, mishap).job(row.id)) == [1, 2, 3]
    again: list[Mishap | None] = [None, *cuts]
    assert rows_of(reach(*again, retries=99).job(row.id)) == [1, 2, 3]


def test_a_lost_connection_is_told_once_and_so_is_its_return(reach: Reach, db: Database) -> None:
    row = ended(db, 2)
    client = reach(None, cut(700), lost, answered(503), lost)
    kinds = [type(event).__name__ for event in client.job(row.id).events()]
    assert [kind for kind in kinds if kind in ("Lost", "Back")] == ["Lost", "Back"]
    assert kinds.count("MetricsRow") == 2
    kinds = [type(event).__name__ for event in reach(None, cut(700)).job(row.id).events()]
    assert [kind for kind in kinds if kind != "StatusChange"] == ["MetricsRow", "Lost", "Back", "MetricsRow"]


def test_who_follows_what_is_gone_hears_of_it(reach: Reach, db: Database) -> None:
    row = ended(db, 1)
    client = reach()
    job = client.job(row.id)
    job.delete()
    with pytest.raises(NotFound):
        list(job.follow())
    with pytest.raises(ConnectionLost):
        list(reach(*[lost] * 9, retries=2).events(row.id))


def test_waiting_ends_with_the_job_or_with_the_time(reach: Reach, db: Database) -> None:
    row = running(db)
    job = reach(None, lost).job(row.id)
    with pytest.raises(WaitTimeout, match="it goes on"):
        job.wait(timeout=0.05)

    def end() -> None:
        record(db, row, 1)
        finish(db, row, Outcome.SUCCEEDED)

    later = threading.Timer(0.3, end)
    later.start()
    assert job.wait().status == Status.SUCCEEDED
    later.join()
    assert [each.epoch for each in job.metrics()] == [1]


def test_controls_change_the_job_and_give_it_back(reach: Reach) -> None:
    job = reach(None, lost).submit()
    assert job.pause().status == "paused"
    assert job.resume().status == "queued"
    assert job.cancel("now").status == "cancelled"
    assert job.retry().status == "queued"
    with pytest.raises(ApiError, match="only one that has succeeded") as refused:
        job.extend(3)
    assert refused.value.status == 409


def test_a_clone_is_the_same_but_for_what_changes(reach: Reach) -> None:
    job = reach().submit(name="a", epochs=9, model={"hidden": [7]}, optimizer={"lr": 0.5, "momentum": 0.9})
    other = job.clone(optimizer={"lr": 0.25}, name=None).refresh()
    assert other.id != job.id
    assert (other.name, other.spec["epochs"], other.spec["model"]["hidden"]) == (None, 9, [7])
    assert (other.spec["optimizer"]["lr"], other.spec["optimizer"]["momentum"]) == (0.25, 0.9)
    renamed = job.clone(model={"name": "cnn"}, optimizer={"name": "adam"}).refresh().spec
    assert (renamed["model"]["name"], renamed["optimizer"]["name"], renamed["optimizer"]["lr"]) == (
        "cnn",
        "adam",
        0.001,
    )


def test_a_log_is_read_to_its_end(reach: Reach, db: Database, data_dir: Path) -> None:
    row = running(db)
    written(data_dir, row.id, 1, b"".join(b"line %d\n" % number for number in range(2500)))
    assert reach().job(row.id).logs() == [f"line {number}" for number in range(2500)]
    assert answers.LogsPage.model_fields.keys() == LogsPage.model_fields.keys()


def test_a_download_appears_whole(reach: Reach, job: Row, tmp_path: Path) -> None:
    client = reach(None, cut(100), None)
    where = client.job(job.id).download(2, tmp_path)
    assert (where, where.read_bytes()) == (tmp_path / f"{job.id}-2.safetensors", weights(2))
    assert client.job(job.id).download(path=tmp_path / "named").read_bytes() == weights(2)
    with pytest.raises(ClientError, match="arrived damaged"):
        reach(None, damaged).job(job.id).download("last", tmp_path / "other")
    with pytest.raises(NotFound):
        client.job(job.id).download(9, tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {where.name, "named"}


PICTURE = Image.frombytes("L", (3, 2), bytes([0, 50, 100, 150, 200, 250]))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_pictures_may_be_paths_bytes_images_and_arrays(
    reach: Reach, predictor: FakePredictor, db: Database, tmp_path: Path
) -> None:
    row = ended(db, 2)
    path = tmp_path / "picture.png"
    path.write_bytes(png(PICTURE))
    grey = numpy.asarray(PICTURE)
    colour = numpy.stack([grey, grey, grey], 2)
    found = reach(lost).predict(
        *(path, str(path), path.read_bytes(), PICTURE, PICTURE.convert("CMYK")),
        *(grey, grey[:, :, None], colour, colour[::-1]),
        job=row.id,
        checkpoint=1,
        top_k=2,
    )
    assert (found.job, found.checkpoint.epoch, len(found.predictions)) == (row.id, 1, 9)
    received = [Image.open(io.BytesIO(each["image"])) for each in predictor.pictures[-9:]]  # type: ignore[arg-type]
    assert [image.mode for image in received] == ["L", "L", "L", "L", "RGB", "L", "L", "RGB", "RGB"]
    assert all(image.convert("L").tobytes() == PICTURE.tobytes() for image in received[:4] + received[5:8])
    assert received[8].convert("L").tobytes() == PICTURE.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    assert [each.checkpoint.epoch for each in reach().predict_epochs(path, job=row.id).epochs] == [1, 2]


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (numpy.zeros((2, 2)), "this one is float64 of shape"),
        (numpy.zeros(4, "uint8"), "this one is uint8 of shape"),
        (numpy.zeros((2, 2, 2), "uint8"), "this one is uint8 of shape"),
        (numpy.zeros((0, 2), "uint8"), "this one is uint8 of shape"),
        (numpy.zeros((1, 2, 2, 3), "uint8"), "this one is uint8 of shape"),
        (Image.new("F", (2, 2)), "convert it to L or RGB first"),
        (3, "and not a int"),
    ],
)
def test_what_is_no_picture_is_refused_before_it_is_sent(reach: Reach, picture: Any, why: str) -> None:
    client = reach()
    with pytest.raises((ValueError, TypeError), match=why):
        client.predict(picture)
    with pytest.raises(ValueError, match="at least one"):
        client.predict()
    with pytest.raises(FileNotFoundError):
        client.predict("nowhere.png")
    assert sent(client) == []


def test_a_folder_is_sent_as_a_zip(reach: Reach, data_dir: Path, tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/a.b/2.png", ".hidden/3.png", "dog/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(PICTURE))
    told: list[tuple[int, int]] = []
    client = reach()
    dataset = client.add_dataset(tmp_path, name="pets", image_size=8, progress=lambda *step: told.append(step))
    assert (dataset.name, dataset.version, dataset.form and dataset.form["image_size"]) == ("pets", 1, [8, 8])
    (archive,) = data_dir.glob("uploads/*")
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == ["cat/1.png", "dog/a.b/2.png"]
        assert packed.read("cat/1.png") == png(PICTURE)
    assert told[-1] == (archive.stat().st_size,) * 2
    again = client.add_dataset(archive, name="pets")  # an archive as it is
    assert again.version == 2
    with pytest.raises(WaitTimeout, match="its preparation goes on"):
        client.wait_dataset("pets", timeout=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClientError, match="no file in"):
        client.add_dataset(tmp_path / "empty", name="none")
    client.delete_dataset("pets")


def test_aliases_are_set_and_rolled_back(reach: Reach, job: Row) -> None:
    client = reach(lost)
    assert client.set_alias("now", job.id, 1).checkpoint.epoch == 1
    assert client.set_alias("now", job.id).checkpoint.epoch == 2
    assert client.rollback_alias("now").checkpoint.epoch == 1
    assert [each.name for each in client.models()] == ["now"]
    client.delete_alias("now")
    assert client.models() == []


def test_a_plan_stores_nothing(reach: Reach, db: Database) -> None:
    row = ended(db, 1)
    client = reach()
    assert client.plan(epochs=3).steps == 24
    assert [each.id for each in client.jobs()] == [row.id]


def test_a_sweep_whose_answer_got_lost_is_not_made_twice(reach: Reach) -> None:
    client = reach(None, lost)
    assert len(client.plan_sweep(SWEEP).trials) == 2
    sweep = client.sweep(SWEEP)
    assert [each.parameters for each in sweep.trials] == [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.01}]
    assert [each.id for each in client.sweeps()] == [sweep.id]
    assert {each.id for each in client.jobs(sweep=sweep.id)} == {each.job for each in sweep.trials}
    assert client.cancel_sweep(sweep.id).status == "cancelled"
    client.delete_sweep(sweep.id)
    with pytest.raises(NotFound):
        client.show_sweep(sweep.id)


def test_two_jobs_are_compared(reach: Reach, db: Database) -> None:
    one, other = ended(db, 1), ended(db, 2)
    found = reach().compare(one.id, other.id)
    assert [each.pointer for each in found.spec] == ["/epochs"]
    assert [each.id for each in found.jobs] == [one.id, other.id]


def test_a_report_is_the_newest_epochs(reach: Reach, db: Database) -> None:
    row = running(db)
    with pytest.raises(ApiError, match="first epoch"):
        reach().job(row.id).report()
    records.record_epoch(db, row.id, 1, result(1), saved(1), progress(1), report(1, wrong=5))
    assert reach().job(row.id).report() == report(1, wrong=5)


def test_what_a_newer_service_adds_is_kept_and_what_an_older_lacks_is_null(reach: Reach, db: Database) -> None:
    known = reach().submit().refresh().model_dump(mode="json")
    newer = answers.body_of(type(reach().submit().refresh()), str_of(known | {"mood": "fine"}))
    assert screen.document(newer) == known | {"mood": "fine"}
    older = {name: value for name, value in known.items() if name != "resume_reason"}
    assert answers.body_of(type(newer), str_of(older)).resume_reason is None
    with pytest.raises(UnexpectedAnswer, match=r"\(id: "):
        answers.body_of(type(newer), str_of({name: value for name, value in known.items() if name != "id"}))


def str_of(document: dict[str, Any]) -> str:
    return httpx2.Request("POST", URL, json=document).read().decode()


def test_both_clients_know_the_same() -> None:
    for one, other in ((Client, AsyncClient), (Job, AsyncJob)):
        names = {name for name in vars(one) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in names:
            method, mirror = getattr(one, name), getattr(other, name)
            assert method.__doc__ == mirror.__doc__
            if callable(method):
                assert inspect.signature(method).parameters.keys() == inspect.signature(mirror).parameters.keys()


def test_the_client_loads_nothing_that_only_servers_need() -> None:
    heavy = ("torch", "numpy", "fastapi", "sqlalchemy", "PIL", "starlette")
    code = f"import sys, service.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
