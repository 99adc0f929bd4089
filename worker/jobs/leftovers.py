"""Files of a job's checkpoints that no row names any more, or not yet and never will."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from .files import remove_folder

_ATTEMPT: Final = re.compile(r"-attempt-(\d+)\.")


def folder(job_id: str) -> Path:
    """Of all that belongs to a job, relative to the data folder."""
    return Path("jobs", job_id)


def checkpoints_folder(job_id: str) -> Path:
    """Relative to the data folder."""
    return folder(job_id) / "checkpoints"


def attempt_of(path: Path) -> int | None:
    """The attempt that wrote this file of a checkpoint."""
    found = _ATTEMPT.search(path.name)
    return int(found[1]) if found else None


def remove_others(data_dir: Path, job_id: str, attempt: int, kept: Collection[str]) -> None:
    """Removes the files of a job's checkpoints that are not `kept`; those of its dead attempts too.

    Not those of later attempts: this one may have been frozen since it learned what is kept.
    """
    for path in (data_dir / checkpoints_folder(job_id)).glob("*"):
        made_by = attempt_of(path)
        if made_by is not None and made_by <= attempt and str(path.relative_to(data_dir)) not in kept:
            path.unlink(missing_ok=True)


def remove_job(data_dir: Path, job_id: str) -> None:
    """All files of a job that is deleted."""
    remove_folder(data_dir / folder(job_id))
