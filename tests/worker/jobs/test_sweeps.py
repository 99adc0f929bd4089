"""Sweeps: all of their jobs or none, how trials compare, rungs that begin once, and what ends with what."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlmodel import col

from tests.worker.jobs.making import card, claim, everything, finish, make_ready, record, result, running
from worker.jobs import aliases, control, datasets, listing, queue, retention, standings, submitting, sweeps
from worker.jobs.db import Database
from worker.jobs.errors import Conflict, IdempotencyMismatch, NotFound, SpecRefused, TooManyJobs
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.listing import Filter
from worker.jobs.owners import EVERYBODY, Caller
from worker.jobs.spec import Spec, SweepForm
from worker.jobs.standings import Whole
from worker.jobs.states import Outcome, Status
from worker.jobs.submitting import Origin, Quota
from worker.jobs.tables import Delivery, Epoch, Job, Sweep

ANN, BOB = Caller("ann", sees_all=False), Caller("bob", sees_all=False)
SEEDS: dict[str, Any] = {"seed": {"values": [0, 1, 2, 3]}}
HALVING: dict[str, Any] = {"name": "halving", "trials": 4, "factor": 2}
MANY: dict[str, Any] = {"seed": {"values": list(range(10))}, "batch_size": {"values": list(range(1, 101))}}


def form(parameters: dict[str, Any] = SEEDS, **more: Any) -> SweepForm:
    return SweepForm.model_validate({"parameters": parameters, **more})


def create(
    db: Database,
    parameters: dict[str, Any] = SEEDS,
    caller: Caller = EVERYBODY,
    key: str | None = None,
    quota: Quota | None = None,
    **more: Any,
) -> str:
    return sweeps.create(db, form(parameters, **more), Origin(caller, key), quota).id


def halving(db: Database, epochs: int = 4, **more: Any) -> str:
    return create(db, search=HALVING | more, spec={"epochs": epochs})


def jobs(db: Database, sweep: str) -> list[Job]:
    """By trial."""
    return listing.jobs(db, Filter(sweep=sweep), limit=2000)[0][::-1]


def train(db: Database, *accuracies: float | None, outcome: Outcome = Outcome.SUCCEEDED) -> Job:
    """The next job, from where it stopped, with these accuracies."""
    job = claim(db)
    with db.read() as session:
        done = session.execute(
            text(f"SELECT coalesce(max(epoch), 0) FROM epochs WHERE job_id = '{job.id}'")
        ).scalar_one()
    for epoch, accuracy in enumerate(accuracies, start=done + 1):
        record(db, job, epoch, test_accuracy=float("nan") if accuracy is None else accuracy)
    finish(db, job, outcome)
    return job


def stand(db: Database, sweep: str, column: str) -> list[Any]:
    return [getattr(each, column) for each in standings.get(db, sweep).trials]


def test_each_trial_is_a_job_like_any_other(db: Database) -> None:
    spec = {"labels": {"team": "a"}, "priority": 3, "epochs": 2}
    sweep = create(db, {"optimizer.lr": {"values": [0.1, 0.01]}}, ANN, name="rates", spec=spec)
    first, second = jobs(db, sweep)
    assert [first.name, second.name] == ["rates #1", "rates #2"]
    assert (first.sweep_id, first.trial, second.trial) == (sweep, 1, 2)
    assert (first.owner, first.labels, first.priority, first.status) == ("ann", {"team": "a"}, 3, "queued")
    assert (first.spec["optimizer"]["lr"], second.spec["optimizer"]["lr"]) == (0.1, 0.01)
    assert first.spec == Spec.model_validate(spec | {"name": "rates #1", "optimizer": {"lr": 0.1}}).model_dump(
        mode="json"
    ) | {"dataset": {"name": "fashion-mnist", "version": 1}}
    assert [job.id for job in listing.jobs(db, Filter(labels=(("team", "a"),)))[0]] == [second.id, first.id]
    other = submitting.enqueue(db, Spec(), Origin(ANN))
    assert [job.id for job in listing.jobs(db, caller=ANN)[0]] == [other.id, second.id, first.id]
    assert listing.jobs(db, Filter(sweep=sweep), caller=BOB)[0] == []
    assert [each.reason for each in _transitions(db, first)] == ["submitted"]
    assert claim(db).id == first.id


def _transitions(db: Database, job: Job) -> Any:
    with db.read() as session:
        return session.execute(text(f"SELECT reason FROM transitions WHERE job_id = '{job.id}' ORDER BY seq")).all()


def test_trials_are_called_by_the_sweeps_name_or_the_specs_or_its_id(db: Database) -> None:
    long = create(db, name="x" * 100)
    by_spec = create(db, spec={"name": "shoes"})
    nameless = create(db)
    assert jobs(db, long)[0].name == "x" * 93 + " #1"
    assert (jobs(db, by_spec)[3].name, standings.get(db, by_spec).row.name) == ("shoes #4", "shoes")
    assert (jobs(db, nameless)[1].name, standings.get(db, nameless).row.name) == (f"{nameless} #2", None)


def test_a_thousand_trials_take_a_handful_of_statements(db: Database) -> None:
    with counted(db) as statements:
        sweep = create(db, MANY, spec={"labels": {"team": "a"}})
        made = len(statements)
        found = standings.get(db, sweep)
        looked = len(statements) - made
        standings.listed(db)
        listed = len(statements) - made - looked
        sweeps.settle(db)
        settled = len(statements) - made - looked - listed
    assert len(found.trials) == 1000
    assert [job.trial for job in jobs(db, sweep)] == list(range(1, 1001))
    assert made < 40
    assert (looked, listed, settled) == (2, 2, 1)


@contextmanager
def counted(db: Database) -> Iterator[list[str]]:
    """The statements, of which one may be about many rows."""
    statements: list[str] = []

    def note(*about: Any) -> None:
        if about[2] != "BEGIN":
            statements.append(about[2])

    event.listen(db._engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(db._engine, "before_cursor_execute", note)


def end_all(db: Database, sweep: str) -> None:
    """Every trial has succeeded with one epoch, the later ones better."""
    with db.write() as session:
        ended: dict[str, Any] = {"status": Status.SUCCEEDED, "finished_at": datetime.now(UTC), "last_seq": 1}
        session.execute(update(Job).where(col(Job.sweep_id) == sweep).values(**ended))
        ids = session.execute(select(col(Job.id)).where(col(Job.sweep_id) == sweep).order_by(col(Job.trial))).scalars()
        row = {"seq": 1, "attempt": 1, "recorded_at": datetime.now(UTC)} | vars(result(1))
        session.execute(
            insert(Epoch), [row | {"job_id": job_id, "test_accuracy": at / 1000} for at, job_id in enumerate(ids)]
        )


def test_a_thousand_trials_are_cancelled_in_a_handful_of_statements(db: Database) -> None:
    """Whoever else writes waits meanwhile, and a worker does not wait for long."""
    sweep = create(db, MANY)
    claim(db)
    control.pause(db, jobs(db, sweep)[1].id)
    with counted(db) as statements:
        assert sweeps.cancel(db, sweep) is True
    assert len(statements) < 30
    found = standings.get(db, sweep)
    assert found.counts == {"cancelling": 1, "cancelled": 999}
    first, second, third = (_transitions(db, job) for job in jobs(db, sweep)[:3])
    assert [each.reason for each in first] == ["submitted", "attempt 1", "cancel requested"]
    assert [each.reason for each in second] == ["submitted", "paused while queued", "cancelled while paused"]
    assert [each.reason for each in third] == ["submitted", "cancelled while queued"]


def test_five_hundred_trials_are_trained_on_in_a_handful_of_statements(db: Database) -> None:
    sweep = create(db, MANY, search={"name": "halving", "trials": 1000, "factor": 2}, spec={"epochs": 4})
    end_all(db, sweep)
    with counted(db) as statements:
        assert sweeps.settle(db) == [sweep]
    assert len(statements) < 30
    assert stand(db, sweep, "epochs") == [1] * 500 + [2] * 500
    assert stand(db, sweep, "status") == ["succeeded"] * 500 + ["queued"] * 500
    assert [each.reason for each in _transitions(db, jobs(db, sweep)[-1])] == ["submitted", "extended by 1 epochs"]


def test_the_webhooks_of_all_trials_hear_of_it(db: Database) -> None:
    sweep = create(db, spec={"webhooks": [{"url": "https://hooks.example.com/a"}]})
    claim(db)
    sweeps.cancel(db, sweep)
    with db.read() as session:
        told = [(each.job_id, each.payload["job"]["status"]) for each in session.execute(select(Delivery)).scalars()]
    assert sorted(told) == [(job.id, "cancelled") for job in jobs(db, sweep)[1:]]


def test_no_question_about_a_sweep_looks_at_every_job_or_epoch(db: Database) -> None:
    if not db.is_sqlite:
        pytest.skip("PostgreSQL plans by the number of rows")
    sweep = create(db, search=HALVING, spec={"epochs": 4})
    statements: list[tuple[str, Any]] = []

    def note(*about: Any) -> None:
        statements.append((about[2], about[3]))

    event.listen(db._engine, "before_cursor_execute", note)
    try:
        standings.get(db, sweep)
        standings.listed(db, after="f" * 24)
        sweeps.settle(db)
        listing.jobs(db, Filter(sweep=sweep), caller=ANN)
        for _ in range(4):
            train(db, 0.5)
        before = len(statements)
        assert sweeps.settle(db) == [sweep]
    finally:
        event.remove(db._engine, "before_cursor_execute", note)
    asked = [each for each in statements[:6] + statements[before:] if each[0].startswith("SELECT")]
    assert len(asked) > 10
    with db.read() as session:
        raw = session.connection().connection.dbapi_connection
        assert raw is not None
        for statement, values in asked:
            plan = [row[3] for row in raw.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()]
            scanned = [step for step in plan if step.startswith("SCAN") and "anon_1" not in step]
            assert not scanned, (statement, plan)


def test_either_all_trials_are_queued_or_none(db: Database) -> None:
    submitting.enqueue(db, Spec(), Origin(ANN))
    before = everything(db)
    with pytest.raises(TooManyJobs, match=r"At most 4 jobs of yours may wait, and 1 do already: .* for 4 more"):
        create(db, caller=ANN, quota=Quota(100, 4))
    with pytest.raises(TooManyJobs, match="At most 4 jobs may wait"):
        create(db, caller=BOB, quota=Quota(4, 100))
    assert everything(db) == before
    create(db, caller=ANN, quota=Quota(5, 5))
    with pytest.raises(TooManyJobs, match="5 jobs of yours wait already, which are as many"):
        create(db, caller=ANN, quota=Quota(9, 5))


def test_sweeps_at_once_do_not_get_past_the_quota(db: Database) -> None:
    def one(_: int) -> bool:
        try:
            create(db, caller=ANN, quota=Quota(100, 11))
        except TooManyJobs:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(one, range(8))) == 2
    assert len(listing.jobs(db, limit=100)[0]) == 8


def test_the_same_request_twice_is_one_sweep(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: create(db, caller=ANN, key="key", quota=Quota(4, 4)), range(16)))
    assert len(ids) == 1
    assert len(listing.jobs(db, limit=100)[0]) == 4
    with pytest.raises(IdempotencyMismatch):
        create(db, {"seed": {"values": [0, 1, 2]}}, ANN, "key")
    assert create(db, caller=BOB, key="key") not in ids
    job = submitting.enqueue(db, Spec(), Origin(ANN, "key"))  # a job's key is another
    assert job.sweep_id is None


def test_what_does_not_suit_the_dataset_is_refused_where_it_stands(db: Database) -> None:
    datasets.delete(db, "fashion-mnist")
    make_ready(db, card(classes=["a", "b"]))
    numbers = Form.model_validate({"name": "ages", "task": "regression"})
    datasets.add_upload(db, new_id(), numbers)
    weights: dict[str, Any] = {"loss.class_weights": {"values": [None, [1.0, 2.0, 3.0]]}}
    before = everything(db)
    refused: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("#/spec/dataset/name", SEEDS, {"spec": {"dataset": {"name": "nothing"}}}),
        ("#/metric", SEEDS, {"metric": "test_mae"}),
        ("#/metric", SEEDS, {"metric": "test_top5_accuracy"}),
        ("#/spec/checkpoints/best_by", SEEDS, {"spec": {"checkpoints": {"best_by": "test_mae"}}}),
        ("#/parameters/loss.class_weights", weights, {}),
        ("#/spec/loss", SEEDS, {"spec": {"dataset": {"name": "ages"}}, "metric": "test_mae"}),
    ]
    for pointer, parameters, more in refused:
        assert pointer_of(lambda: create(db, parameters, **more)) == pointer, more  # noqa: B023
        assert pointer_of(lambda: sweeps.plan(db, form(parameters, **more))) == pointer, more  # noqa: B023
    losses = {"loss": {"values": [{"name": "mse"}, {"name": "nll"}]}}  # the second does not suit numbers
    of_ages: dict[str, Any] = {"spec": {"dataset": {"name": "ages"}}, "metric": "test_mae"}
    assert pointer_of(lambda: create(db, losses, **of_ages)) == "#/parameters/loss"
    assert everything(db) == before


def pointer_of(make: Callable[[], object]) -> str:
    with pytest.raises(SpecRefused) as caught:
        make()
    return caught.value.pointer


def test_a_plan_stores_nothing(db: Database) -> None:
    before = everything(db)
    planned = sweeps.plan(db, form(search=HALVING, spec={"epochs": 4}))
    assert len({*(each.parameters["seed"] for each in planned.trials)}) == 4
    assert [tuple(each) for each in planned.rungs] == [(4, 1), (2, 2), (1, 4)]
    assert sweeps.plan(db, form()).rungs == []
    assert everything(db) == before


def test_a_trial_is_as_good_as_its_best_epoch(db: Database) -> None:
    sweep = create(db, spec={"epochs": 4})
    assert (standings.get(db, sweep).best, stand(db, sweep, "value")) == (None, [None] * 4)
    train(db, 0.2, 0.9, 0.4, 0.3)
    train(db, 0.1, None)
    train(db, 0.9)
    job = claim(db)
    record(db, job, 1, test_accuracy=0.5)
    with db.write() as session:
        session.execute(text(f"UPDATE jobs SET epoch = 2, batch = 3, batches = 6 WHERE id = '{job.id}'"))
    found = standings.get(db, sweep)
    assert found.best == found.trials[0]  # and not the third, which is as good
    assert found.counts == {"succeeded": 3, "running": 1}
    assert stand(db, sweep, "value") == [0.9, 0.1, 0.9, 0.5]
    assert stand(db, sweep, "last") == [0.3, None, 0.9, 0.5]
    assert stand(db, sweep, "epoch") == [4, 2, 1, 1]
    assert stand(db, sweep, "progress") == [1.0, 1.0, 1.0, 0.375]
    assert stand(db, sweep, "parameters") == [{"seed": number} for number in range(4)]


def test_of_a_loss_less_is_better(db: Database) -> None:
    sweep = create(db, metric="train_loss")
    for loss in (0.5, 0.3, 0.4, 0.3):
        record(db, job := claim(db), 1, train_loss=loss)
        record(db, job, 2, train_loss=loss + 1)
    found = standings.get(db, sweep)
    assert found.best is not None
    assert (found.best.trial, found.best.value, found.best.last) == (2, 0.3, 1.3)


def test_parameters_are_shown_as_they_were_said_and_as_they_are_now(db: Database) -> None:
    parts = [{"name": "mlp", "hidden": [8]}, {"name": "cnn"}]
    sweep = create(db, {"model": {"values": parts}, "optimizer.lr": {"values": [1]}})
    assert stand(db, sweep, "parameters") == [{"model": each, "optimizer.lr": 1.0} for each in parts]
    first = jobs(db, sweep)[0]
    with db.write() as session:
        job = session.get_one(Job, first.id)
        job.spec = job.spec | {"optimizer": job.spec["optimizer"] | {"lr": 0.5}}
    assert stand(db, sweep, "parameters")[0]["optimizer.lr"] == 0.5


def test_nobody_elses_sweep_is_there(db: Database) -> None:
    sweep = create(db, caller=ANN)
    look: list[Callable[[Caller], object]] = [
        lambda caller: standings.get(db, sweep, caller),
        lambda caller: sweeps.cancel(db, sweep, caller),
        lambda caller: sweeps.delete(db, sweep, caller),
    ]
    before = everything(db)
    for each in look:
        with pytest.raises(NotFound):
            each(BOB)
    assert everything(db) == before
    for each in look:
        each(EVERYBODY)
    for unknown in ("0" * 24, "x", "\0"):
        with pytest.raises(NotFound):
            standings.get(db, unknown)


def test_pages_of_sweeps_neither_skip_nor_repeat(db: Database) -> None:
    mine = [create(db, caller=ANN) for _ in range(5)]
    create(db, caller=BOB)
    seen: list[str] = []
    after, has_more = None, True
    while has_more:
        page, has_more = standings.listed(db, after=after, limit=2, caller=ANN)
        seen += [each.row.id for each in page]
        after = seen[-1]
        create(db, caller=ANN)
    assert seen == mine[::-1]
    page, _ = standings.listed(db)
    assert (page[0].counts, page[0].status) == ({"queued": 4}, "running")


def test_a_sweep_has_finished_when_its_last_trial_has(db: Database) -> None:
    sweep = create(db)
    for outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.SUCCEEDED):
        train(db, 0.5, outcome=outcome)
        assert sweeps.settle(db) == []
    control.pause(db, jobs(db, sweep)[3].id)
    assert sweeps.settle(db) == []
    control.cancel(db, jobs(db, sweep)[3].id)
    assert standings.get(db, sweep).status == "running"
    assert sweeps.settle(db) == [sweep]
    assert standings.get(db, sweep).status == "finished"
    assert sweeps.settle(db) == []


def test_what_a_trial_does_afterwards_does_not_change_that(db: Database) -> None:
    sweep = halving(db, epochs=2)
    for accuracy in (0.1, 0.2, 0.3, 0.4):
        train(db, accuracy)
    sweeps.settle(db)
    for _ in range(2):
        train(db, 0.5)
    sweeps.settle(db)
    before = standings.get(db, sweep)
    assert (before.status, before.row.rung) == ("finished", 1)
    loser = jobs(db, sweep)[0].id
    control.extend(db, loser, 1)
    assert sweeps.settle(db) == []
    train(db, 0.9)
    assert sweeps.settle(db) == []
    found = standings.get(db, sweep)
    assert (found.status, found.row.rung, found.row.finished_at) == ("finished", 1, before.row.finished_at)
    assert found.best is not None
    assert found.best.job == loser


def course(db: Database, sweep: str, *rounds: list[float | None]) -> Whole:
    """Trains what is queued with these accuracies, and settles, again and again."""
    for accuracies in rounds:
        for accuracy in accuracies:
            assert sweeps.settle(db) == []
            train(db, accuracy)
        assert sweeps.settle(db) == [sweep]
    return standings.get(db, sweep)


def test_the_best_of_each_rung_are_trained_on(db: Database) -> None:
    sweep = halving(db)
    assert [job.spec["epochs"] for job in jobs(db, sweep)] == [1, 1, 1, 1]
    found = course(db, sweep, [0.3, 0.5, 0.5, 0.2])
    assert (found.row.rung, found.status) == (1, "running")
    assert stand(db, sweep, "epochs") == [1, 2, 2, 1]
    assert stand(db, sweep, "status") == ["succeeded", "queued", "queued", "succeeded"]
    found = course(db, sweep, [0.6, 0.6])
    assert stand(db, sweep, "epochs") == [1, 4, 2, 1]  # of equals the lower number
    assert found.row.rung == 2
    job = claim(db)
    for epoch in (3, 4):
        record(db, job, epoch, test_accuracy=0.7)
    finish(db, job, Outcome.SUCCEEDED)
    assert sweeps.settle(db) == [sweep]
    found = standings.get(db, sweep)
    assert (found.status, found.row.rung, found.counts) == ("finished", 2, {"succeeded": 4})
    assert found.best is not None
    assert (found.best.trial, found.best.epoch) == (2, 4)
    assert [each.reason for each in _transitions(db, job)][-4:-2] == ["attempt 2: succeeded", "extended by 2 epochs"]


def test_who_failed_was_cancelled_or_has_no_number_is_not_trained_on(db: Database) -> None:
    sweep = halving(db)
    train(db, 0.9, outcome=Outcome.FAILED)
    train(db, None)
    control.cancel(db, jobs(db, sweep)[2].id)
    train(db, 0.1)
    assert sweeps.settle(db) == [sweep]
    assert stand(db, sweep, "status") == ["failed", "succeeded", "cancelled", "queued"]
    train(db, 0.1, outcome=Outcome.FAILED)
    assert sweeps.settle(db) == [sweep]
    found = standings.get(db, sweep)
    assert (found.status, found.row.rung) == ("finished", 1)  # nobody is left


def test_who_was_left_behind_does_not_come_back(db: Database) -> None:
    sweep = halving(db)
    course(db, sweep, [0.1, 0.2, 0.3, 0.4])
    for _ in range(2):
        train(db, outcome=Outcome.FAILED)
    assert sweeps.settle(db) == [sweep]
    assert (standings.get(db, sweep).status, stand(db, sweep, "epochs")) == ("finished", [1, 1, 2, 2])


def test_a_sweep_all_of_whose_trials_failed_has_finished(db: Database) -> None:
    sweep = halving(db)
    for _ in range(4):
        train(db, outcome=Outcome.FAILED)
    assert sweeps.settle(db) == [sweep]
    found = standings.get(db, sweep)
    assert (found.status, found.row.rung, found.best) == ("finished", 0, None)


def test_a_trial_that_its_owner_trained_on_is_compared_by_as_many_epochs(db: Database) -> None:
    sweep = halving(db)
    first = train(db, 0.1)
    control.extend(db, first.id, 1)
    for accuracy in (0.9, 0.3, 0.4, 0.2):  # its second epoch comes first
        train(db, accuracy)
    assert stand(db, sweep, "value") == [0.9, 0.3, 0.4, 0.2]
    assert sweeps.settle(db) == [sweep]
    assert stand(db, sweep, "epochs") == [2, 2, 2, 1]
    assert stand(db, sweep, "status") == ["succeeded", "queued", "queued", "succeeded"]
    train(db, 0.5)
    train(db, 0.6)
    assert sweeps.settle(db) == [sweep]
    assert stand(db, sweep, "epochs") == [4, 2, 2, 1]  # now it has as many as they have, and is the best


def test_a_dataset_that_is_gone_ends_the_sweep(db: Database) -> None:
    sweep = halving(db)
    for accuracy in (0.1, 0.2, 0.3, 0.4):
        train(db, accuracy)
    datasets.delete(db, "fashion-mnist")
    before = [job.spec for job in jobs(db, sweep)]
    assert sweeps.settle(db) == [sweep]
    assert (standings.get(db, sweep).status, stand(db, sweep, "status")) == ("finished", ["succeeded"] * 4)
    assert [job.spec for job in jobs(db, sweep)] == before


def test_however_many_settle_at_once_a_rung_begins_once(db: Database) -> None:
    for _ in range(3):
        sweep = halving(db, epochs=8)
        for accuracy in (0.1, 0.2, 0.3, 0.4):
            train(db, accuracy)
        gate = threading.Barrier(6)

        def settle(_: int) -> list[str]:
            gate.wait()  # noqa: B023
            return sweeps.settle(db)

        with ThreadPoolExecutor(6) as pool:
            assert [each for found in pool.map(settle, range(6)) for each in found] == [sweep]
        assert standings.get(db, sweep).row.rung == 1
        assert stand(db, sweep, "epochs") == [1, 1, 2, 2]
        sweeps.cancel(db, sweep)


def test_who_has_seen_an_older_rung_does_nothing(db: Database) -> None:
    sweep = halving(db)
    course(db, sweep, [0.1, 0.2, 0.3, 0.4])
    train(db, 0.5)
    train(db, 0.6)
    before = everything(db)
    assert sweeps._settle(db, sweep, 0) is False  # as one that was frozen between reading and writing
    assert everything(db) == before
    assert sweeps._settle(db, sweep, 1) is True


def test_a_worker_that_dies_while_it_begins_a_rung_has_begun_nothing(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = halving(db)
    for accuracy in (0.1, 0.2, 0.3, 0.4):
        train(db, accuracy)
    before = everything(db)
    lengthen = control.lengthen

    def dies(session: Any, specs: Any) -> None:
        lengthen(session, specs[:1])
        session.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(control, "lengthen", dies)
        with pytest.raises(KeyboardInterrupt):
            sweeps.settle(db)
    assert everything(db) == before
    assert sweeps.settle(db) == [sweep]
    assert stand(db, sweep, "epochs") == [1, 1, 2, 2]


def test_to_cancel_a_sweep_cancels_what_has_not_ended(db: Database) -> None:
    sweep = halving(db)
    train(db, 0.5)
    under_way = claim(db)
    control.pause(db, jobs(db, sweep)[3].id)
    assert sweeps.cancel(db, sweep) is True
    assert stand(db, sweep, "status") == ["succeeded", "cancelling", "cancelled", "cancelled"]
    found = standings.get(db, sweep)
    assert (found.status, found.row.finished_at) == ("cancelled", None)
    assert sweeps.settle(db) == []
    assert not queue.get(db, under_way.id).stop_now
    assert sweeps.cancel(db, sweep, at_once=True) is True
    assert queue.get(db, under_way.id).stop_now
    finish(db, under_way, Outcome.RELEASED)
    assert sweeps.settle(db) == [sweep]
    found = standings.get(db, sweep)
    assert (found.status, found.row.rung) == ("cancelled", 0)  # the first is not trained on
    assert found.row.finished_at is not None
    assert sweeps.cancel(db, sweep) is False
    assert standings.get(db, sweep).row.finished_at == found.row.finished_at


def test_a_sweep_that_was_cancelled_is_not_cancelled_again(db: Database) -> None:
    sweep = create(db)
    sweeps.cancel(db, sweep)
    control.retry(db, jobs(db, sweep)[0].id)
    before = everything(db)
    assert sweeps.cancel(db, sweep, at_once=True) is False
    assert everything(db) == before


def test_a_sweep_with_nothing_under_way_is_cancelled_at_once(db: Database) -> None:
    sweep = create(db)
    assert sweeps.cancel(db, sweep) is False
    found = standings.get(db, sweep)
    assert (found.counts, found.row.finished_at is not None) == ({"cancelled": 4}, True)
    assert sweeps.settle(db) == []


def test_a_sweep_that_has_finished_cannot_be_cancelled(db: Database) -> None:
    sweep = create(db, {"seed": {"values": [1]}})
    train(db, 0.5)
    sweeps.settle(db)
    before = everything(db)
    with pytest.raises(Conflict, match="has finished"):
        sweeps.cancel(db, sweep)
    assert everything(db) == before


def test_a_sweep_is_deleted_with_all_its_jobs_and_nothing_else(db: Database) -> None:
    other = running(db)
    record(db, other, 1)
    aliases.put(db, "before", other.id, "last")
    before = everything(db)
    sweep = create(db, spec={"labels": {"team": "a"}})
    ids = [job.id for job in jobs(db, sweep)]
    with pytest.raises(Conflict, match="Trial 1 is queued"):
        sweeps.delete(db, sweep)
    for _ in range(4):
        train(db, 0.5)
    aliases.put(db, "before", ids[1], "last")
    with pytest.raises(Conflict, match=f"The alias before points at the job {ids[1]} "):
        sweeps.delete(db, sweep)
    assert len(jobs(db, sweep)) == 4
    aliases.put(db, "before", other.id, "last")
    assert sweeps.delete(db, sweep) == ids
    after = everything(db)
    assert after.pop("aliases") != before.pop("aliases")  # it cannot be rolled back to what is gone
    assert after == before
    with pytest.raises(Conflict):
        aliases.rollback(db, "before")


def test_a_sweep_goes_with_the_last_of_its_trials(db: Database) -> None:
    before = everything(db)
    sweep = create(db, {"seed": {"values": [1, 2]}})
    for _ in range(2):
        train(db, 0.5)
    first, second = jobs(db, sweep)
    control.delete(db, first.id)
    assert sweeps.settle(db) == [sweep]
    assert [each.trial for each in standings.get(db, sweep).trials] == [2]
    control.delete(db, second.id)
    assert everything(db) == before


def test_two_that_delete_the_last_trials_at_once_leave_no_sweep(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = create(db, {"seed": {"values": [1, 2]}})
    for _ in range(2):
        train(db, 0.5)
    gate, let_go = threading.Barrier(2), aliases.let_go

    def meets(session: Any, job_id: str) -> None:
        with suppress(threading.BrokenBarrierError):  # they must not get here both
            gate.wait(0.3)
        let_go(session, job_id)

    monkeypatch.setattr(aliases, "let_go", meets)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: control.delete(db, job.id), jobs(db, sweep)))
    with pytest.raises(NotFound):
        standings.get(db, sweep)


def test_old_trials_take_their_sweep_with_them(db: Database) -> None:
    before = everything(db)
    sweep = create(db, {"seed": {"values": [1, 2]}})
    train(db, 0.5)
    named = train(db, 0.5)
    assert retention.delete_old(db, -1) == []  # it may have them trained on
    assert sweeps.settle(db) == [sweep]
    aliases.put(db, "kept", named.id, "last")
    assert len(retention.delete_old(db, -1)) == 1
    assert [each.job for each in standings.get(db, sweep).trials] == [named.id]
    aliases.remove(db, "kept")
    assert retention.delete_old(db, -1) == [named.id]
    assert everything(db) == before


def test_the_trials_of_a_sweep_that_has_not_finished_stay_however_old_they_are(db: Database) -> None:
    sweep = halving(db)
    for accuracy in (0.1, 0.2, 0.3):
        train(db, accuracy)
    assert retention.delete_old(db, -1) == []
    train(db, 0.4)
    assert retention.delete_old(db, -1) == []
    assert sweeps.settle(db) == [sweep]
    assert stand(db, sweep, "epochs") == [1, 1, 2, 2]


def test_a_halving_goes_on_without_a_trial_that_was_deleted(db: Database) -> None:
    sweep = halving(db)
    best = [train(db, accuracy) for accuracy in (0.1, 0.2, 0.3, 0.4)][3]
    control.delete(db, best.id)
    assert sweeps.settle(db) == [sweep]
    assert [(each.trial, each.epochs) for each in standings.get(db, sweep).trials] == [(1, 1), (2, 2), (3, 2)]


def test_a_sweep_without_an_end_is_found_by_an_index(db: Database) -> None:
    """Asked each time that a job ends: no sweep that has finished is looked at."""
    if not db.is_sqlite:
        pytest.skip("PostgreSQL plans by the number of rows")
    with db.read() as session:
        plan = session.execute(text("EXPLAIN QUERY PLAN SELECT id FROM sweeps WHERE finished_at IS NULL ORDER BY id"))
        assert "sweeps_by_end (finished_at=?)" in str(plan.all())
        assert session.get(Sweep, "0" * 24) is None
