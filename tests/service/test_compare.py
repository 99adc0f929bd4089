"""Jobs beside each other."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from tests.service.conftest import Serve
from tests.service.test_auth import bearer
from tests.service.test_errors import assert_problem
from tests.worker.jobs.answering import answers, job_with
from tests.worker.jobs.making import claim, finish, running
from worker.jobs import datasets, keys, submitting
from worker.jobs.db import Database
from worker.jobs.owners import Caller
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Scope
from worker.jobs.submitting import Origin

LABELS = [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]
WORSE = [1, 1, 1, 1, 1, 1, 0, 1, 0, 2]
BETTER = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]


def compare(client: TestClient, *jobs: str) -> dict[str, Any]:
    answer = client.get("/compare", params={"jobs": ",".join(jobs)})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_two_jobs_are_compared_in_all_that_differs(client: TestClient, db: Database) -> None:
    first = job_with(db, answers(LABELS, WORSE, [0.5] * 10), name="mlp", optimizer={"lr": 0.001})
    second = job_with(db, answers(LABELS, BETTER), model={"name": "cnn"}, optimizer={"lr": 0.01})
    a, b = first.id, second.id
    body = compare(client, a, b)
    assert [(each["id"], each["name"], each["epoch"], each["accuracy"]) for each in body["jobs"]] == [
        (a, "mlp", 1, 0.3),
        (b, None, 1, 0.9),
    ]
    assert body["jobs"][0]["metrics"]["test_loss"] == {"best": 2.5, "best_epoch": 1, "last": 2.5}
    differing = {each["pointer"]: each["values"] for each in body["spec"]}
    assert differing["/name"] == {a: "mlp", b: None}
    assert differing["/optimizer/lr"] == {a: 0.001, b: 0.01}
    assert differing["/model/name"] == {a: "mlp", b: "cnn"}
    assert differing["/model/hidden"] == {a: [512, 512], b: 128}
    assert differing["/model/channels"].keys() == {b}
    assert "/epochs" not in differing
    assert body["provenance"] == []
    cat, _, emu = body["classes"]
    assert cat["label"] == "cat"
    assert cat["jobs"][a] == {"support": 7, "recall": 1 / 7, "recall_change": 0.0, "f1": 2 / 9, "f1_change": 0.0}
    assert cat["jobs"][b]["recall_change"] == pytest.approx(6 / 7)
    assert (emu["jobs"][a]["f1"], emu["jobs"][b]["f1"], emu["jobs"][b]["f1_change"]) == (1.0, 0.0, -1.0)
    (pair,) = body["pairs"]
    assert (pair["first"], pair["second"], pair["same_pictures"]) == (a, b, True)
    assert pair["counts"] == {"both_right": 2, "only_first": 1, "only_second": 7, "both_wrong": 0}
    assert pair["p"] == pytest.approx(2 * (1 + 8) / 2**8)
    assert pair["better"] is None
    assert pair["verdict"].startswith("Not distinguishable: 1 of 10 test pictures")
    assert [each["index"] for each in pair["flipped"]] == [0, 1, 2, 3, 4, 5, 8, 9]
    assert pair["flipped"][0] == {
        "index": 0,
        "label": "cat",
        "first": {"predicted": "dog", "probability": 0.50001},
        "second": {"predicted": "cat", "probability": 1.0},
        "url": f"/jobs/{a}/report/pictures/0.png",
    }


def test_counts_agree_with_the_accuracies_of_the_reports(client: TestClient, db: Database) -> None:
    jobs = [job_with(db, answers(LABELS, said)).id for said in (WORSE, BETTER, LABELS)]
    body = compare(client, *jobs)
    accuracies = {each["id"]: each["accuracy"] for each in body["jobs"]}
    assert len(body["pairs"]) == 3
    for pair in body["pairs"]:
        counts = pair["counts"]
        assert sum(counts.values()) == len(LABELS)
        assert (counts["both_right"] + counts["only_first"]) / len(LABELS) == accuracies[pair["first"]]
        assert (counts["both_right"] + counts["only_second"]) / len(LABELS) == accuracies[pair["second"]]
    better = body["pairs"][1]
    assert better["counts"]["only_second"] == 7
    assert (better["better"], better["p"]) == (jobs[2], pytest.approx(2 / 2**7))
    assert better["verdict"].startswith(f"Job {jobs[2]} is better")


def test_what_results_depend_on_beside_the_spec_is_compared_too(client: TestClient, db: Database) -> None:
    first = job_with(db, answers([0], [0]))
    other = {"threads": 2, "device": "cpu", "dataset": {"sha256": "cd" * 32}}
    second = job_with(db, answers([0], [0]), provenance=other)
    body = compare(client, first.id, second.id)
    assert {each["pointer"]: each["values"] for each in body["provenance"]} == {
        "/threads": {first.id: 1, second.id: 2},
        "/dataset/sha256": {first.id: "ab" * 32, second.id: "cd" * 32},
    }
    (pair,) = body["pairs"]
    assert (pair["same_pictures"], pair["counts"], pair["p"], pair["flipped"]) == (False, None, None, [])
    assert "different pictures" in pair["verdict"]


def test_jobs_that_have_not_begun_are_compared_in_their_specs(client: TestClient, db: Database) -> None:
    first, second = submitting.enqueue(db, Spec(seed=1)), submitting.enqueue(db, Spec(seed=2))
    body = compare(client, second.id, first.id)
    assert body["spec"] == [{"pointer": "/seed", "values": {second.id: 2, first.id: 1}}]
    assert body["classes"] == []
    assert [(each["status"], each["epoch"], each["metrics"]) for each in body["jobs"]] == [("queued", None, {})] * 2
    assert "no report yet" in body["pairs"][0]["verdict"]


def test_pictures_of_a_deleted_dataset_have_no_address(client: TestClient, db: Database) -> None:
    jobs = [job_with(db, answers([0], [said])) for said in (0, 1)]
    for job in jobs:
        finish(db, job, Outcome.SUCCEEDED)
    datasets.delete(db, "fashion-mnist")
    (pair,) = compare(client, *(job.id for job in jobs))["pairs"]
    assert [each["url"] for each in pair["flipped"]] == [None]


@pytest.mark.parametrize("count", [1, 11])
def test_two_to_ten_different_jobs_are_compared(client: TestClient, count: int) -> None:
    ids = [f"{number:024x}" for number in range(count)]
    for jobs in (ids, [ids[0], ids[0]]):
        answer = client.get("/compare", params={"jobs": ",".join(jobs)})
        assert_problem(answer, 422, "validation_error")
        assert answer.json()["errors"] == [
            {"pointer": "?jobs", "detail": "Name 2 to 10 different jobs, with commas between them."}
        ]
    assert_problem(client.get("/compare"), 422, "validation_error")


def test_a_job_that_is_not_there_is_compared_with_nothing(client: TestClient, db: Database) -> None:
    job = running(db)
    for other in ("x", "", "0" * 24, "\0"):
        assert_problem(client.get("/compare", params={"jobs": f"{job.id},{other}"}), 404, "not_found")


def test_somebody_elses_job_is_not_there_to_be_compared(serve: Serve, db: Database) -> None:
    closed = serve(api_key=SecretStr("a-key-that-is-long-enough"))
    made = [keys.create(db, [Scope.READ], name=name) for name in ("ann", "bob")]
    closed.app.state.keys.look()  # type: ignore[attr-defined]
    jobs = []
    for _, row in (made[0], made[0], made[1]):
        jobs.append(submitting.enqueue(db, Spec(), Origin(Caller(row.owner, sees_all=False))).id)
        claim(db)
    ann = bearer(made[0][0])
    own, foreign = (closed.get(f"/compare?jobs={jobs[0]},{other}", headers=ann) for other in jobs[1:])
    assert own.status_code == 200
    assert_problem(foreign, 404, "not_found")
