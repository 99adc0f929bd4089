"""What the service and the worker do to files."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import DiskFull

DELETED: Final = ".deleted-"  # begins the name of a folder that is about to go; its own name follows
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


def fsync(path: Path) -> None:
    """Of a file or of a folder: what was written to it, or renamed in it, is on the disk afterwards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, contents: bytes, *, spare_bytes: int = 0) -> None:
    """The file appears whole: written under a temporary name beside it, flushed, renamed, the folder flushed.

    Raises DiskFull when it does not fit, or would leave less than `spare_bytes`; nothing is left of it then.
    """
    require_space(path.parent, spare_bytes, len(contents))
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with told_when_full(), temporary.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
    except DiskFull:
        temporary.unlink(missing_ok=True)  # the space is wanted
        raise
    temporary.rename(path)
    fsync(path.parent)


def require_space(folder: Path, spare_bytes: int, needed: int = 0) -> None:
    """Raises DiskFull when `needed` bytes more would leave less than `spare_bytes`."""
    free = shutil.disk_usage(folder).free
    if free - needed < spare_bytes:
        of = f"{needed} bytes more would leave less" if needed else "There is less"
        raise DiskFull(
            f"{of} free in the data folder than the {spare_bytes} bytes that the database may need ({free} are free).",
            hint="Delete datasets or jobs, or give the data folder more space.",
        )


@contextmanager
def told_when_full() -> Iterator[None]:
    """Raises DiskFull where the system says that there is no space left."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFull from error
        raise


def remove_folder(path: Path) -> None:
    """All of it, or under a name by which it is known to be wanted no more."""
    doomed = path.with_name(DELETED + path.name)
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return
    except OSError:  # an earlier try left one
        doomed = path
    shutil.rmtree(doomed, ignore_errors=True)


def is_unlocked(path: Path) -> bool:
    """Whether the process that held this file's lock is gone; False for a file that is not there."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
