"""The tables. A model is always a network here, so these rows are called by what they are: jobs, attempts, ...

The database guards the invariants by named CHECK constraints; `queue.py`, `control.py`, `retention.py`, `records.py`
(with `kept.py`), `datasets.py`, `aliases.py`, `parities.py`, `imports.py`, `deliveries.py`, `sweeps.py`, `sinks.py`,
`keys.py` and `workers.py` write them.

`owner` says whose a row is: the id of an API key, or "" for the house, which is whoever uses an open service or a key
with the scope `admin`.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, ForeignKey, Index, LargeBinary, String
from sqlmodel import Field, SQLModel

from . import columns
from .columns import HOUSE, one_of
from .states import OWNED, TERMINAL, DatasetStatus, DeliveryStatus, EventKind, Outcome, Phase, Resume, SinkKind, Status

_TERMINAL_SQL = ", ".join(repr(str(status)) for status in TERMINAL)
_OWNED_SQL = ", ".join(repr(str(status)) for status in OWNED)


class Dataset(SQLModel, table=True):
    """One version of a dataset. Once ready it is immutable."""

    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint(one_of("status", DatasetStatus), name="datasets_status_known"),
        CheckConstraint("(worker_id IS NOT NULL) = (status = 'preparing')", name="datasets_worker_iff_preparing"),
        CheckConstraint("(worker_id IS NULL) = (lease_expires_at IS NULL)", name="datasets_lease_iff_worker"),
        CheckConstraint("status <> 'ready' OR card IS NOT NULL", name="datasets_card_if_ready"),
        CheckConstraint("(status = 'invalid') = (error IS NOT NULL)", name="datasets_error_iff_invalid"),
        Index("datasets_by_name", "owner", "name", "version", unique=True),
        Index("datasets_by_status", "status", "id"),
    )

    id: str = Field(primary_key=True, max_length=64)
    owner: str = columns.owner()
    name: str = Field(max_length=64)
    version: int  # from 1 within the owner's name
    form: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))  # null: built in
    status: str = Field(default=DatasetStatus.UPLOADED, max_length=16)
    created_at: datetime = columns.time(nullable=False)
    finished_at: datetime | None = columns.time()  # when it became ready or invalid
    attempt: int = 0  # the number of the current or last attempt to prepare it; the fence of every worker's write
    lost: int = 0  # attempts that died
    worker_id: str | None = Field(default=None, max_length=64)
    lease_expires_at: datetime | None = columns.time()
    step: str | None = Field(default=None, max_length=16)  # progress: what preparing is doing,
    done: int = 0  # with so many files or pictures
    total: int = 0
    card: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))  # without findings,
    findings: list[Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))  # which may be long
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))


class Sweep(SQLModel, table=True):
    """Many jobs of one spec, with some of its fields varied: each of them is a trial."""

    __tablename__ = "sweeps"
    __table_args__ = (
        Index("sweeps_by_owner", "owner", "id"),
        Index("sweeps_by_end", "finished_at", "id"),
        Index("sweeps_by_idempotency_key", "owner", "idempotency_key", unique=True),
    )

    id: str = Field(primary_key=True, max_length=64)
    owner: str = columns.owner()
    name: str | None = Field(default=None, max_length=100)
    form: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))  # what was asked for: a `spec.sweep.Form`
    created_at: datetime = columns.time(nullable=False)
    finished_at: datetime | None = columns.time()  # when nothing more was to be trained
    is_cancelled: bool = False  # no further rung begins
    rung: int = 0  # of successive halving: how often the best have been picked
    idempotency_key: str | None = Field(default=None, max_length=255)  # as of a job
    request_sha256: str | None = Field(default=None, max_length=64)


class Job(SQLModel, table=True):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(one_of("status", Status), name="jobs_status_known"),
        CheckConstraint(f"phase IS NULL OR {one_of('phase', Phase)}", name="jobs_phase_known"),
        CheckConstraint(
            f"(finished_at IS NOT NULL) = (status IN ({_TERMINAL_SQL}))", name="jobs_finished_at_iff_terminal"
        ),
        CheckConstraint(f"(worker_id IS NOT NULL) = (status IN ({_OWNED_SQL}))", name="jobs_worker_iff_owned"),
        CheckConstraint("(worker_id IS NULL) = (lease_expires_at IS NULL)", name="jobs_lease_iff_worker"),
        Index("jobs_by_status", "status", "id"),
        Index("jobs_by_dataset", "dataset_id"),
        Index("jobs_by_owner", "owner", "id"),
        Index("jobs_by_owner_and_status", "owner", "status", "id"),
        Index("jobs_by_end", "status", "finished_at", "id"),
        Index("jobs_by_turn", "status", "owner", "priority", "id"),
        Index("jobs_by_idempotency_key", "owner", "idempotency_key", unique=True),
        Index("jobs_by_sweep", "sweep_id", "trial", unique=True),
        CheckConstraint("(sweep_id IS NULL) = (trial IS NULL)", name="jobs_trial_iff_sweep"),
    )

    id: str = Field(primary_key=True, max_length=64)
    owner: str = columns.owner()
    name: str | None = Field(default=None, max_length=100)
    labels: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    dataset_id: str | None = Field(default=None, foreign_key="datasets.id", max_length=64)  # the version it trains on
    status: str = Field(default=Status.QUEUED, max_length=16)
    phase: str | None = Field(default=None, max_length=16)
    created_at: datetime = columns.time(nullable=False)
    started_at: datetime | None = columns.time()
    finished_at: datetime | None = columns.time()
    attempt: int = 0  # the number of the current or last attempt; the fence of every worker's write
    forgiven: int = columns.added_later(
        0
    )  # attempts up to this one do not count against max_attempts: it was retried then
    stop_now: bool = columns.added_later(default=False)  # it is cancelled without saving: kill the attempt
    last_seq: int = 0  # of the newest metrics row; never goes back
    threads: int | None = None  # decided at the first claim and kept: they are part of the result's bits
    worker_id: str | None = Field(default=None, max_length=64)
    lease_expires_at: datetime | None = columns.time()
    epoch: int = 0  # progress: the epoch at work, from 1
    batch: int = 0
    batches: int = 0
    samples_per_second: float | None = None
    eta_seconds: float | None = None
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    provenance: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    imported: bool = columns.added_later(
        default=False
    )  # it came as a bundle: trained elsewhere, without a dataset here
    priority: int = columns.added_later(0)  # among its owner's jobs; more is sooner
    idempotency_key: str | None = Field(default=None, max_length=255)  # the client's name for the request that made it
    request_sha256: str | None = Field(default=None, max_length=64)  # of what was asked for with that key
    request_id: str | None = Field(default=None, max_length=32)  # of the request that made it, as the logs name it
    sweep_id: str | None = Field(default=None, foreign_key="sweeps.id", max_length=64)
    trial: int | None = None  # its number in the sweep, from 1


class Label(SQLModel, table=True):
    """A job's label once more, to be found by."""

    __tablename__ = "labels"
    __table_args__ = (Index("labels_by_value", "key", "value", "job_id"),)

    job_id: str = columns.of_job()
    key: str = Field(primary_key=True, max_length=100)
    value: str = Field(max_length=100)


