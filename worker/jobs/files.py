"""What the service and the worker do to files."""

import fcntl
import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Of a file or of a folder: what was written to it, or renamed in it, is on the disk afterwards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
