"""Metrics, one row an epoch, polled from a cursor."""

import math
from typing import Any

from fastapi.testclient import TestClient

from tests.worker.jobs.making import claim, finish, record, result, running
from worker.jobs.db import Database
from worker.jobs.states import Outcome


def poll(client: TestClient, job_id: str, query: str = "") -> dict[str, Any]:
    answer = client.get(f"/jobs/{job_id}/metrics{query}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_before_the_first_epoch_there_are_none(client: TestClient, db: Database) -> None:
    job = running(db)
    assert poll(client, job.id) == {"data": [], "next_since": 0, "status": "running", "terminal": False}


def test_a_row_has_what_clients_rely_on(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    (row,) = poll(client, job.id)["data"]
    assert row.pop("recorded_at").endswith("Z")
    assert row == vars(result(1)) | {"seq": 1, "attempt": 1, "non_finite": None}


def test_a_poller_gets_only_what_is_new_across_attempts(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    record(db, job, 2)
    first = poll(client, job.id)
    assert ([row["epoch"] for row in first["data"]], first["next_since"]) == ([1, 2], 2)
    nothing = poll(client, job.id, "?since=2")
    assert (nothing["data"], nothing["next_since"]) == ([], 2)
    finish(db, job, Outcome.WORKER_LOST)
    record(db, claim(db), 2)
    second = poll(client, job.id, "?since=2")
    assert [(row["seq"], row["epoch"], row["attempt"]) for row in second["data"]] == [(3, 2, 2)]
    assert second["next_since"] == 3


def test_the_end_is_said_only_with_the_last_row(client: TestClient, db: Database) -> None:
    job = running(db)
    for epoch in (1, 2, 3):
        record(db, job, epoch)
    finish(db, job, Outcome.SUCCEEDED)
    seen: list[int] = []
    since, ends = 0, []
    for _ in range(2):
        page = poll(client, job.id, f"?since={since}&limit=2")
        seen += [row["epoch"] for row in page["data"]]
        ends.append(page["terminal"])
        since = page["next_since"]
    assert (seen, ends) == ([1, 2, 3], [False, True])


def test_a_cursor_behind_the_end_stays_where_it_is(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    page = poll(client, job.id, "?since=2147483647")
    assert (page["data"], page["next_since"]) == ([], 2147483647)


def test_rows_of_classes_and_of_numbers_have_the_same_names(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1, test_top5_accuracy=0.75)
    record(db, job, 2, test_accuracy=None, test_f1=None, test_mae=2.5, test_r2=0.5, peak_memory_bytes=2**40)
    first, second = poll(client, job.id)["data"]
    assert first.keys() == second.keys()
    assert (first["test_top5_accuracy"], first["test_f1"], first["gradient_norm"]) == (0.75, 1 - 1 / 3, 0.5)
    assert (second["test_top5_accuracy"], second["test_f1"], second["test_mae"]) == (None, None, 2.5)
    assert second["peak_memory_bytes"] == 2**40


def test_a_loss_that_is_not_finite_is_null(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1, train_loss=math.nan, test_loss=math.inf)
    (row,) = poll(client, job.id)["data"]
    assert (row["train_loss"], row["test_loss"], row["non_finite"]) == (None, None, "nan")
