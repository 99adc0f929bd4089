"""What the commands have in common: where the service is, how they answer, how they end."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import typer

from .screen import Screen
from .text import short

if TYPE_CHECKING:
    from service.client import Client

F = TypeVar("F", bound=Callable[..., None])

_WHOLE: Final = re.compile(r"[0-9a-f]{24}")
_ENDING: Final = re.compile(r"[0-9a-f]{1,23}")
_RETRIES: Final = 2  # a person waits
_SHOWN: Final = 5
_PANEL: Final = "Service and output"

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id, the end of one if no other ends so, or: last")
]
Url = Annotated[
    str | None, typer.Option(help="Where the service is; else EPOCHD_URL, else this machine", rich_help_panel=_PANEL)
]
Key = Annotated[
    str | None, typer.Option(help="API key; better in EPOCHD_API_KEY: others see arguments", rich_help_panel=_PANEL)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON", rich_help_panel=_PANEL)]


class Exit(IntEnum):
    """How a command ends. The README and `epochd --help` have the table."""

    REFUSED = 1  # the service refused, or the job that was followed has failed
    USAGE = 2  # what was typed cannot be understood, or a file not be read
    NO_SERVER = 3
    NOT_FOUND = 4
    CANCELLED = 5  # the job that was followed was cancelled
    INTERRUPTED = 130


class Stop(Exception):
    """The command ends here, with this code, and a sentence that says why."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


class Cli:
    """What a command is given."""

    def __init__(self, *, url: str | None, key: str | None, as_json: bool) -> None:
        self._url, self._key = url, key
        self.screen = Screen(as_json=as_json)

    @cached_property
    def client(self) -> "Client":
        from service.client import Client

        try:
            return Client(self._url, self._key, retries=_RETRIES)
        except ValueError as error:
            raise Stop(Exit.USAGE, str(error)) from error

    def close(self) -> None:
        if "client" in vars(self):
            self.client.close()

    def job_id(self, given: str) -> str:
        """The id that was meant. Raises Stop where that is unclear, and ClientError."""
        given = given.lower()
        if _WHOLE.fullmatch(given):
            return given
        if given == "last":
            newest = self.client.jobs_page(limit=1).data
            if not newest:
                raise Stop(Exit.NOT_FOUND, "There is no job yet.")
            return newest[0].id
        if not _ENDING.fullmatch(given):
            raise Stop(Exit.USAGE, f"{given!r} is no job's id, nor the end of one: those are of 0 to 9 and a to f.")
        found = [job.id for job in self.client.jobs() if job.id.endswith(given)]
        if not found:
            raise Stop(Exit.NOT_FOUND, f"No job's id ends in {given}.")
        if len(found) > 1:
            more = ", ..." if len(found) > _SHOWN else ""
            raise Stop(Exit.USAGE, f"{len(found)} jobs' ids end in {given}: {', '.join(found[:_SHOWN])}{more}")
        return found[0]

    def hint(self, command: str, job_id: str) -> str:
        return f"epochd {command} {short(job_id)}"


def command(app: typer.Typer, name: str | None = None) -> Callable[[F], F]:
    """Makes a function a command: it is given a `Cli`, and its command has the options that all have."""

    def made(function: F) -> F:
        @wraps(function, assigned=("__name__", "__doc__", "__module__"))
        def run(ctx: typer.Context, url: Url = None, key: Key = None, as_json: Json = False, **own: Any) -> None:
            of_all = ctx.find_root().params  # what was given before the command's name
            cli = Cli(url=url or of_all.get("url"), key=key or of_all.get("key"), as_json=as_json)
            with ending(cli.screen):
                try:
                    function(cli, **own)
                finally:
                    cli.close()

        of_all = list(inspect.signature(run, follow_wrapped=False).parameters.values())[:-1]
        parameters = [*list(inspect.signature(function).parameters.values())[1:], *of_all]
        by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        del run.__wrapped__
        app.command(name)(run)
        return function

    return made


@contextmanager
def ending(screen: Screen) -> Iterator[None]:
    """Whatever goes wrong ends the process with a sentence and a code."""
    from service.client import ApiError, ClientError, ConnectionLost, NoServer, NotFound

    try:
        yield
    except Stop as stop:
        _leave(screen, stop.code, stop.sentence)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except BrokenPipeError:  # who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
    except (NoServer, ConnectionLost) as error:
        _leave(screen, Exit.NO_SERVER, str(error))
    except NotFound as error:
        _leave(screen, Exit.NOT_FOUND, str(error))
    except ApiError as error:
        _leave(screen, Exit.REFUSED, str(error))
    except ClientError as error:
        _leave(screen, Exit.REFUSED, str(error))
    except OSError as error:
        _leave(screen, Exit.USAGE, f"{error.filename or 'It'}: {error.strerror or error}")


def _leave(screen: Screen, code: Exit, sentence: str) -> NoReturn:
    screen.note(sentence)
    raise typer.Exit(code) from None
