"""Bodies that are made of rows. Times are RFC 3339 in UTC."""

from pydantic import BaseModel, ConfigDict


class FromRow(BaseModel):
    model_config = ConfigDict(from_attributes=True)
