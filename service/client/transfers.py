"""Files on their way: folders that are packed, uploads that are watched, downloads that appear whole."""

import hashlib
import os
import secrets
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .call import Answer
from .errors import ClientError

Progress = Callable[[int, int], object]
"""Is told how many bytes are sent, of how many."""


@contextmanager
def packed(path: Path) -> Iterator[IO[bytes]]:
    """An archive as it is, or a folder as a zip that is gone afterwards. Raises OSError and ClientError."""
    if not path.is_dir():
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="epochd-") as file:
        _pack(path, file)
        file.seek(0)
        yield file


def _pack(folder: Path, file: IO[bytes]) -> None:
    """Pictures are small already, so they are only put one behind the other. What is hidden is left out."""
    count = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for root, folders, names in os.walk(folder, followlinks=False):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for name in sorted(each for each in names if not each.startswith(".")):
                each = Path(root, name)
                if not each.is_file():
                    continue
                try:
                    archive.write(each, each.relative_to(folder).as_posix())
                except UnicodeEncodeError as error:
                    raise ClientError(f"A file's name in {folder} is no text ({name!r}): rename it.") from error
                count += 1
    if not count:
        raise ClientError(f"There is no file in {folder}.")


class Watched:
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file, self._progress = file, progress
        self._total = file.seek(0, os.SEEK_END)
        self._read = file.seek(0)

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._read += len(piece)
        self._progress(self._read, self._total)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._read = self._file.seek(offset, whence)
        return self._read

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()


class Receiving:
    """A file that appears when all of it has come."""

    def __init__(self, path: str | Path, name: str) -> None:
        """`name`: of the file, where `path` is a folder."""
        self._target = Path(path) / Path(name).name if Path(path).is_dir() else Path(path)
        self._part = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}.part")
        self._digest = hashlib.sha256()
        self._file: IO[bytes] | None = None

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Pieces may be fed, from the first one on. When they break off, nothing is left of them."""
        self._digest = hashlib.sha256()
        try:
            with self._part.open("wb") as self._file:
                yield
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise

    def feed(self, piece: bytes) -> None:
        assert self._file is not None
        self._digest.update(piece)
        self._file.write(piece)

    def finish(self, answer: Answer) -> Path:
        """Raises ClientError when it is not what the service has."""
        digest = self._digest.hexdigest()
        promised = answer.headers.get("ETag", "").strip('"')
        if len(promised) == len(digest) and promised != digest:
            self._part.unlink(missing_ok=True)
            raise ClientError("The file has arrived damaged: its SHA-256 is not the checkpoint's. Try again.")
        self._part.replace(self._target)
        return self._target
