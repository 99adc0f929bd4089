"""The report: how the newest epoch did, class by class."""

from fastapi.testclient import TestClient

from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import progress, record, report, result, running, saved
from worker.jobs import records, submitting
from worker.jobs.db import Database
from worker.jobs.report import Report
from worker.jobs.spec import Spec


def test_the_report_is_the_newest_epochs(client: TestClient, db: Database) -> None:
    job = running(db)
    for epoch, wrong in ((1, 5), (2, 3)):
        records.record_epoch(db, job.id, 1, result(epoch), saved(epoch), progress(epoch), report(epoch, wrong))
    answer = client.get(f"/jobs/{job.id}/report")
    assert answer.status_code == 200
    assert Report.model_validate(answer.json()) == report(2, wrong=3)
    body = answer.json()
    assert (body["epoch"], body["accuracy"]) == (2, 17 / 20)
    assert body["confusion_matrix"] == [[7, 3], [0, 10]]
    assert [each["label"] for each in body["classes"]] == ["cat", "dog"]


def test_before_the_first_epoch_it_is_not_ready(client: TestClient, db: Database) -> None:
    queued = submitting.enqueue(db, Spec())
    for _ in range(2):
        answer = client.get(f"/jobs/{queued.id}/report")
        assert_problem(answer, 409, "not_ready")
        assert "first epoch" in answer.json()["detail"]
        record(db, running(db), 1)  # another job's, without a report: as a regression is


def test_a_regression_has_none_and_says_so(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1, test_accuracy=None, test_f1=None, test_mae=1.0, test_r2=0.5)
    answer = client.get(f"/jobs/{job.id}/report")
    assert_problem(answer, 409, "not_ready")
    assert "Regression has none" in answer.json()["detail"]


def test_a_job_that_is_not_there_has_no_report(client: TestClient) -> None:
    for job_id in ("x", "0" * 24):
        assert_problem(client.get(f"/jobs/{job_id}/report"), 404, "not_found")
