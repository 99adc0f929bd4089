"""Going on from the newest state that is whole."""

from collections.abc import Callable
from pathlib import Path

import structlog

from worker.jobs import records
from worker.jobs.db import Database
from worker.jobs.errors import CheckpointCorrupt

from . import checkpoints
from .engine import Engine

_log = structlog.get_logger()


def resume(
    db: Database, data_dir: Path, job_id: str, engine: Engine, on_corrupt: Callable[[int, str], None]
) -> tuple[int, int]:
    """Brings the engine to where the job's newest checkpoint was made that is whole.

    Returns the epochs that are done, and how many batches of the next one are; zeros when there is none to go on from.
    `on_corrupt` is told of each checkpoint that cannot be used: its epoch and a sentence.
    """
    inside = records.steps(db, job_id)
    if inside is not None:
        try:
            state = checkpoints.load_state(data_dir / inside.path, inside.sha256)
        except CheckpointCorrupt:
            _log.warning("checkpoint_corrupt", epoch=inside.epoch, batch=inside.batch)
            on_corrupt(inside.epoch, f"The checkpoint behind batch {inside.batch} of epoch {inside.epoch} is corrupt")
        else:
            engine.load_inside(state)
            _log.info("resumed", epoch=inside.epoch - 1, batch=inside.batch)
            return inside.epoch - 1, inside.batch
    for kept in reversed(records.checkpoints(db, job_id)):
        row = kept.row
        try:
            loaded = checkpoints.load(data_dir / row.path, row.sha256)
            state_path, state_sha256 = row.state
            state = checkpoints.load_state(data_dir / state_path, state_sha256)
        except CheckpointCorrupt:
            _log.warning("checkpoint_corrupt", epoch=row.epoch)
            on_corrupt(row.epoch, f"The checkpoint of epoch {row.epoch} is corrupt")
            continue
        engine.load_state_dict(loaded.weights, state)
        _log.info("resumed", epoch=row.epoch)
        return row.epoch, 0
    return 0, 0
