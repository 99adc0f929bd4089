"""The supervisor's decisions, with attempts that are no processes, on a real database."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

import worker.jobs.settings
import worker.lanes
import worker.supervisor
from tests.worker.jobs.making import card, make_ready, progress, result, saved
from worker.jobs import control, datasets, queue, records, submitting, versions
from worker.jobs.attempt_logs import training_log
from worker.jobs.db import Database
from worker.jobs.errors import BadArchive
from worker.jobs.failures import Failure
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.leftovers import checkpoints_folder
from worker.jobs.processes import EXIT_DONE, EXIT_STOPPED, EXIT_UNFIT_PARENT
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.states import DatasetStatus, Outcome, Status
from worker.supervisor import Judge, Supervisor

Supervise = Callable[[], AbstractContextManager[Supervisor]]


class FakeRunning:
    """An attempt that does as it is told: `on_stop` is its exit code when asked to stop, None if it does not listen."""

    def __init__(self, on_stop: int | None) -> None:
        self.exit_code: int | None = None
        self.pid, self.on_stop, self.killed = 1, on_stop, False
        self.still, self.dumps, self.stopped = 0.0, 0, False

    def seconds_still(self) -> float:
        return self.still

    def dump_stacks(self) -> None:
        self.dumps += 1

    def stop(self) -> None:
        self.stopped, self.exit_code = True, self.on_stop

    def kill(self) -> None:
        if self.exit_code is None:
            self.exit_code, self.killed = -signal.SIGKILL, True


class FakeLauncher:
    def __init__(self) -> None:
        self.started: dict[tuple[str, int], FakeRunning] = {}
        self.error: Exception | None = None
        self.on_stop: int | None = EXIT_STOPPED

    def warm_up(self) -> None:
        pass

    def train(self, job_id: str, attempt: int) -> FakeRunning:
        if self.error is not None:
            raise self.error
        self.started[job_id, attempt] = FakeRunning(self.on_stop)
        return self.started[job_id, attempt]

    prepare = train


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, no GPU."""
    for module in (worker.lanes, worker.jobs.settings):
        monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(worker.jobs.settings, "_DEVICES", tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, lease_seconds=1, heartbeat_seconds=0.1, poll_seconds=0.005, cancel_seconds=0.2)


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    db = Database(settings.resolved_database_url)
    db.migrate()
    make_ready(db)
    yield db
    db.close()


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # only a main thread may
    return FakeLauncher()


