"""An alias always points at a checkpoint that is there, whoever else moves it, trains, prunes or deletes meanwhile."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from tests.worker.jobs.making import claim, everything, finish, record, running, saved
from worker.jobs import aliases, control, records, retention
from worker.jobs.db import Database
from worker.jobs.errors import CheckpointCorrupt, Conflict, EpochdError, NotFound, NotReady
from worker.jobs.ids import new_id
from worker.jobs.records import Resumed
from worker.jobs.states import Outcome
from worker.jobs.tables import Alias, Job

THREADS, ROUNDS = 8, 12
ACCURACIES = (0.5, 0.9, 0.7)  # the second epoch is the best
NO_NAMES = ["", "nothing", "\0", "a\0b", "Shoes", "a/b", "'; --", "shoes\n", "é" * 5000]


@pytest.fixture
def job(db: Database) -> Job:
    return trained(db)


def trained(db: Database, *accuracies: float, **spec: Any) -> Job:
    """A job that has succeeded, with a checkpoint of each epoch."""
    job = running(db, **spec)
    for epoch, accuracy in enumerate(accuracies or ACCURACIES, start=1):
        record(db, job, epoch, test_accuracy=accuracy)
    finish(db, job, Outcome.SUCCEEDED)
    return job


def at(alias: Alias) -> tuple[str, int]:
    return alias.job_id, alias.epoch


def previous(alias: Alias) -> tuple[str | None, int | None]:
    return alias.previous_job_id, alias.previous_epoch


@pytest.mark.parametrize(("which", "epoch"), [("best", 2), ("last", 3), ("1", 1), ("3", 3)])
def test_a_new_alias_points_at_what_was_named(db: Database, job: Job, which: str, epoch: int) -> None:
    alias, checkpoint, is_new = aliases.put(db, "shoes", job.id, which)
    assert (alias.name, at(alias), alias.version, is_new) == ("shoes", (job.id, epoch), 1, True)
    assert (previous(alias), alias.created_at) == ((None, None), alias.updated_at)
    assert checkpoint is not None
    assert checkpoint.sha256 == aliases.target(db, "shoes").sha256 == saved(epoch).sha256
    assert aliases.get(db, "shoes") == alias


def test_an_alias_stays_at_its_epoch_while_the_job_goes_on(db: Database) -> None:
    job = running(db)
    record(db, job, 1, test_accuracy=0.1)
    aliases.put(db, "best", job.id, "best")
    aliases.put(db, "last", job.id, "last")
    record(db, job, 2, test_accuracy=0.9)
    assert [aliases.target(db, name).epoch for name in ("best", "last")] == [1, 1]


def test_what_it_pointed_at_is_remembered_and_its_version_grows(db: Database, job: Job) -> None:
    first = aliases.put(db, "shoes", job.id, "1").alias
    other = trained(db)
    moved = aliases.put(db, "shoes", other.id, "best")
    assert (at(moved.alias), previous(moved.alias)) == ((other.id, 2), (job.id, 1))
    assert (moved.alias.version, moved.is_new) == (2, False)
    assert moved.alias.created_at == first.created_at < moved.alias.updated_at
    again = aliases.put(db, "shoes", other.id, "3").alias
    assert (at(again), previous(again), again.version) == ((other.id, 3), (other.id, 2), 3)


def test_to_point_at_what_it_points_at_already_changes_nothing(db: Database, job: Job) -> None:
    aliases.put(db, "shoes", job.id, "1")
    aliases.put(db, "shoes", job.id, "2")
    before = everything(db)
    for which in ("2", "best"):
        pointed = aliases.put(db, "shoes", job.id, which)
        assert (pointed.alias.version, pointed.is_new) == (2, False)
    assert everything(db) == before


def test_an_alias_is_only_pointed_at_what_is_there(db: Database, job: Job) -> None:
    aliases.put(db, "shoes", job.id, "1")
    empty = running(db)
    before = everything(db)
    wrong: list[tuple[str, str, type[EpochdError]]] = [
        (new_id(), "best", NotFound),
        ("\0", "best", NotFound),
        (job.id, "4", NotFound),
        (job.id, "0", NotFound),
        (job.id, "worst", NotFound),
        (empty.id, "best", NotReady),
        (empty.id, "1", NotReady),
    ]
    for name in ("shoes", "new"):
        for job_id, which, error in wrong:
            with pytest.raises(error):
                aliases.put(db, name, job_id, which)
    assert everything(db) == before


def test_a_rollback_goes_back_and_a_second_one_forth_again(db: Database, job: Job) -> None:
    other = trained(db)
    aliases.put(db, "shoes", job.id, "1")
    aliases.put(db, "shoes", other.id, "3")
    assert aliases.before(db, "shoes").path == saved(1).path
    back = aliases.rollback(db, "shoes")
    assert (at(back.alias), previous(back.alias), back.alias.version) == ((job.id, 1), (other.id, 3), 3)
    assert back.checkpoint == aliases.target(db, "shoes")
    forth = aliases.rollback(db, "shoes").alias
    assert (at(forth), previous(forth), forth.version) == ((other.id, 3), (job.id, 1), 4)
    assert aliases.get(db, "shoes") == forth


def test_there_is_nothing_to_roll_back_to_at_first(db: Database, job: Job) -> None:
    aliases.put(db, "shoes", job.id, "best")
    before = everything(db)
    for ask in (aliases.rollback, aliases.before):
        with pytest.raises(Conflict, match="nothing else"):
            ask(db, "shoes")
    assert everything(db) == before


def test_aliases_are_listed_by_name_and_one_that_is_deleted_is_gone(db: Database, job: Job) -> None:
    for name in ("shoes", "default", "a.b-c_d"):
        aliases.put(db, name, job.id, "best")
    assert [each.alias.name for each in aliases.every(db)] == ["a.b-c_d", "default", "shoes"]
    aliases.remove(db, "default")
    assert [each.alias.name for each in aliases.every(db)] == ["a.b-c_d", "shoes"]
    assert aliases.put(db, "default", job.id, "1").alias.version == 1


@pytest.mark.parametrize("name", NO_NAMES)
def test_an_alias_that_is_not_there_is_not_found(db: Database, job: Job, name: str) -> None:
    aliases.put(db, "shoes", job.id, "best")
    before = everything(db)
    for ask in (aliases.get, aliases.look, aliases.target, aliases.before, aliases.rollback, aliases.remove):
        with pytest.raises(NotFound, match="no alias"):
            ask(db, name)
    assert everything(db) == before


def forget(db: Database, job: Job, done: int) -> Job:
    """An attempt that cannot go on from what is behind this epoch: the files were damaged."""
    control.extend(db, job.id, 3)
    again = claim(db)
    records.record_start(db, job.id, again.attempt, {}, Resumed(done, 0, []) if done else None)
    return again


def test_a_checkpoint_that_was_damaged_is_missed_until_it_is_trained_again(db: Database) -> None:
    job = trained(db, epochs=3)
    aliases.put(db, "shoes", job.id, "3")
    again = forget(db, job, 2)
    with pytest.raises(CheckpointCorrupt, match=f"epoch 3 of job {job.id}, whose checkpoint is gone"):
        aliases.target(db, "shoes")
    assert aliases.look(db, "shoes").checkpoint is None
    assert [each.checkpoint for each in aliases.every(db)] == [None]
    assert at(aliases.get(db, "shoes")) == (job.id, 3)
    record(db, again, 3)
    assert aliases.target(db, "shoes").attempt == again.attempt


def test_an_alias_whose_checkpoint_is_gone_can_be_moved_but_not_rolled_back_to_it(db: Database) -> None:
    job = trained(db, epochs=3)
    aliases.put(db, "shoes", job.id, "3")
    forget(db, job, 2)
    assert aliases.put(db, "shoes", job.id, "2").alias.version == 2
    before = everything(db)
    with pytest.raises(Conflict, match=f"epoch 3 of job {job.id} before, whose checkpoint is gone"):
        aliases.rollback(db, "shoes")
    assert everything(db) == before


# Many at once


@contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[None]:
    """Each of them again and again, each in a thread of its own; what one raises comes out at the end."""
    done = threading.Event()

    def again(work: Callable[[], object]) -> None:
        while not done.is_set():
            work()

    with ThreadPoolExecutor(len(works)) as pool:
        asked = [pool.submit(again, work) for work in works]
        try:
            yield
        finally:
            done.set()
    for each in asked:
        each.result()


def at_once(*works: Callable[[], object]) -> list[object]:
    """What they return or raise when all begin together."""
    start = threading.Barrier(len(works))

    def one(work: Callable[[], object]) -> object:
        start.wait(60)
        try:
            return work()
        except EpochdError as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


def test_of_many_who_make_the_same_alias_one_makes_it_and_the_others_move_it(db: Database) -> None:
    jobs = [trained(db) for _ in range(THREADS)]
    for number in range(ROUNDS):
        name = f"shoes-{number}"
        found = at_once(*(partial(aliases.put, db, name, job.id, "best") for job in jobs))
        pointed = [each for each in found if isinstance(each, aliases.Pointed)]
        assert len(pointed) == THREADS, found
        assert [each.alias.version for each in pointed if each.is_new] == [1]
        assert {each.alias.version for each in pointed} == set(range(1, THREADS + 1))
        assert aliases.get(db, name).version == THREADS


def test_whoever_reads_while_an_alias_is_swapped_sees_the_one_or_the_other(db: Database, job: Job) -> None:
    other = trained(db)
    targets = {(job.id, 1), (other.id, 3)}
    aliases.put(db, "shoes", job.id, "1")
    seen = []

    def read() -> None:
        row = aliases.target(db, "shoes")
        seen.append((row.job_id, row.epoch))

    def swap(turn: int) -> Callable[[], object]:
        def work() -> None:
            for number in range(ROUNDS):
                job_id, epoch = sorted(targets)[(number + turn) % 2]
                aliases.put(db, "shoes", job_id, str(epoch))
            aliases.rollback(db, "shoes")

        return work

    with meanwhile(read, read):
        found = at_once(*(swap(turn) for turn in range(THREADS)))
    assert found == [None] * THREADS
    assert set(seen) == targets
    last = aliases.get(db, "shoes")
    assert {at(last), previous(last)} == targets
    assert last.version > ROUNDS


@pytest.mark.parametrize("keep", ["last", "best"])
def test_what_an_alias_was_pointed_at_while_the_job_trains_stays(db: Database, keep: str) -> None:
    job = running(db, checkpoints={"keep": keep})
    record(db, job, 1)
    aliases.put(db, "shoes", job.id, "last")

    def move() -> None:
        aliases.put(db, "shoes", job.id, "last")
        with suppress(Conflict):  # nobody has moved it yet
            aliases.rollback(db, "shoes")

    with meanwhile(move, move, lambda: aliases.target(db, "shoes")):
        for epoch in range(2, 30):
            record(db, job, epoch)
    alias = aliases.get(db, "shoes")
    kept = {each.row.epoch for each in records.checkpoints(db, job.id)}
    assert {alias.epoch, alias.previous_epoch} <= kept
    assert len(kept) <= 4


def delete(db: Database, job_id: str) -> list[str]:
    control.delete(db, job_id)
    return [job_id]


def delete_old(db: Database, job_id: str) -> list[str]:
    return retention.delete_old(db, -1)  # whenever they ended


@pytest.mark.parametrize("deleting", [delete, delete_old])
def test_a_job_is_deleted_or_pointed_at_but_never_both(
    db: Database, deleting: Callable[[Database, str], list[str]]
) -> None:
    for _ in range(ROUNDS):
        job, other = trained(db), trained(db)
        aliases.put(db, "shoes", other.id, "1")
        pointed, deleted = at_once(partial(aliases.put, db, "shoes", job.id, "best"), partial(deleting, db, job.id))
        is_gone = isinstance(deleted, list) and job.id in deleted
        assert is_gone or isinstance(deleted, Conflict | list)
        if is_gone:
            assert isinstance(pointed, NotFound)
            assert at(aliases.get(db, "shoes")) == (other.id, 1)
        else:
            assert isinstance(pointed, aliases.Pointed)
            assert aliases.target(db, "shoes").job_id == job.id


@pytest.mark.parametrize("deleting", [delete, delete_old])
def test_an_alias_is_rolled_back_to_a_job_or_the_job_is_deleted_but_never_both(
    db: Database, deleting: Callable[[Database, str], list[str]]
) -> None:
    for _ in range(ROUNDS):
        job, other = trained(db), trained(db)
        aliases.put(db, "shoes", job.id, "1")
        aliases.put(db, "shoes", other.id, "1")
        rolled, deleted = at_once(partial(aliases.rollback, db, "shoes"), partial(deleting, db, job.id))
        alias = aliases.get(db, "shoes")
        if isinstance(deleted, list) and job.id in deleted:
            assert isinstance(rolled, Conflict)
            assert (at(alias), previous(alias)) == ((other.id, 1), (None, None))
        else:
            assert isinstance(deleted, Conflict | list)
            assert at(alias) == (job.id, 1)
            assert previous(alias) in ((other.id, 1), (None, None))  # it may have been old too


def test_old_jobs_are_deleted_while_aliases_move_among_them(db: Database) -> None:
    """Whatever is locked by whom: nobody waits for another who waits for him."""
    for number in range(ROUNDS):
        jobs = [trained(db, 0.5) for _ in range(3)]
        for name in ("a", "b"):
            for job in jobs[:2]:
                aliases.put(db, name, job.id, "1")
        asked = [partial(aliases.put, db, name, jobs[2].id, "1") for name in ("a", "b")]
        asked += [partial(aliases.rollback, db, name) for name in ("a", "b")]
        found = at_once(*asked, partial(retention.delete_old, db, -1), partial(retention.delete_old, db, -1))
        assert all(isinstance(each, aliases.Pointed | NotFound | Conflict | list) for each in found), (number, found)
        assert [aliases.target(db, name).epoch for name in ("a", "b")] == [1, 1]
