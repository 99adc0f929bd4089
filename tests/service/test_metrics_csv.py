"""`GET /jobs/{id}/metrics.csv`: the same rows as polling gives, as a table."""

import csv
import io
from typing import Any

import pytest
from fastapi.testclient import TestClient

import service.routes.metrics
from service.bodies.metrics import csv_lines
from tests.service.test_errors import assert_problem
from tests.service.test_metrics import poll
from tests.worker.jobs.making import claim, finish, record, running
from worker.jobs import records, sinks
from worker.jobs.db import Database
from worker.jobs.records import Resumed
from worker.jobs.states import Outcome
from worker.jobs.tables import Epoch, Job

COLUMNS = (
    "seq,epoch,train_loss,test_loss,test_accuracy,test_top5_accuracy,test_f1,test_mae,test_r2,learning_rate,"
    "samples_per_second,train_seconds,test_seconds,gradient_norm,peak_memory_bytes,attempt,recorded_at,non_finite"
)


def rows(text: str) -> list[dict[str, Any]]:
    """As JSON has them."""
    texts, whole = {"recorded_at", "non_finite"}, {"seq", "epoch", "attempt", "peak_memory_bytes"}

    def value(name: str, cell: str) -> Any:
        if not cell or name in texts:
            return cell or None
        return int(cell) if name in whole else float(cell)

    return [{name: value(name, cell) for name, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]


def read(client: TestClient, job: Job) -> str:
    answer = client.get(f"/jobs/{job.id}/metrics.csv")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_it_holds_what_polling_gives_to_the_last_digit(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1, train_loss=0.1 + 0.2, learning_rate=1e-05, peak_memory_bytes=2**62 + 1)
    record(db, job, 2, train_loss=float("nan"), test_loss=1e300, test_accuracy=None, test_mae=5e-324, test_r2=-0.5)
    record(db, job, 3, train_loss=float("-inf"), gradient_norm=None, peak_memory_bytes=None)
    text = read(client, job)
    assert rows(text) == poll(client, job.id)["data"]
    header, first, *_ = text.splitlines()
    assert header == COLUMNS
    assert "0.30000000000000004" in first


def test_it_is_a_file_with_a_name(client: TestClient, db: Database) -> None:
    job = running(db)
    answer = client.get(f"/jobs/{job.id}/metrics.csv")
    assert answer.text == f"{COLUMNS}\n"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{job.id}-metrics.csv"'
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"


def test_a_job_that_is_not_there_has_none(client: TestClient) -> None:
    for job_id in ("0" * 24, "=1+1", "%0d%0aSet-Cookie: a"):
        assert_problem(client.get(f"/jobs/{job_id}/metrics.csv"), 404, "not_found")


def test_rows_are_read_in_pages_and_an_epoch_that_is_recorded_again_meanwhile_does_not_come_twice(
    client: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "ROWS", 3)
    job = running(db, epochs=9)
    for epoch in range(1, 9):
        record(db, job, epoch)
    counts = []

    def rewound(page: list[Epoch]) -> str:
        counts.append(len(page))
        if len(counts) == 2:
            finish(db, job, Outcome.RELEASED)
            again = claim(db)
            records.record_start(db, job.id, again.attempt, {}, Resumed(epoch=4, batch=0, differences=[]))
            for epoch in (5, 6, 7, 8, 9):
                record(db, again, epoch)
        return csv_lines(page)

    monkeypatch.setattr(service.routes.metrics, "csv_lines", rewound)
    assert [row["epoch"] for row in rows(read(client, job))] == [1, 2, 3, 4, 5, 6]
    assert counts == [3, 3]
    monkeypatch.undo()
    assert rows(read(client, job)) == poll(client, job.id)["data"]


def test_no_cell_is_a_formula(db: Database) -> None:
    """Only our own columns are in it, and the one of words has three of them."""
    job = running(db)
    record(db, job, 1)
    (row,) = records.epochs(db, job.id)
    for word in ("=1+1", "@SUM(A1)", "+1", "-2+3", "a,b", 'a"b', "a\nb"):
        row.non_finite = word
        assert csv_lines([row]).endswith("Z,\n")
    row.non_finite = "-inf"
    assert csv_lines([row]).endswith("Z,-inf\n")
