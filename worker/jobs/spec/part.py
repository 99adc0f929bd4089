"""What the parts of a spec have in common."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field

from worker.jobs.texts import printable

Text = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(printable)]
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]*$"
UNKNOWN_NAME: Final = "unknown_name"  # the type of the error of a choice by a name that there is not
Name = Annotated[str, Field(max_length=64, pattern=NAME_PATTERN)]


class Part(BaseModel):
    """No unknown fields, no guessing of types, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def tag(kind: str) -> str:
    """What marks a choice in pydantic's locations. No field is called like this."""
    return f"({kind})"


def by_name(kinds: Mapping[str, str], *, default: str | None = None, shown: str | None = None) -> Discriminator:
    """Chooses among parts by their `name`: `kinds` says which part each name belongs to.

    A name that is left out is `default`; `shown` is what an error says instead of all the names.
    """

    def choose(value: Any) -> str | None:
        name = value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
        return tag(kinds[name]) if isinstance(name, str) and name in kinds else None

    message = f"Its name must be one of: {shown or ', '.join(kinds)}"
    return Discriminator(choose, custom_error_type=UNKNOWN_NAME, custom_error_message=message)
