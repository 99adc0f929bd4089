"""A job that was trained elsewhere: one epoch, weights without a state, no attempt, no dataset."""

from pathlib import Path

from tests.worker.jobs.kept_files import put
from tests.worker.jobs.making import result
from worker.jobs.db import Database, now
from worker.jobs.ids import new_id
from worker.jobs.leftovers import checkpoints_folder
from worker.jobs.spec import Spec
from worker.jobs.states import Status
from worker.jobs.tables import Checkpoint, Epoch, Job

EPOCH = 3  # of the 5 that it was to have


def imported(db: Database, data_dir: Path) -> Job:
    job_id, weights = new_id(), b"weights of elsewhere"
    path = str(checkpoints_folder(job_id) / f"epoch-{EPOCH:06d}-attempt-0.safetensors")
    sha256 = put(data_dir, path, weights)
    with db.write() as session:
        at = now(session)
        spec = Spec().model_dump(mode="json")
        job = Job(
            id=job_id, labels={}, spec=spec, status=Status.SUCCEEDED, created_at=at, finished_at=at, imported=True
        )
        job.epoch, job.last_seq = EPOCH, 1
        session.add(job)
        session.flush()
        session.add(Epoch(job_id=job_id, seq=1, attempt=0, recorded_at=at, **vars(result(EPOCH))))
        session.add(
            Checkpoint(
                job_id=job_id, epoch=EPOCH, attempt=0, created_at=at, path=path, sha256=sha256, bytes=len(weights)
            )
        )
    return job
