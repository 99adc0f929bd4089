"""The one family of errors. An error's docstring is its default sentence, `code` its stable name.

The service maps each class to a status in one table (`service/errors.py`); a job that fails keeps the code and
the sentence in its `error`.
"""

import inspect
import re
from typing import ClassVar

from .card import Card


class EpochdError(Exception):
    """Something went wrong inside epochd."""

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str | None = None, *, hint: str | None = None) -> None:
        self.detail = detail or inspect.getdoc(type(self)) or self.code
        self.hint = hint  # what to try
        super().__init__(self.detail)

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class Internal(EpochdError):
    """The training stopped on an unexpected error; the end of its traceback is in the job."""


class NotFound(EpochdError):
    """There is nothing here."""


class Conflict(EpochdError):
    """The job's status does not allow this."""


class NotReady(EpochdError):
    """The job has not finished an epoch yet; checkpoints and reports come whenever one ends."""


class CheckpointCorrupt(EpochdError):
    """The checkpoint's file is missing or its contents have changed since it was written."""


class SpecRefused(EpochdError):
    """The parts of the spec do not fit together."""

    code: ClassVar[str] = "validation_error"

    def __init__(self, detail: str | None = None, *, pointer: str = "#") -> None:
        super().__init__(detail)
        self.pointer = pointer  # to the field of the body that is at fault


class DatasetMissing(EpochdError):
    """The dataset's files were not found."""


class DatasetChanged(EpochdError):
    """The dataset's files are no longer those that this job began with; delete the dataset and upload it anew."""


class DatasetInvalid(EpochdError):
    """The dataset cannot be trained on; its findings say why."""

    def __init__(self, detail: str | None = None, *, card: Card | None = None) -> None:
        super().__init__(detail)
        self.card = card  # of what was found, where the pictures could be read


class WeightsMissing(EpochdError):
    """The weights to begin with were not found."""


class WeightsUnfit(EpochdError):
    """The weights to begin with do not fit the network."""


class BadArchive(EpochdError):
    """This is not an archive that can be read: send a zip, tar or tar.gz."""


class BadBackup(EpochdError):
    """This is not a whole backup of epochd's."""


class BadBundle(EpochdError):
    """This is not a model's bundle as `GET /jobs/{id}/checkpoints/{epoch}/export?format=bundle` gives it."""


class NotExportable(EpochdError):
    """This network cannot be exported in this format; its weights can be downloaded as safetensors."""


class ArchiveTooLarge(EpochdError):
    """The archive holds more than this service accepts."""


class UnsafePath(EpochdError):
    """The archive holds a name that cannot be accepted."""


class DiskFull(EpochdError):
    """There is no space left in the data folder; delete datasets or jobs, or give it more."""


class DeviceUnavailable(EpochdError):
    """The device this job asks for is not on this machine."""


class OutOfMemory(EpochdError):
    """The training does not fit into memory, not even one picture at a time."""


class Diverged(EpochdError):
    """The loss is not a finite number any more."""


class StaleAttempt(EpochdError):
    """This attempt no longer owns its job; the write was refused."""


class Killed(EpochdError):
    """The training process was killed."""


class Crashed(EpochdError):
    """The training process ended without saying why."""


class Stalled(EpochdError):
    """The process did not get on."""


class WorkerLost(EpochdError):
    """The worker that ran this attempt stopped answering."""


class Unauthenticated(EpochdError):
    """This service needs an API key: send `Authorization: Bearer <key>`."""


class Forbidden(EpochdError):
    """This key may not do that; `epochd keys create --scope` makes one that may."""


class BadHost(EpochdError):
    """The service does not go by this name; EPOCHD_ALLOWED_HOSTS says which ones it goes by."""


class RequestTimeout(EpochdError):
    """The rest of the request did not come in time."""


class HeadersTooLarge(EpochdError):
    """The request's headers are larger than any that this service needs."""


class IdempotencyMismatch(EpochdError):
    """This Idempotency-Key was used for another request; take a new one for each job."""


class TooManyJobs(EpochdError):
    """Too many jobs wait already; submit this one when some of them have begun."""


class TooManyStreams(EpochdError):
    """Too many clients follow jobs just now; poll instead, or try again in a moment."""


class Busy(EpochdError):
    """The service has too many requests to answer just now; try again in a moment."""


class UrlNotAllowed(EpochdError):
    """Webhooks go to https addresses on the public network only, and only where EPOCHD_WEBHOOKS allows them."""


class CrossSite(EpochdError):
    """A page of another site sent this; only pages of this service may change something here."""


class InvalidRequest(EpochdError):
    """The request cannot be understood."""


class BodyTooLarge(EpochdError):
    """The body is larger than this address accepts."""

    code: ClassVar[str] = "too_large"


class UnsupportedMediaType(EpochdError):
    """The body's type is not accepted here."""


class BadImage(EpochdError):
    """This is not a picture that can be read: send a JPEG, PNG, WebP, BMP or GIF."""


class ImageTooLarge(EpochdError):
    """The picture has more pixels than this service accepts."""


class DatabaseUnavailable(EpochdError):
    """The database does not answer just now; try again in a moment."""


class PredictorUnavailable(EpochdError):
    """The predictor is starting, restarting or has too much to do; try again in a moment."""


class SchemaTooNew(EpochdError):
    """The database was written by a newer epochd; install that version or use another data folder."""


def from_code(code: str, detail: str, *, pointer: str | None = None) -> EpochdError:
    """The error that `code` names, as it came over a wire."""
    if code == SpecRefused.code and pointer is not None:
        return SpecRefused(detail, pointer=pointer)
    family = {cls.code: cls for cls in EpochdError.__subclasses__()}
    return family.get(code, Internal)(detail)
