"""The life of a dataset's version: who prepares it, how that ends, which one a job gets, and when it may go."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from tests.worker.jobs import writes
from tests.worker.jobs.making import EXPIRED, LEASE_SECONDS, card, everything, finish, job_with_status, make_ready
from worker.jobs import control, datasets, queue, submitting, versions
from worker.jobs.built_in import BUILT_IN
from worker.jobs.card import Card, FileNote, Finding, FindingKind, Task
from worker.jobs.db import Database
from worker.jobs.errors import (
    BadArchive,
    Conflict,
    DatasetInvalid,
    DatasetMissing,
    DiskFull,
    EpochdError,
    NotFound,
    SpecRefused,
    StaleAttempt,
    Stalled,
    UnsafePath,
)
from worker.jobs.failures import JOB_CODES, Failure
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.spec import Spec
from worker.jobs.states import OWNED, SPENT, TERMINAL, DatasetStatus, Outcome, Status
from worker.jobs.tables import Dataset, Job

FAILURE = Failure.of(DatasetInvalid("There is one class only."))


def upload(db: Database, name: str = "shoes", **form: Any) -> Dataset:
    return datasets.add_upload(db, new_id(), Form.model_validate({"name": name} | form))


def claim(db: Database, worker: str = "worker-1", lease_seconds: float = LEASE_SECONDS) -> Dataset:
    dataset = datasets.claim(db, worker, lease_seconds)
    assert dataset is not None
    return dataset


def ready(db: Database, name: str = "shoes", **form: Any) -> Dataset:
    upload(db, name, **form)
    claimed = claim(db)
    datasets.set_ready(db, claimed.id, claimed.attempt, card(name=name))
    return versions.by_id(db, claimed.id)


def invalid(db: Database, name: str = "shoes") -> Dataset:
    upload(db, name)
    claimed = claim(db)
    datasets.set_invalid(db, claimed.id, claimed.attempt, FAILURE)
    return versions.by_id(db, claimed.id)


def spec(name: str = "shoes", version: int | None = None, **more: Any) -> Spec:
    return Spec.model_validate({"dataset": {"name": name, "version": version}} | more)


def trained(db: Database) -> Job:
    """The job at the head of the queue."""
    job = queue.claim(db, "worker-1", LEASE_SECONDS)
    assert job is not None
    return job


def numbers(db: Database) -> list[int]:
    """Of the versions of shoes."""
    return versions.numbers(db, Dataset(name="shoes", owner=""))  # type: ignore[call-arg]


def test_an_upload_waits_is_prepared_and_is_ready(db: Database) -> None:
    uploaded = upload(db, channels="grey", image_size=[20, 30])
    assert (uploaded.version, uploaded.status, uploaded.attempt) == (1, DatasetStatus.UPLOADED, 0)
    assert datasets.has_waiting(db)
    claimed = claim(db)
    assert (claimed.id, claimed.status, claimed.attempt, claimed.worker_id) == (uploaded.id, "preparing", 1, "worker-1")
    assert not datasets.has_waiting(db)
    datasets.record_progress(db, claimed.id, 1, "decoding", 5, 10)
    assert (versions.by_id(db, claimed.id).step, versions.by_id(db, claimed.id).done) == ("decoding", 5)
    finding = Finding(kind=FindingKind.LEAKAGE, count=1, detail="Too good.", files=[FileNote(file="a", detail="b")])
    found = card(name="shoes", findings=[finding])
    datasets.set_ready(db, claimed.id, 1, found)
    done = versions.by_id(db, claimed.id)
    assert (done.status, done.worker_id, done.step, done.error) == (DatasetStatus.READY, None, None, None)
    assert done.finished_at is not None
    assert Card.model_validate((done.card or {}) | {"findings": done.findings}) == found
    assert Form.model_validate(done.form).size == (20, 30)


def test_an_invalid_one_says_why_and_what_was_found(db: Database) -> None:
    claimed = claim(db) if upload(db) else None
    assert claimed is not None
    datasets.set_invalid(db, claimed.id, 1, FAILURE, card(name="shoes"))
    done = versions.by_id(db, claimed.id)
    assert (done.status, done.error) == (DatasetStatus.INVALID, FAILURE.model_dump(mode="json"))
    assert done.card is not None


def test_the_same_name_again_is_a_new_version_and_numbers_are_never_used_twice(db: Database) -> None:
    assert [upload(db).version for _ in range(3)] == [1, 2, 3]
    assert upload(db, "boots").version == 1
    datasets.delete(db, "shoes")
    assert upload(db).version == 4
    assert numbers(db) == [4]


def test_uploads_of_one_name_at_once_get_versions_of_their_own(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: upload(db).version, range(24)))
    assert sorted(versions) == list(range(1, 25))


def test_a_built_in_dataset_is_a_row_once_somebody_asks_for_it(db: Database) -> None:
    assert versions.get(db, "mnist") is None
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: datasets.prepare_built_in(db, "mnist").id, range(24)))
    assert len(set(asked)) == 1
    found = versions.get(db, "mnist")
    assert found is not None
    assert (found.id, found.form, found.status) == (asked[0], None, DatasetStatus.UPLOADED)
    assert versions.task(found) is Task.CLASSIFICATION


def test_jobs_that_ask_for_a_built_in_dataset_at_once_share_its_row(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: submitting.enqueue(db, spec("kmnist")), range(16)))
    assert len({job.dataset_id for job in jobs}) == 1


def test_a_built_in_dataset_that_was_absent_is_tried_again(db: Database) -> None:
    first = datasets.prepare_built_in(db, "mnist")
    datasets.set_invalid(db, claim(db).id, 1, FAILURE)
    again = datasets.prepare_built_in(db, "mnist")
    assert (again.version, again.status) == (first.version + 1, DatasetStatus.UPLOADED)


@pytest.mark.parametrize("name", ["shoes", "", "no\0name", "../mnist", "MNIST", "mnist\n"])
def test_a_name_that_is_not_there_is_not_found(db: Database, name: str) -> None:
    for ask in (versions.get, datasets.delete, datasets.prepare_built_in):
        with pytest.raises(NotFound):
            ask(db, name)


def test_the_newest_version_of_each_name_is_listed(db: Database) -> None:
    ready(db)
    invalid(db)
    ready(db, "boots")
    assert [(each.name, each.version, each.status) for each in versions.newest(db)] == [
        ("boots", 1, "ready"),
        ("fashion-mnist", 1, "ready"),
        ("shoes", 2, "invalid"),
    ]
    found = versions.get(db, "shoes", 1)
    assert found is not None
    assert (found.status, found.findings) == (DatasetStatus.READY, [])


def test_paths_are_made_of_our_own_names_only(db: Database) -> None:
    uploaded = upload(db)
    assert versions.folder(uploaded) == f"datasets/{uploaded.id}"
    assert versions.archive_path(uploaded.id) == f"uploads/{uploaded.id}.archive"
    assert versions.folder(datasets.prepare_built_in(db, "mnist")) == "datasets/mnist-v1"
    with pytest.raises(ValueError, match="built-in"):
        upload(db, "mnist")


def test_a_job_gets_the_newest_version_and_keeps_it(db: Database) -> None:
    first = ready(db)
    job = submitting.enqueue(db, spec())
    second = ready(db)
    assert (job.dataset_id, job.spec["dataset"]) == (first.id, {"name": "shoes", "version": 1})
    assert submitting.enqueue(db, spec()).dataset_id == second.id
    assert submitting.enqueue(db, spec(version=1)).dataset_id == first.id


def test_a_job_waits_for_its_dataset_and_lets_others_pass(db: Database) -> None:
    upload(db)
    waiting = submitting.enqueue(db, spec())
    other = submitting.enqueue(db, Spec())
    assert trained(db).id == other.id
    assert not queue.has_waiting(db)
    assert queue.claim(db, "worker-1", LEASE_SECONDS) is None
    dataset = claim(db)
    assert queue.claim(db, "worker-1", LEASE_SECONDS) is None
    datasets.set_ready(db, dataset.id, 1, card(name="shoes"))
    assert queue.has_waiting(db)
    assert trained(db).id == waiting.id


def test_a_job_whose_dataset_turns_out_invalid_fails_with_its_reason(db: Database) -> None:
    upload(db)
    waiting, other = submitting.enqueue(db, spec()), submitting.enqueue(db, Spec())
    datasets.set_invalid(db, claim(db).id, 1, FAILURE)
    assert queue.fail_hopeless(db) == [waiting.id]
    assert queue.fail_hopeless(db) == []
    failed = queue.get(db, waiting.id)
    assert (failed.status, failed.error, failed.attempt) == (Status.FAILED, FAILURE.model_dump(mode="json"), 0)
    assert failed.finished_at is not None
    assert queue.get(db, other.id).status == Status.QUEUED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadArchive(), "dataset_invalid"),  # what only an upload can meet
        (UnsafePath(), "dataset_invalid"),
        (DatasetInvalid(), "dataset_invalid"),
        (DatasetMissing(), "dataset_missing"),
        (DiskFull(), "disk_full"),
        (Stalled(), "stalled"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.code,
)
def test_the_error_of_a_job_has_a_code_of_jobs_whatever_its_dataset_met(
    db: Database, error: EpochdError, code: str
) -> None:
    upload(db)
    job = submitting.enqueue(db, spec())
    datasets.set_invalid(db, claim(db).id, 1, Failure.of(error))
    queue.fail_hopeless(db)
    assert queue.get(db, job.id).error == Failure.of(error).model_dump(mode="json") | {"code": code}
    assert code in JOB_CODES


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.QUEUED])
def test_only_queued_jobs_are_hopeless(db: Database, status: Status) -> None:
    job = job_with_status(db, status)
    with db.write() as session:
        session.execute(update(Dataset).values(status=DatasetStatus.INVALID, error=FAILURE.model_dump(mode="json")))
    before = everything(db)
    assert queue.fail_hopeless(db) == []
    assert everything(db) == before
    if status is Status.PAUSED:
        control.resume(db, job.id)
        assert queue.fail_hopeless(db) == [job.id]


@pytest.mark.parametrize(
    ("wanted", "pointer", "fragment"),
    [
        (spec("nothing"), "#/dataset/name", "no such dataset"),
        (spec("shoes", 7), "#/dataset", "no such dataset"),
        (spec("mnist", 1), "#/dataset", "no such dataset"),
        (spec("broken"), "#/dataset", "one class only"),
        (spec("ages"), "#/loss", "`mse`"),
        (spec("ages", loss={"name": "nll"}), "#/loss", "`mse`"),
        (spec("shoes", loss={"class_weights": [1, 1, 1]}), "#/loss/class_weights", "3 weights for the 2 classes"),
        (spec("shoes", early_stopping={"metric": "test_mae"}), "#/early_stopping/metric", "has no test_mae"),
        (spec("shoes", checkpoints={"best_by": "test_top5_accuracy"}), "#/checkpoints/best_by", "more than 5"),
    ],
)
def test_a_spec_that_does_not_suit_its_dataset_is_refused(
    db: Database, wanted: Spec, pointer: str, fragment: str
) -> None:
    ready(db)
    ready(db, "ages", task="regression")
    invalid(db, "broken")
    before = everything(db)
    with pytest.raises(SpecRefused, match=fragment) as caught:
        submitting.enqueue(db, wanted)
    assert caught.value.pointer == pointer
    assert everything(db) == before


def test_a_regression_is_trained_with_mse(db: Database) -> None:
    dataset = ready(db, "ages", task="regression")
    assert submitting.enqueue(db, spec("ages", loss={"name": "mse"})).dataset_id == dataset.id


def test_what_depends_on_classes_waits_until_they_are_known(db: Database) -> None:
    upload(db)
    wanted = spec(loss={"class_weights": [1, 1, 1]})
    assert submitting.enqueue(db, wanted).status == Status.QUEUED
    datasets.set_ready(db, claim(db).id, 1, card(name="shoes"))
    with pytest.raises(SpecRefused, match="3 weights for the 2 classes"):
        submitting.enqueue(db, wanted)


@pytest.mark.parametrize("outcome", [*SPENT, Outcome.RELEASED])
def test_an_attempt_that_did_not_finish_is_tried_again_until_they_are_spent(db: Database, outcome: Outcome) -> None:
    upload(db)
    for number in (1, 2, 3):
        claimed = claim(db)
        datasets.record_progress(db, claimed.id, number, "unpacking", 1, 2)
        status = datasets.finish(db, claimed.id, number, outcome, FAILURE, max_attempts=3)
        spent = number == 3 and outcome in SPENT
        assert status == (DatasetStatus.INVALID if spent else DatasetStatus.UPLOADED)
    dataset = versions.by_id(db, claimed.id)
    assert (dataset.error is not None, dataset.step, dataset.done) == (outcome in SPENT, None, 0)


def test_a_dataset_of_a_dead_or_silent_worker_is_taken_back(db: Database) -> None:
    silent = claim(db, lease_seconds=EXPIRED) if upload(db) else None
    dead = claim(db, "dead") if upload(db, "boots") else None
    alive = claim(db, "alive") if upload(db, "socks") else None
    assert silent is not None
    assert dead is not None
    assert alive is not None
    assert sorted(datasets.rescue(db, max_attempts=3, dead_workers=["dead"])) == sorted([silent.id, dead.id])
    assert versions.by_id(db, alive.id).status == DatasetStatus.PREPARING
    assert versions.by_id(db, dead.id).status == DatasetStatus.UPLOADED
    assert datasets.rescue(db, max_attempts=3) == []


def test_a_renewed_lease_keeps_a_dataset(db: Database) -> None:
    upload(db)
    claimed = claim(db, lease_seconds=EXPIRED)
    datasets.renew(db, "worker-1", LEASE_SECONDS, [claimed.id])
    assert datasets.rescue(db, max_attempts=3) == []
    assert datasets.owned(db, "worker-1") == {claimed.id: 1}


def test_an_attempt_that_lost_its_dataset_can_change_nothing(db: Database) -> None:
    upload(db)
    stale = claim(db, lease_seconds=EXPIRED)
    datasets.rescue(db, max_attempts=3)
    claim(db, "worker-2")
    before = everything(db)
    for write in writes.OF_DATASETS.values():
        with pytest.raises(StaleAttempt):
            write(db, stale.id, 1)
    assert everything(db) == before


@pytest.mark.parametrize("write", writes.OF_DATASETS.values(), ids=writes.OF_DATASETS)
def test_the_current_attempt_may_change_its_dataset(db: Database, write: writes.Write) -> None:
    upload(db)
    claimed = claim(db)
    before = everything(db)
    write(db, claimed.id, 1)
    assert everything(db) != before


def test_the_table_of_writes_to_datasets_is_whole() -> None:
    assert writes.of_attempts(datasets) == set(writes.OF_DATASETS)


def test_eight_workers_prepare_each_dataset_once(db: Database) -> None:
    ids = {upload(db, f"set-{number}").id for number in range(24)}
    claimed: list[str] = []

    def work(worker: int) -> None:
        while (dataset := datasets.claim(db, f"worker-{worker}", LEASE_SECONDS)) is not None:
            claimed.append(dataset.id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(claimed) == len(ids)
    assert set(claimed) == ids


@pytest.mark.parametrize("status", [status for status in Status if status not in TERMINAL])
def test_a_dataset_that_a_job_uses_stays(db: Database, status: Status) -> None:
    ready(db)
    job = submitting.enqueue(db, spec())
    if status in OWNED:
        trained(db)
    if status is Status.CANCELLING:
        control.cancel(db, job.id)
    if status in (Status.PAUSING, Status.PAUSED):
        control.pause(db, job.id)
    assert queue.get(db, job.id).status == status
    for version in (None, 1):
        with pytest.raises(Conflict, match=job.id):
            datasets.delete(db, "shoes", version)
    assert numbers(db)


def test_a_dataset_may_go_when_its_jobs_have_ended(db: Database) -> None:
    dataset = ready(db)
    submitting.enqueue(db, spec())
    job = trained(db)
    finish(db, job, Outcome.SUCCEEDED)
    assert [each.id for each in datasets.delete(db, "shoes")] == [dataset.id]
    assert numbers(db) == []
    assert queue.get(db, job.id).status in TERMINAL
    assert versions.states(db)[dataset.id] is DatasetStatus.DELETED
    with pytest.raises(SpecRefused):
        submitting.enqueue(db, spec())


def test_one_version_may_go_alone(db: Database) -> None:
    first, second = ready(db), ready(db)
    datasets.delete(db, "shoes", 1)
    assert numbers(db) == [second.version]
    assert versions.states(db)[first.id] is DatasetStatus.DELETED


def test_deleting_one_that_is_being_prepared_gives_it_up(db: Database) -> None:
    upload(db)
    claimed = claim(db)
    datasets.delete(db, "shoes")
    assert datasets.owned(db, "worker-1") == {}
    with pytest.raises(StaleAttempt):
        datasets.set_ready(db, claimed.id, 1, card())


def test_a_delete_that_meets_a_job_never_leaves_the_job_without_its_dataset(db: Database) -> None:
    for _ in range(10):
        dataset = ready(db)

        def enqueue(_: int) -> str:
            try:
                return submitting.enqueue(db, spec()).id
            except SpecRefused:
                return "refused"

        def delete(_: int) -> str:
            try:
                datasets.delete(db, "shoes")
            except Conflict:
                return "kept"
            return "deleted"

        with ThreadPoolExecutor(2) as pool:
            queued, gone = pool.submit(enqueue, 0), pool.submit(delete, 0)
            assert (queued.result() == "refused") == (gone.result() == "deleted")
        if queued.result() != "refused":
            control.cancel(db, queued.result())
            datasets.delete(db, "shoes")
        assert versions.states(db)[dataset.id] is DatasetStatus.DELETED


def test_every_built_in_name_is_a_name(db: Database) -> None:
    for name in BUILT_IN:
        assert submitting.enqueue(db, spec(name)).spec["dataset"] == {"name": name, "version": 1}


def test_a_ready_dataset_is_made_ready_by_the_tests_as_by_a_worker(db: Database) -> None:
    datasets.delete(db, "fashion-mnist")
    assert versions.by_id(db, make_ready(db)).status == DatasetStatus.READY
