"""epochd on PostgreSQL: the main job, and a database server that goes and comes back while a job trains.

`RESTARTS`, 2 unless told otherwise; each time it is away for half a second to three.
"""

import logging
import os
import random
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx2
import pytest

from tests import postgres
from tests.chaos.answers import Answers, asking
from tests.chaos.ending import assert_ends_with, predict, undisturbed
from tests.end_to_end.serving import JOB_SECONDS, Epochd, epochd
from tests.tiny import prepare_tiny

RESTARTS = int(os.environ.get("RESTARTS", "2"))
# A lease that runs out while the database is away: to renew it late is no reason to lose a job.
SETTINGS = {"EPOCHD_SLOTS": "1", "EPOCHD_LEASE_SECONDS": "2", "EPOCHD_HEARTBEAT_SECONDS": "0.5"}
SPEC: Final = {"threads": 1, "batch_size": 2}
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def database() -> Iterator[postgres.Server]:
    binaries = postgres.binaries()
    if binaries is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(binaries, keeps_commits=True) as running:
        yield running


@pytest.fixture(scope="module")
def server(database: postgres.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochd]:
    data_dir = tmp_path_factory.mktemp("data")
    prepare_tiny(data_dir, train=192)
    with epochd(data_dir, SETTINGS | {"EPOCHD_DATABASE_URL": database.new_database()}) as running:
        yield running


def test_the_main_job_runs_on_postgresql(server: Epochd) -> None:
    job_id = server.submit(**SPEC, epochs=3)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    assert [row["epoch"] for row in server.metrics(job_id)] == [1, 2, 3]
    for checkpoint in ("best", "last", "2"):
        answer = predict(server, job_id, checkpoint)
        assert (answer.status_code, answer.json()["job"]) == (200, job_id)
    endless = server.submit(**SPEC, epochs=10_000)
    server.wait(endless, lambda job: job["progress"]["epoch"] > 1)
    assert server.http.post(f"/jobs/{endless}/cancel").status_code == 202
    assert server.wait_terminal(endless)["status"] == "cancelled"
    assert not (server.data_dir / "epochd.db").exists()


class Seen:
    """What clients were told of a job, and which jobs of theirs were accepted."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self.rows: dict[int, dict[str, Any]] = {}
        self.accepted: list[str] = []
        self.wrong: list[Any] = []

    def read(self, http: httpx2.Client, answers: Answers) -> None:
        answer = answers.note(http.get(f"/jobs/{self._job_id}/metrics"))
        if answer.status_code == 200:
            rows = {row["seq"]: row for row in answer.json()["data"]}
            if rows.keys() < self.rows.keys():  # an epoch that was there is gone
                self.wrong.append(answer.json())
            self.rows |= rows
        answer = answers.note(http.get(f"/jobs/{self._job_id}"))
        if answer.status_code == 200 and (answer.json()["id"], answer.json()["attempt"]) != (self._job_id, 1):
            self.wrong.append(answer.json())

    def submit(self, http: httpx2.Client, answers: Answers) -> None:
        answer = answers.note(http.post("/jobs", json=SPEC))
        if answer.status_code == 201:
            self.accepted.append(answer.json()["id"])
            answers.note(http.post(f"/jobs/{self.accepted[-1]}/cancel"))
        time.sleep(0.02)


def trains_on(server: Epochd, job_id: str, epoch: int) -> None:
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        answer = server.http.get(f"/jobs/{job_id}")
        if answer.status_code == 200 and answer.json()["progress"]["epoch"] >= epoch:
            return
        time.sleep(0.02)
    raise AssertionError(f"the job never got there: {server.job(job_id)}")


def test_a_database_server_that_restarts_costs_no_epoch_and_no_attempt(
    server: Epochd, database: postgres.Server
) -> None:
    rng, spec = random.Random(6), SPEC | {"epochs": 4 * RESTARTS + 5}
    whole = undisturbed(server, **spec)
    job_id = server.submit(**spec)
    trains_on(server, job_id, 1)
    seen, started = Seen(job_id), time.monotonic()
    with asking(server, [seen.read, seen.submit]) as answers:
        for number in range(RESTARTS):
            trains_on(server, job_id, 4 * number + 2)
            time.sleep(rng.uniform(0, 0.2))
            database.restart(rng.uniform(0.5, 3))
        trains_on(server, job_id, 4 * RESTARTS + 2)
    seconds = time.monotonic() - started
    assert_ends_with(server, job_id, whole)
    _log.info("%d restarts in %.0f seconds: %s", RESTARTS, seconds, answers.figures(seconds))
    assert answers.wrong == []
    assert answers.statuses[503] > 0
    assert seen.wrong == []
    final = {row["seq"]: row for row in server.metrics(job_id)}
    assert seen.rows.items() <= final.items()
    assert [attempt["outcome"] for attempt in server.job(job_id)["attempts"]] == ["succeeded"]
    assert all(server.job(accepted)["id"] == accepted for accepted in seen.accepted)
    assert server.http.get("/readyz").status_code == 200
    assert predict(server, job_id).status_code == 200
    assert undisturbed(server, **spec) == whole  # it is as good as new
