"""What happens to the names in a folder, told by the kernel at the instant that it does."""

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.end_to_end.serving import JOB_SECONDS

CREATED: Final = 0x100
DELETED: Final = 0x200
_MOVED: Final = 0x40  # to another name


class Watched:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_CLOEXEC)
        mask = CREATED | _MOVED | DELETED
        assert self._descriptor >= 0
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask) >= 0

    def events(self) -> Iterator[tuple[int, str]]:
        """What happened and to which name, as soon as it does."""
        while select.select([self._descriptor], [], [], JOB_SECONDS)[0]:
            told = os.read(self._descriptor, 2**16)
            while told:
                _, kind, _, length = struct.unpack_from("iIII", told)
                yield kind, os.fsdecode(told[16 : 16 + length].rstrip(b"\0"))
                told = told[16 + length :]
        raise AssertionError("nothing happens there any more")

    def close(self) -> None:
        os.close(self._descriptor)
