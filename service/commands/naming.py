"""What people call a job or a sweep, and which one they mean."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .ending import Exit, Stop

if TYPE_CHECKING:
    from service.client import Client

_LAST: Final = "last"
_WHOLE: Final = re.compile(r"[0-9a-f]{24}")
_ENDING: Final = re.compile(r"[0-9a-f]{1,23}")
_SHORTEST: Final = 4  # a slip of the finger should meet no other job
_SHOWN: Final = 5

JobArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help="A job's id, the end of one (4 characters or more) that no other has, or: last"),
]
SweepArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP", help="A sweep's id, the end of one (4 characters or more) that no other has, or: last"
    ),
]


def job_id(client: "Client", given: str) -> str:
    """The id that was meant. Raises Stop where that is unclear, and ClientError."""
    return _meant(
        "job",
        given,
        lambda: (each.id for each in client.jobs_page(limit=1).data),
        lambda: (each.id for each in client.jobs()),
    )


def sweep_id(client: "Client", given: str) -> str:
    """The id that was meant. Raises Stop where that is unclear, and ClientError."""
    return _meant(
        "sweep",
        given,
        lambda: (each.id for each in client.sweeps_page(limit=1).data),
        lambda: (each.id for each in client.sweeps()),
    )


def label(text: str) -> tuple[str, str]:
    """Key and value of a label. Raises Stop."""
    key, equals, value = text.partition("=")
    if not equals:
        raise Stop(Exit.USAGE, f"--label {text}: give a key and a value, such as team=shoes")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Stop(Exit.USAGE, f"--label {text} is no text in UTF-8.") from error
    return key, value


def _meant(kind: str, given: str, newest: Callable[[], Iterable[str]], every: Callable[[], Iterable[str]]) -> str:
    given = given.lower()
    if _WHOLE.fullmatch(given):
        return given
    if given == _LAST:
        for found in newest():
            return found
        raise Stop(Exit.NOT_FOUND, f"There is no {kind} yet.")
    if not _ENDING.fullmatch(given):
        raise Stop(Exit.USAGE, f"{given!r} is no {kind}'s id, nor the end of one: those are of 0 to 9 and a to f.")
    if len(given) < _SHORTEST:
        raise Stop(
            Exit.USAGE, f"{given} is too little of a {kind}'s id: give at least {_SHORTEST} characters of its end."
        )
    ids = [each for each in every() if each.endswith(given)]
    if not ids:
        raise Stop(Exit.NOT_FOUND, f"No {kind}'s id ends in {given}.")
    if len(ids) > 1:
        more = ", ..." if len(ids) > _SHOWN else ""
        raise Stop(Exit.USAGE, f"{len(ids)} {kind}s' ids end in {given}: {', '.join(ids[:_SHOWN])}{more}")
    return ids[0]
