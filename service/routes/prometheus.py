"""`/metrics`, for Prometheus."""

from fastapi import APIRouter, Request, Response

from service.measures import CONTENT_TYPE, Measures

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    operation_id="read_prometheus",
    summary="Read the metrics of the service itself, for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": 'epochd_jobs{status="queued"} 3.0\n'}},
        }
    },
)
async def prometheus(request: Request) -> Response:
    """Jobs by status, the queue's age, how long jobs and predictions take, workers, disk, and HTTP requests by route.
    Renewed once a second. While the database is away, `epochd_database_up` is 0 and what the database knows is missing.
    """
    measures: Measures = request.app.state.measures
    return Response(await measures.page(), headers={"Content-Type": CONTENT_TYPE})