class Turn(SQLModel, table=True):
    """When an owner's job was last begun: the others' turns come first then."""

    __tablename__ = "turns"

    owner: str = Field(primary_key=True, max_length=64)
    at: datetime = columns.time(nullable=False)


class Attempt(SQLModel, table=True):
    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint(f"outcome IS NULL OR {one_of('outcome', Outcome)}", name="attempts_outcome_known"),
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="attempts_ended_at_iff_outcome"),
        CheckConstraint(f"resume IS NULL OR {one_of('resume', Resume)}", name="attempts_resume_known"),
    )

    job_id: str = columns.of_job()
    number: int = Field(primary_key=True)
    worker_id: str = Field(max_length=64)
    started_at: datetime = columns.time(nullable=False)
    first_batch_at: datetime | None = columns.time()  # when it had trained one batch
    ended_at: datetime | None = columns.time()
    outcome: str | None = Field(default=None, max_length=16)
    resumed_from: int | None = None  # the last epoch that was done when it went on,
    resumed_batch: int | None = None  # and the batches of the next one that were too
    resume: str | None = Field(default=None, max_length=16)  # how near to an uninterrupted training that is
    resume_reason: str | None = Field(default=None, max_length=300)  # why it is not the same
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))


class Transition(SQLModel, table=True):
    __tablename__ = "transitions"

    job_id: str = columns.of_job()
    seq: int = Field(primary_key=True)
    status: str = Field(max_length=16)
    at: datetime = columns.time(nullable=False)
    reason: str | None = Field(default=None, max_length=200)


