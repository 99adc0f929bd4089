"""How a request names one of a job's checkpoints."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator


def _known(which: str) -> str:
    if which not in ("best", "last") and not (which.isdecimal() and which.isascii() and len(which) < 10):
        raise ValueError("must be `best`, `last` or the number of an epoch")
    return which


Which = Annotated[
    str,
    AfterValidator(_known),
    Field(
        description="`best` (highest test accuracy), `last`, or the number of an epoch",
        examples=["best", "3"],
        json_schema_extra={"pattern": "^(best|last|[0-9]{1,9})$"},
    ),
]


def _known_or_all(which: str) -> str:
    return which if which == "all" else _known(which)


WhichOrAll = Annotated[
    str,
    AfterValidator(_known_or_all),
    Field(
        description="`best`, `last`, the number of an epoch, or `all`: one answer an epoch. Unset: a job's best, an "
        "alias's own",
        examples=["best", "3", "all"],
        json_schema_extra={"pattern": "^(all|best|last|[0-9]{1,9})$"},
    ),
]


class WhoAnswers(BaseModel, extra="forbid"):
    """How a request for predictions names a job's checkpoints."""

    job: str | None = Field(None, max_length=64, description="Which job answers")
    model: str | None = Field(
        None,
        max_length=64,
        description="Or which alias does. Neither: the alias `default`, else the newest job that succeeded",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.job is not None and self.model is not None:
            raise ValueError("name a job or a model, not both")
        return self
