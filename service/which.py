"""How a request names one of a job's checkpoints."""

from typing import Annotated, Literal

from pydantic import Field

Which = Annotated[
    Literal["best", "last"] | Annotated[int, Field(ge=1, lt=2**31)],
    Field(description="`best` (highest test accuracy), `last`, or the number of an epoch"),
]
