"""The states that jobs, datasets and attempts can be in, and what each means."""

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # an attempt owns it
    PAUSING = "pausing"  # an attempt owns it and has been asked to save and leave
    PAUSED = "paused"  # waits until somebody lets it go on
    CANCELLING = "cancelling"  # an attempt owns it and has been asked to stop for good
    SUCCEEDED = "succeeded"  # every epoch was trained
    FAILED = "failed"  # cannot be trained, or its attempts are spent
    CANCELLED = "cancelled"  # stopped by request


class Wish(StrEnum):
    """What a worker is to do with an attempt of its own."""

    GO_ON = "go_on"
    STOP = "stop"  # let it save and leave
    STOP_NOW = "stop_now"  # kill it


class DatasetStatus(StrEnum):
    UPLOADED = "uploaded"  # waits for a worker to prepare it
    PREPARING = "preparing"  # an attempt owns it
    READY = "ready"  # can be trained on; never changes again
    INVALID = "invalid"  # cannot be prepared
    DELETED = "deleted"  # its files are gone; the row keeps the version's number from being used again


OWNED = (Status.RUNNING, Status.PAUSING, Status.CANCELLING)
TERMINAL = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class Phase(StrEnum):
    PREPARING = "preparing"  # building dataset, model and optimizer
    TRAINING = "training"
    TESTING = "testing"
    SAVING = "saving"  # writing the checkpoint


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # an error that another attempt would meet again
    CANCELLED = "cancelled"
    PAUSED = "paused"
    RELEASED = "released"  # its worker was told to stop and gave the job back; costs nothing
    KILLED = "killed"  # the training process died of a signal
    CRASHED = "crashed"  # the training process left without a word
    STALLED = "stalled"  # nothing moved any more, so it was killed
    WORKER_LOST = "worker_lost"  # the lease ran out


SPENT = (Outcome.KILLED, Outcome.CRASHED, Outcome.STALLED, Outcome.WORKER_LOST)  # these count against max_attempts


class EventKind(StrEnum):
    """What a training did by itself, that its owner will want to know."""

    MICRO_BATCH = "micro_batch"  # a batch did not fit into memory and goes through in parts
    STOPPED_EARLY = "stopped_early"  # the metric that early stopping watches got no better
    DIVERGED = "diverged"  # the loss was no finite number any more
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"  # a checkpoint could not be gone on from, so an older one was taken


class Resume(StrEnum):
    """How near a training that went on is to one that was never interrupted."""

    EXACT = "exact"  # the same bits
    APPROXIMATE = "approximate"  # what computes is not what began


class Scope(StrEnum):
    """What an API key may do."""

    READ = "read"  # look at what is its owner's
    SUBMIT = "submit"  # make, change and delete that
    PREDICT = "predict"  # ask its owner's models
    ADMIN = "admin"  # all of that, with everybody's


class DeliveryStatus(StrEnum):
    PENDING = "pending"  # will be tried, again if it was before
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"  # it was tried often enough, or cannot be


class WebhookEvent(StrEnum):
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    METRIC = "job.metric"  # a metric has reached a threshold


class SinkKind(StrEnum):
    """Where metrics go beside the database."""

    CSV = "csv"  # a table a job
    TENSORBOARD = "tensorboard"  # event files
    MLFLOW = "mlflow"  # a tracking server, or a folder that MLflow reads
