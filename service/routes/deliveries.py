"""What a job's webhooks were told, and whether it has arrived."""

from fastapi import APIRouter
from worker.jobs import deliveries
from worker.jobs.errors import NotFound

from service.bodies.deliveries import DeliveryBody, DeliveryList
from service.deps import DatabaseDep, JobDep
from service.errors import responses

router = APIRouter(prefix="/jobs/{job_id}/deliveries", tags=["jobs"])


@router.get("", summary="List what webhooks were told, oldest first", responses=responses(NotFound))
def list_deliveries(job: JobDep, db: DatabaseDep) -> DeliveryList:
    """One that did not arrive is tried again after 10 seconds, 1, 5 and 30 minutes, 2, 6 and 12 hours."""
    return DeliveryList(data=[DeliveryBody.of(each, job.spec) for each in deliveries.of_job(db, job.id)])
