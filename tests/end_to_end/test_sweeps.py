"""Sweeps over HTTP with real trainings: halving to the same bits, trials beside each other, and what is left of one."""

import time
from typing import Any

import pytest

from tests.end_to_end.serving import JOB_SECONDS, Epochd
from worker.jobs.processes import cores

SPEC: dict[str, Any] = {
    "model": {"hidden": [16], "dropout": 0.1},
    "optimizer": {"momentum": 0.9},
    "augmentation": {"flip": "horizontal"},
    "batch_size": 256,
    "threads": 1,
}


def submit(server: Epochd, **form: Any) -> dict[str, Any]:
    answer = server.http.post("/sweeps", json=form)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def wait_finished(server: Epochd, sweep: str) -> dict[str, Any]:
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        body: dict[str, Any] = server.http.get(f"/sweeps/{sweep}").raise_for_status().json()
        if body["finished_at"]:
            return body
        time.sleep(0.05)
    raise AssertionError(f"the sweep never ended: {body}")


def weights(server: Epochd, job: str) -> list[str]:
    return [each["weights_sha256"] for each in server.http.get(f"/jobs/{job}/checkpoints").json()["data"]]


def test_the_survivor_of_halving_has_the_bits_of_a_job_with_all_epochs(server: Epochd) -> None:
    made = submit(
        server,
        name="halving",
        spec=SPEC | {"epochs": 3},
        parameters={"optimizer.lr": {"min": 1e-4, "max": 0.1, "scale": "log"}, "seed": {"values": [3, 4]}},
        search={"name": "halving", "trials": 4, "factor": 2, "seed": 1},
    )
    body = wait_finished(server, made["id"])
    assert (body["status"], body["rung"], body["counts"]) == ("finished", 2, {"succeeded": 4})
    assert sorted(each["epoch"] for each in body["trials"]) == [1, 1, 2, 3]
    survivor = next(each for each in body["trials"] if each["epoch"] == 3)
    first = {each["trial"]: server.metrics(each["job"])[0]["test_accuracy"] for each in body["trials"]}
    longer = {each["trial"] for each in body["trials"] if each["epoch"] > 1}
    assert longer == set(sorted(first, key=lambda trial: (-first[trial], trial))[:2])
    assert body["best"]["value"] == max(row["test_accuracy"] for each in body["trials"] for row in rows(server, each))
    rate, seed = survivor["parameters"]["optimizer.lr"], survivor["parameters"]["seed"]
    whole = server.submit(**SPEC | {"epochs": 3, "seed": seed, "optimizer": SPEC["optimizer"] | {"lr": rate}})
    assert server.wait_terminal(whole)["status"] == "succeeded"
    assert weights(server, survivor["job"]) == weights(server, whole)
    assert len(set(weights(server, whole))) == 3


def rows(server: Epochd, trial: dict[str, Any]) -> list[dict[str, Any]]:
    return server.metrics(trial["job"])


@pytest.mark.skipif(cores() < 2, reason="one core trains one job at a time")
def test_trials_share_the_cores_with_a_thread_each(server: Epochd) -> None:
    spec = {"model": {"hidden": [128]}, "epochs": 1}
    made = submit(server, spec=spec, parameters={"seed": {"values": list(range(cores()))}})
    body = wait_finished(server, made["id"])
    jobs = [server.job(each["job"]) for each in body["trials"]]
    assert [job["threads"] for job in jobs] == [1] * len(jobs)
    attempts = [job["attempts"][0] for job in jobs]
    assert max(each["started_at"] for each in attempts) < min(each["ended_at"] for each in attempts)


def test_a_cancelled_sweep_can_be_deleted_and_leaves_nothing(server: Epochd) -> None:
    made = submit(server, spec=SPEC | {"epochs": 1000}, parameters={"seed": {"values": [1, 2, 3]}})
    first, *others = [each["job"] for each in made["trials"]]
    server.wait(first, lambda job: job["progress"]["epoch"] > 1)
    assert server.http.delete(f"/sweeps/{made['id']}").status_code == 409
    assert server.http.post(f"/sweeps/{made['id']}/cancel").status_code == 202
    body = wait_finished(server, made["id"])
    assert (body["status"], body["counts"]) == ("cancelled", {"cancelled": 3})
    assert body["best"]["value"] is not None
    assert (server.data_dir / "jobs" / first).is_dir()
    assert server.http.delete(f"/sweeps/{made['id']}").status_code == 204
    for job in (first, *others):
        assert server.http.get(f"/jobs/{job}").status_code == 404
        assert not list((server.data_dir / "jobs").glob(f"*{job}*"))
    assert server.http.get(f"/sweeps/{made['id']}").status_code == 404
