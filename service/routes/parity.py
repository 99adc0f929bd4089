"""A job's parity certificate."""

from fastapi import APIRouter
from worker.jobs import parities
from worker.jobs.errors import Conflict, NotFound, NotReady
from worker.jobs.parity import Parity

from service.deps import DatabaseDep, JobDep
from service.errors import responses

router = APIRouter(prefix="/jobs", tags=["predict"])


@router.get(
    "/{job_id}/parity",
    operation_id="read_parity",
    summary="See how predictions compare with the test loop",
    responses=responses(NotFound, NotReady, Conflict),
)
def parity(job: JobDep, db: DatabaseDep) -> Parity:
    """Made when a job has succeeded, for its best checkpoint: its test pictures go, as PNG files, through what answers
    `POST /predict`, and as arrays through what tested them; this is how far the two are apart.
    """
    return parities.find(db, job.id)