@pytest.fixture(autouse=True)
def turns(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Waits for so many turns of the supervisor: time enough to start whatever it would."""
    taken = 0

    def take(_: object, seconds: float) -> None:
        nonlocal taken
        taken += 1
        time.sleep(seconds)

    def wait(count: int) -> None:
        goal = taken + count
        until(lambda: taken >= goal)

    monkeypatch.setattr(worker.supervisor, "wait_any", take)
    return wait


@contextmanager
def running_supervisor(settings: Settings, db: Database, launcher: FakeLauncher) -> Iterator[Supervisor]:
    """Runs a supervisor beside the test; stops it as SIGTERM would."""
    supervisor = Supervisor(settings, db, launcher)  # type: ignore[arg-type]
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor._on_signal(signal.SIGTERM, None)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def supervise(settings: Settings, db: Database, launcher: FakeLauncher) -> Supervise:
    return lambda: running_supervisor(settings, db, launcher)


def until(true: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def outcomes(db: Database, job_id: str) -> list[str | None]:
    return [each.outcome for each in records.attempts(db, job_id)]


def test_an_attempt_that_settled_itself_is_left_alone(
    db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    with supervise():
        until(lambda: launcher.started)
        queue.finish(db, job_id, 1, Outcome.SUCCEEDED, max_attempts=3)
        launcher.started[job_id, 1].exit_code = EXIT_DONE
    assert queue.get(db, job_id).status == Status.SUCCEEDED
    assert outcomes(db, job_id) == ["succeeded"]


def test_a_crash_is_tried_again_and_says_where_its_log_is(
    db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    with supervise():
        for attempt, code in ((1, 70), (2, -11), (3, 255)):
            until(lambda n=attempt: (job_id, n) in launcher.started)  # type: ignore[misc]
            launcher.started[job_id, attempt].exit_code = code
        until(lambda: queue.get(db, job_id).status == Status.FAILED)
    assert outcomes(db, job_id) == ["crashed", "killed", "crashed"]
    errors = [each.error or {} for each in records.attempts(db, job_id)]
    assert errors[0]["hint"] == f"The attempt's log may say more: GET /jobs/{job_id}/logs?attempt=1"
    assert errors[1]["signal"] == "SIGSEGV"
    assert "preloaded process" in errors[2]["message"]


def test_the_end_of_its_log_goes_with_an_attempt_that_died(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    log = settings.data_dir / training_log(job_id, 1)
    log.parent.mkdir(parents=True)
    log.write_text("first\nlast words\n")
    with supervise():
        until(lambda: launcher.started)
        launcher.started[job_id, 1].exit_code = -signal.SIGKILL
        until(lambda: (job_id, 2) in launcher.started)
    error = records.attempts(db, job_id)[0].error or {}
    assert error["log_tail"].endswith("last words")
    assert error["suggestion"] == {"accumulation": 2}  # perhaps it was the memory


def test_an_attempt_in_which_nothing_moves_says_where_and_is_killed_and_tried_again(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise, turns: Callable[[int], None]
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    with supervise():
        until(lambda: launcher.started)
        first = launcher.started[job_id, 1]
        first.still = settings.stall_seconds - 1
        turns(3)
        assert first.dumps == 0
        first.still = settings.stall_seconds + 1
        until(lambda: (job_id, 2) in launcher.started)
        assert first.dumps == 1
        assert first.killed
        launcher.started[job_id, 2].exit_code = 70
        until(lambda: (job_id, 3) in launcher.started)
    stalled, crashed, _ = records.attempts(db, job_id)
    assert [stalled.outcome, crashed.outcome] == ["stalled", "crashed"]
    assert (stalled.error or {})["code"] == "stalled"
    assert "300 seconds" in (stalled.error or {})["message"]


def test_what_an_attempt_leaves_is_removed_when_it_has_left(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    folder = settings.data_dir / checkpoints_folder(job_id)
    folder.mkdir(parents=True)
    left = [".epoch-000001-attempt-1.safetensors.writing", "epoch-000001-attempt-1.state.pt"]
    for name in (*left, "epoch-000001-attempt-2.state.pt", "epoch-000001-attempt-1.safetensors"):
        (folder / name).touch()
    with supervise():
        until(lambda: launcher.started)
        kept = saved(1, 1, path=str(checkpoints_folder(job_id) / "epoch-000001-attempt-1.safetensors"))
        records.record_epoch(db, job_id, 1, result(1), kept, progress(1))
        control.cancel(db, job_id, at_once=True)
        until(lambda: queue.get(db, job_id).status == Status.CANCELLED)
    assert {path.name for path in folder.iterdir()} == {
        "epoch-000001-attempt-1.safetensors",  # a row names it
        "epoch-000001-attempt-2.state.pt",  # somebody else's
    }


def test_a_paused_attempt_is_asked_to_stop_and_its_job_waits(
    db: Database, launcher: FakeLauncher, supervise: Supervise, turns: Callable[[int], None]
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    with supervise():
        until(lambda: launcher.started)
        control.pause(db, job_id)
        until(lambda: queue.get(db, job_id).status == Status.PAUSED)
        turns(3)
        assert launcher.started.keys() == {(job_id, 1)}
        control.resume(db, job_id)
        until(lambda: (job_id, 2) in launcher.started)
    assert outcomes(db, job_id)[0] == "paused"


def test_a_job_cancelled_at_once_is_killed_without_waiting(
    settings: Settings, db: Database, launcher: FakeLauncher
) -> None:
    launcher.on_stop = None  # it would not listen
    patient = settings.model_copy(update={"cancel_seconds": 100.0})
    job_id = submitting.enqueue(db, Spec()).id
    with running_supervisor(patient, db, launcher) as supervisor:
        until(lambda: launcher.started)
        control.cancel(db, job_id)
        until(lambda: launcher.started[job_id, 1].stopped)
        assert not launcher.started[job_id, 1].killed
        control.cancel(db, job_id, at_once=True)
        until(lambda: queue.get(db, job_id).status == Status.CANCELLED)
        supervisor._on_signal(signal.SIGTERM, None)
    assert launcher.started[job_id, 1].killed


# Who judges whether another's lease ran out


def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"monotonic": 1000.0, "time": 5000.0}
    told = SimpleNamespace(monotonic=lambda: now["monotonic"], time=lambda: now["time"])
    monkeypatch.setattr("worker.supervisor.time", told)
    return now


def pass_time(now: dict[str, float], steady: float, wall: float | None = None) -> None:
    now["monotonic"] += steady
    now["time"] += steady if wall is None else wall


def test_who_keeps_his_own_time_judges_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clocks(monkeypatch)
    judge = Judge(Settings(heartbeat_seconds=5, lease_seconds=30))
    for _ in range(20):
        pass_time(now, 6)
        assert judge.may()


@pytest.mark.parametrize(("steady", "wall"), [(20, 20), (5, 3605), (5, -3595), (0.1, 60)])
def test_who_was_kept_from_it_waits_for_a_lease(monkeypatch: pytest.MonkeyPatch, steady: float, wall: float) -> None:
    """A database that was locked, a clock that was set forwards or back, a machine that slept."""
    now = clocks(monkeypatch)
    judge = Judge(Settings(heartbeat_seconds=5, lease_seconds=30))
    pass_time(now, steady, wall)
    assert not judge.may()
    for _ in range(5):
        pass_time(now, 5)
        assert not judge.may()
    pass_time(now, 6)
    assert judge.may()


@pytest.mark.parametrize("listens", [True, False])
def test_a_cancelled_attempt_is_asked_to_stop_and_killed_when_it_does_not_listen(
    db: Database, launcher: FakeLauncher, supervise: Supervise, listens: bool
) -> None:
    launcher.on_stop = EXIT_STOPPED if listens else None
    job_id = submitting.enqueue(db, Spec()).id
    with supervise():
        until(lambda: launcher.started)
        control.cancel(db, job_id)
        until(lambda: queue.get(db, job_id).status == Status.CANCELLED)
    assert launcher.started[job_id, 1].killed is not listens
    assert outcomes(db, job_id) == ["cancelled"]  # our own SIGKILL is no failure of the job
    assert all("memory" not in (step.reason or "") for step in records.transitions(db, job_id))


@pytest.mark.parametrize("listens", [True, False])
def test_a_stop_gives_jobs_back_without_counting_the_attempt(
    db: Database, launcher: FakeLauncher, supervise: Supervise, listens: bool
) -> None:
    launcher.on_stop = EXIT_STOPPED if listens else None
    job_id = submitting.enqueue(db, Spec()).id
    with supervise():
        until(lambda: launcher.started)
    assert queue.get(db, job_id).status == Status.QUEUED
    assert outcomes(db, job_id) == ["released"]


def test_an_attempt_whose_job_was_taken_away_is_killed(
    db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    with supervise() as supervisor:
        until(lambda: launcher.started)
        queue.rescue(db, max_attempts=3, dead_workers=[supervisor._id])
        until(lambda: launcher.started[job_id, 1].killed)
        until(lambda: (job_id, 2) in launcher.started)  # the queue goes on
    assert outcomes(db, job_id) == ["worker_lost", "released"]


def test_a_worker_that_cannot_launch_leaves_and_no_job_pays_for_it(
    settings: Settings, db: Database, launcher: FakeLauncher
) -> None:
    launcher.error = EOFError()
    job_id = submitting.enqueue(db, Spec()).id
    with pytest.raises(RuntimeError, match="cannot be started"):
        Supervisor(settings, db, launcher).run()  # type: ignore[arg-type]
    assert queue.get(db, job_id).status == Status.QUEUED
    assert outcomes(db, job_id) == ["released"]


def test_a_worker_whose_preloaded_process_must_not_fork_leaves_and_no_job_pays_for_it(
    settings: Settings, db: Database, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submitting.enqueue(db, Spec()).id
    start = launcher.train

    def unfit(job_id: str, attempt: int) -> FakeRunning:
        running = start(job_id, attempt)
        running.exit_code = EXIT_UNFIT_PARENT
        return running

    monkeypatch.setattr(launcher, "train", unfit)
    with pytest.raises(RuntimeError, match="not fit to fork"):
        Supervisor(settings, db, launcher).run()  # type: ignore[arg-type]
    assert outcomes(db, job_id) == ["released"]


def test_a_database_that_is_away_for_a_moment_does_not_end_the_worker(
    db: Database, launcher: FakeLauncher, supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.supervisor, "_DATABASE_RETRY_SECONDS", 0.01)
    real, failures = queue.has_waiting, iter(range(3))

    def flaky(*arguments: Any, **left: Any) -> bool:
        if next(failures, None) is not None:
            raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))
        return real(*arguments, **left)

    monkeypatch.setattr(queue, "has_waiting", flaky)
    submitting.enqueue(db, Spec())
    with supervise():
        until(lambda: launcher.started)


def test_leases_are_renewed_and_a_dead_workers_jobs_are_taken_over_at_once(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    lost = submitting.enqueue(db, Spec()).id
    assert queue.claim(db, "dead", 3600) is not None
    (settings.data_dir / "workers").mkdir()
    (settings.data_dir / "workers" / "dead.lock").touch()  # nobody holds it
    with supervise():
        until(lambda: (lost, 2) in launcher.started)
        first = queue.get(db, lost).lease_expires_at
        assert first is not None
        until(lambda: (queue.get(db, lost).lease_expires_at or first) > first)
    assert outcomes(db, lost) == ["worker_lost", "released"]
    assert not (settings.data_dir / "workers" / "dead.lock").exists()


def threads(db: Database, *job_ids: str) -> list[int | None]:
    return [queue.get(db, job_id).threads for job_id in job_ids]


def test_two_jobs_share_the_cores_and_a_third_waits(
    db: Database, launcher: FakeLauncher, supervise: Supervise, turns: Callable[[int], None]
) -> None:
    first, second, third = (submitting.enqueue(db, Spec()).id for _ in range(3))
    with supervise():
        until(lambda: len(launcher.started) == 2)
        turns(3)
        assert launcher.started.keys() == {(first, 1), (second, 1)}
        assert threads(db, first, second, third) == [1, 1, None]
        queue.finish(db, first, 1, Outcome.SUCCEEDED, max_attempts=3)
        launcher.started[first, 1].exit_code = EXIT_DONE
        until(lambda: (third, 1) in launcher.started)
    assert threads(db, third) == [1]


def test_a_job_alone_has_all_cores_and_the_next_one_waits_for_them(
    db: Database, launcher: FakeLauncher, supervise: Supervise, turns: Callable[[int], None]
) -> None:
    first = submitting.enqueue(db, Spec()).id
    with supervise():
        until(lambda: launcher.started)
        second = submitting.enqueue(db, Spec()).id
        turns(3)
        assert launcher.started.keys() == {(first, 1)}
        launcher.started[first, 1].exit_code = -signal.SIGSEGV  # its cores are free, and its next attempt wants them
        until(lambda: (first, 2) in launcher.started)
        turns(3)
        assert (second, 1) not in launcher.started
        control.cancel(db, first)
        until(lambda: (second, 1) in launcher.started)
    assert threads(db, first, second) == [2, 2]


def test_a_job_that_asks_for_more_than_the_machine_has_runs_alone(
    db: Database, launcher: FakeLauncher, supervise: Supervise, turns: Callable[[int], None]
) -> None:
    small, big, other = (submitting.enqueue(db, Spec(threads=count)).id for count in (1, 8, 1))
    with supervise():
        until(lambda: launcher.started)
        turns(3)
        assert launcher.started.keys() == {(small, 1)}
        control.cancel(db, small)
        until(lambda: (big, 1) in launcher.started)
        turns(3)
        assert (other, 1) not in launcher.started
        control.cancel(db, big)
        until(lambda: (other, 1) in launcher.started)
    assert threads(db, small, big, other) == [1, 2, 1]


def test_slots_that_were_set_bound_the_jobs(
    settings: Settings, db: Database, launcher: FakeLauncher, turns: Callable[[int], None]
) -> None:
    ids = [submitting.enqueue(db, Spec()).id for _ in range(2)]
    with running_supervisor(settings.model_copy(update={"slots": 1}), db, launcher):
        until(lambda: launcher.started)
        turns(3)
        assert launcher.started.keys() == {(ids[0], 1)}
    assert threads(db, *ids) == [2, None]


def waiting_upload(db: Database, settings: Settings) -> str:
    dataset_id = new_id()
    archive = settings.data_dir / versions.archive_path(dataset_id)
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(b"PK")
    return datasets.add_upload(db, dataset_id, Form(name="shoes")).id


def test_a_dataset_is_prepared_beside_a_training(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    job_id, dataset_id = submitting.enqueue(db, Spec()).id, waiting_upload(db, settings)
    waiting_upload(db, settings)
    with supervise():
        until(lambda: len(launcher.started) == 2)
        assert launcher.started.keys() == {(job_id, 1), (dataset_id, 1)}  # one dataset at a time
        datasets.set_ready(db, dataset_id, 1, card(name="shoes"))
        launcher.started[dataset_id, 1].exit_code = EXIT_DONE
        until(lambda: len(launcher.started) == 3)
    assert versions.by_id(db, dataset_id).status == DatasetStatus.READY


def test_a_dataset_that_kills_its_attempts_is_invalid_and_fails_the_jobs_that_waited(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    dataset_id = waiting_upload(db, settings)
    job_id = submitting.enqueue(db, Spec.model_validate({"dataset": {"name": "shoes"}})).id
    with supervise():
        for attempt in (1, 2, 3):
            until(lambda n=attempt: (dataset_id, n) in launcher.started)  # type: ignore[misc]
            launcher.started[dataset_id, attempt].exit_code = -signal.SIGSEGV
        until(lambda: queue.get(db, job_id).status == Status.FAILED)
    found = versions.by_id(db, dataset_id)
    assert (found.status, (found.error or {})["signal"]) == (DatasetStatus.INVALID, "SIGSEGV")
    assert (found.error or {})["message"] == "The preparing process was killed by SIGSEGV."
    assert queue.get(db, job_id).error == found.error
    assert (job_id, 1) not in launcher.started
    assert not (settings.data_dir / versions.archive_path(dataset_id)).exists()


@pytest.mark.parametrize("listens", [True, False])
def test_a_stop_gives_a_dataset_back_and_keeps_its_archive(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise, listens: bool
) -> None:
    launcher.on_stop = EXIT_STOPPED if listens else None
    dataset_id = waiting_upload(db, settings)
    with supervise():
        until(lambda: launcher.started)
    found = versions.by_id(db, dataset_id)
    assert (found.status, found.lost) == (DatasetStatus.UPLOADED, 0)
    assert (settings.data_dir / versions.archive_path(dataset_id)).exists()


def test_a_deleted_dataset_is_not_prepared_any_further(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    dataset_id = waiting_upload(db, settings)
    with supervise():
        until(lambda: launcher.started)
        datasets.delete(db, "shoes")
        until(lambda: launcher.started[dataset_id, 1].killed)
    assert versions.states(db)[dataset_id] is DatasetStatus.DELETED


def test_a_dead_workers_dataset_is_taken_over_at_once(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    dataset_id = waiting_upload(db, settings)
    assert datasets.claim(db, "dead", 3600) is not None
    (settings.data_dir / "workers").mkdir()
    (settings.data_dir / "workers" / "dead.lock").touch()  # nobody holds it
    with supervise():
        until(lambda: (dataset_id, 2) in launcher.started)
    assert versions.by_id(db, dataset_id).lost == 1


def test_jobs_whose_dataset_is_invalid_fail_even_if_nobody_saw_it_end(
    settings: Settings, db: Database, launcher: FakeLauncher, supervise: Supervise
) -> None:
    dataset_id = waiting_upload(db, settings)
    job_id = submitting.enqueue(db, Spec.model_validate({"dataset": {"name": "shoes"}})).id
    assert datasets.claim(db, "killed since", 3600) is not None
    datasets.set_invalid(db, dataset_id, 1, Failure.of(BadArchive()))
    with supervise():
        until(lambda: queue.get(db, job_id).status == Status.FAILED)
    assert not (settings.data_dir / versions.archive_path(dataset_id)).exists()
