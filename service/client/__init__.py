"""The Python client: `from service.client import Client`.

client = Client()  # where EPOCHD_URL says, with the key of EPOCHD_API_KEY
job = client.submit(epochs=2, optimizer={"lr": 0.01})
for row in job.follow():
    ...
client.predict("boot.png", job=job.id).predictions
"""

from .asynchronous import AsyncClient, AsyncJob
from .errors import (
    ApiError,
    ClientError,
    ConnectionLost,
    FieldProblem,
    NoServer,
    NotFound,
    UnexpectedAnswer,
    WaitTimeout,
)
from .following import Back, Event, Lost, StatusChange
from .sync import Client, Job

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncJob",
    "Back",
    "Client",
    "ClientError",
    "ConnectionLost",
    "Event",
    "FieldProblem",
    "Job",
    "Lost",
    "NoServer",
    "NotFound",
    "StatusChange",
    "UnexpectedAnswer",
    "WaitTimeout",
]
