"""What the commands have in common: where the service is, how they answer, how they end."""

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import typer

from . import naming
from .ending import Exit, Stop
from .screen import Screen
from .text import short

if TYPE_CHECKING:
    from service.client import Client

F = TypeVar("F", bound=Callable[..., None])

_RETRIES: Final = 2  # a person waits
_PANEL: Final = "Service and output"

Url = Annotated[
    str | None, typer.Option(help="Where the service is; else EPOCHD_URL, else this machine", rich_help_panel=_PANEL)
]
Key = Annotated[
    str | None, typer.Option(help="API key; better in EPOCHD_API_KEY: others see arguments", rich_help_panel=_PANEL)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON", rich_help_panel=_PANEL)]


class Cli:
    """What a command is given."""

    def __init__(self, *, url: str | None, key: str | None, as_json: bool) -> None:
        self._url, self._key = url, key
        self.screen = Screen(as_json=as_json)
        self.is_following = False  # then somebody who stops reading misses how it ends

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
        return naming.job_id(self.client, given)

    def sweep_id(self, given: str) -> str:
        """The id that was meant. Raises Stop where that is unclear, and ClientError."""
        return naming.sweep_id(self.client, given)

    def hint(self, command: str, whole_id: str) -> str:
        """The command to type next, at the same service. A key has no business on a screen."""
        return f"epochd {command} {short(whole_id)}" + (f" --url {shlex.quote(self._url)}" if self._url else "")


def command(app: typer.Typer, name: str | None = None) -> Callable[[F], F]:
    """Makes a function a command: it is given a `Cli`, and its command has the options that all have."""

    def made(function: F) -> F:
        @wraps(function, assigned=("__name__", "__doc__", "__module__"))
        def run(ctx: typer.Context, url: Url = None, key: Key = None, as_json: Json = False, **own: Any) -> None:
            of_all = ctx.find_root().params  # what was given before the command's name
            cli = Cli(url=url or of_all.get("url"), key=key or of_all.get("key"), as_json=as_json)
            with _ending(cli):
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
def _ending(cli: Cli) -> Iterator[None]:
    """Whatever goes wrong ends the process with a sentence and a code."""
    from service.client import ApiError, ClientError, ConnectionLost, NoServer, NotFound

    screen = cli.screen
    try:
        yield
    except Stop as stop:
        _leave(screen, stop.code, stop.sentence)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except BrokenPipeError:  # who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.READER_LEFT if cli.is_following else 0) from None
    except UnicodeEncodeError:
        _leave(screen, Exit.USAGE, "What was typed is no text in UTF-8, which the service takes nothing else than.")
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
