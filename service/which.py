"""How a request names one of a job's checkpoints."""

from typing import Annotated

from pydantic import AfterValidator, Field


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