class Epoch(SQLModel, table=True):
    """The metrics of one epoch. `seq` only grows within a job, across attempts."""

    __tablename__ = "epochs"
    __table_args__ = (Index("epochs_by_seq", "job_id", "seq", unique=True),)

    job_id: str = columns.of_job()
    epoch: int = Field(primary_key=True)
    seq: int
    attempt: int
    recorded_at: datetime = columns.time(nullable=False)
    train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None  # of classification,
    test_top5_accuracy: float | None = None  # where there are more than 5 classes,
    test_f1: float | None = None  # and averaged over classes
    test_mae: float | None = None  # of regression: mean absolute error,
    test_r2: float | None = None  # and the share of the variance that is explained
    learning_rate: float
    samples_per_second: float
    train_seconds: float
    test_seconds: float
    gradient_norm: float | None = None
    peak_memory_bytes: int | None = Field(default=None, sa_type=BigInteger)
    non_finite: str | None = Field(default=None, max_length=8)  # what a null number was: nan, inf or -inf


class Checkpoint(SQLModel, table=True):
    __tablename__ = "checkpoints"

    job_id: str = columns.of_job()
    epoch: int = Field(primary_key=True)
    attempt: int
    created_at: datetime = columns.time(nullable=False)
    path: str = Field(max_length=200)  # of the weights, relative to the data folder
    sha256: str = Field(max_length=64)
    bytes: int = Field(sa_type=BigInteger)
    weights_sha256: str | None = Field(default=None, max_length=64)  # without the header; null in old rows
    # Of what only training needs to go on; an imported checkpoint has none.
    state_path: str | None = Field(default=None, max_length=200)
    state_sha256: str | None = Field(default=None, max_length=64)

    @property
    def state(self) -> tuple[str, str]:
        """Path and digest of what going on needs. Not of an imported checkpoint, which nothing goes on from."""
        assert self.state_path is not None
        assert self.state_sha256 is not None
        return self.state_path, self.state_sha256


class StepCheckpoint(SQLModel, table=True):
    """What is needed to go on inside an epoch: the newest of a job, until that epoch is recorded."""

    __tablename__ = "step_checkpoints"

    job_id: str = columns.of_job()
    attempt: int
    created_at: datetime = columns.time(nullable=False)
    epoch: int  # the one at work, from 1
    batch: int  # how many of its batches are trained
    path: str = Field(max_length=200)  # relative to the data folder
    sha256: str = Field(max_length=64)
    bytes: int = Field(sa_type=BigInteger)


class Event(SQLModel, table=True):
    __tablename__ = "events"
    __table_args__ = (CheckConstraint(one_of("kind", EventKind), name="events_kind_known"),)

    job_id: str = columns.of_job()
    seq: int = Field(primary_key=True)
    at: datetime = columns.time(nullable=False)
    attempt: int
    epoch: int  # the one at work, from 1
    kind: str = Field(max_length=32)
    detail: str = Field(max_length=300)


