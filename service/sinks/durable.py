"""How sinks write files: a reader finds a file that is whole, and what is recorded as written survives a crash."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from worker.jobs import files


@contextmanager
def replaced(path: Path, spare_bytes: int) -> Iterator[IO[bytes]]:
    """What is written becomes the file when all is written; until then the one before is there, if there was one.

    Raises DiskFull when less than `spare_bytes` would be left, and OSError.
    """
    files.require_space(path.parent, spare_bytes)
    temporary = path.with_name(f".{path.name.partition('.')[0]}.writing")  # by that name TensorBoard does not read it
    try:
        with files.told_when_full(), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    files.fsync(path.parent)


def append(path: Path, contents: bytes, spare_bytes: int) -> None:
    """Raises DiskFull as `replaced` does, and OSError, also when the file is not there; part of it may be written."""
    files.require_space(path.parent, spare_bytes, len(contents))
    with files.told_when_full():
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        with open(descriptor, "wb") as file:  # noqa: PTH123  (never made here: it would lack its beginning)
            file.write(contents)
            file.flush()
            os.fsync(descriptor)
