"""What a job's webhooks were told."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field
from worker.jobs import deliveries
from worker.jobs.spec.addresses import origin
from worker.jobs.states import DeliveryStatus, WebhookEvent
from worker.jobs.tables import Delivery

from .row import FromRow


class DeliveryBody(FromRow):
    id: str = Field(description="The receiver sees it as `Epochd-Delivery`")
    event: WebhookEvent
    hook: int = Field(description="Which of the spec's `webhooks` it is for, from 0")
    origin: str | None = Field(description="Where it goes, without the path, which may be a secret")
    status: DeliveryStatus = Field(
        description="`pending`: will be tried, again if it was before; `delivered`; `given_up`: it was tried too often"
    )
    tries: int
    created_at: datetime
    next_at: datetime | None = Field(description="When it is tried next; null once that is over")
    settled_at: datetime | None = Field(description="When it arrived or was given up")
    error: str | None = Field(description="Why the last try failed")

    @classmethod
    def of(cls, row: Delivery, spec: dict[str, Any]) -> Self:
        url = deliveries.url(spec, row.hook)
        fields = {name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)}
        return cls.model_validate(fields | {"origin": origin(url) if url else None})


class DeliveryList(BaseModel):
    data: list[DeliveryBody]