class ReportRow(SQLModel, table=True):
    """How a job's newest epoch did, class by class: a `Report`."""

    __tablename__ = "reports"

    job_id: str = columns.of_job()
    epoch: int
    contents: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    answers: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # picture by picture, see `answers.py`


class SinkRow(SQLModel, table=True):
    """How far a job's metrics have been written to a sink."""

    __tablename__ = "sinks"
    __table_args__ = (CheckConstraint(one_of("kind", SinkKind), name="sinks_kind_known"),)

    job_id: str = columns.of_job()
    kind: str = Field(primary_key=True, max_length=16)
    seq: int = 0  # of the last row that is there
    is_done: bool = False  # and it has been told how the job ended
    run_id: str | None = Field(default=None, max_length=64)  # what the sink calls the job


class Alias(SQLModel, table=True):
    """A name that points at one checkpoint of one job, and remembers the one before."""

    __tablename__ = "aliases"
    __table_args__ = (
        CheckConstraint("(previous_job_id IS NULL) = (previous_epoch IS NULL)", name="aliases_previous_whole"),
        Index("aliases_by_job", "job_id"),
    )

    owner: str = Field(default=HOUSE, primary_key=True, max_length=64)
    name: str = Field(primary_key=True, max_length=64)
    job_id: str = Field(foreign_key="jobs.id", max_length=64)  # a job that an alias points at is not deleted
    epoch: int
    version: int = 1  # how often it has been pointed at something
    previous_job_id: str | None = Field(default=None, max_length=64)
    previous_epoch: int | None = None
    created_at: datetime = columns.time(nullable=False)
    updated_at: datetime = columns.time(nullable=False)


class ParityRow(SQLModel, table=True):
    """How predictions compare with the test loop, of one checkpoint of a job: a `Parity`, or why there is none."""

    __tablename__ = "parities"
    __table_args__ = (CheckConstraint("(contents IS NULL) <> (error IS NULL)", name="parities_contents_or_error"),)

    job_id: str = columns.of_job()
    epoch: int
    sha256: str = Field(max_length=64)  # of the checkpoint
    made_at: datetime = columns.time(nullable=False)
    contents: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    error: str | None = Field(default=None, max_length=300)


class Worker(SQLModel, table=True):
    __tablename__ = "workers"

    id: str = Field(primary_key=True, max_length=64)
    host: str = Field(max_length=255)
    started_at: datetime = columns.time(nullable=False)
    heartbeat_at: datetime = columns.time(nullable=False)


class Delivery(SQLModel, table=True):
    """What a webhook of a job is to be told, written with what it tells; and what became of it."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint(one_of("status", DeliveryStatus), name="deliveries_status_known"),
        CheckConstraint("(status = 'pending') = (next_at IS NOT NULL)", name="deliveries_next_at_iff_pending"),
        Index("deliveries_by_job", "job_id", "id"),
        Index("deliveries_due", "status", "next_at"),
    )

    id: str = Field(primary_key=True, max_length=64)
    job_id: str = Field(sa_column=Column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False))
    hook: int  # its place in the spec's `webhooks`, from 0
    event: str = Field(max_length=32)
    payload: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = columns.time(nullable=False)
    status: str = Field(default=DeliveryStatus.PENDING, max_length=16)
    tries: int = 0
    next_at: datetime | None = columns.time()  # when it is tried next; whoever tries it puts this off first
    settled_at: datetime | None = columns.time()
    error: str | None = Field(default=None, max_length=200)  # of the last try


class ApiKey(SQLModel, table=True):
    """Of the key itself only the digest is kept, and its first characters to call it by."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("api_keys_by_digest", "sha256", unique=True),)

    id: str = Field(primary_key=True, max_length=64)
    sha256: str = Field(max_length=64)
    prefix: str = Field(max_length=16)
    name: str | None = Field(default=None, max_length=100)
    owner: str = Field(max_length=64)  # whose things are this key's
    scopes: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = columns.time(nullable=False)
    expires_at: datetime | None = columns.time()
    revoked_at: datetime | None = columns.time()
