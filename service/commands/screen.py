"""What commands print: tables and colours on a terminal, plain lines with tabs in a pipe, or JSON."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from .text import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES: Final = {
    "succeeded": "green",
    "ready": "green",
    "finished": "green",
    "running": "cyan",
    "preparing": "cyan",
    "failed": "red",
    "invalid": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "paused": "magenta",
    "pausing": "magenta",
}


class Styled(NamedTuple):
    """A text and the style it has on a terminal."""

    text: str
    style: str


Cell = str | Styled


def status(text: str) -> Styled:
    return Styled(text, STYLES.get(text, ""))


class Screen:
    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.is_terminal = not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal that knows no umlauts is no reason to fail

    @cached_property
    def console(self) -> "Console":
        from rich.console import Console

        # Not what FORCE_COLOR says: a pipe gets no control characters.
        return Console(highlight=False, markup=False, emoji=False, force_terminal=self.is_terminal, soft_wrap=False)

    def line(self, *cells: Cell) -> None:
        """One line on standard output."""
        if self.is_terminal:
            from rich.text import Text

            self.console.print(Text(" ").join(_text(cell) for cell in cells), soft_wrap=True)
        else:
            typer.echo(" ".join(_plain(cell) for cell in cells))

    def cells(self, cells: Sequence[Styled]) -> None:
        """One line of pieces that follow one another without a gap."""
        if self.is_terminal:
            from rich.text import Text

            self.console.print(Text.assemble(*((clean(text), style) for text, style in cells)), soft_wrap=True)
        else:
            typer.echo("".join(map(_plain, cells)).rstrip())

    def note(self, sentence: str) -> None:
        """On standard error, for people; standard output may be read by a program."""
        for each in sentence.splitlines():
            typer.echo(f"epochd: {clean(each)}", err=True)

    def json(self, body: Any) -> None:
        """One document, or while something is followed one line of them. Only ASCII: names are anybody's."""
        typer.echo(json.dumps(document(body)))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Sequence[str] = ()) -> None:
        """`right`: the columns of numbers."""
        if not self.is_terminal:
            for row in rows:
                typer.echo("\t".join(_plain(cell) for cell in row))
            return
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(_text(column), justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(_text, row))
        self.console.print(table)

    def facts(self, facts: Iterable[tuple[str, Cell]]) -> None:
        """What there is to say about one thing."""
        if self.is_terminal:
            from rich.table import Table

            table = Table(box=None, show_header=False, pad_edge=False)
            table.add_column(style="bold")
            table.add_column(overflow="fold")
            for name, cell in facts:
                table.add_row(clean(name), _text(cell))
            self.console.print(table)
        else:
            for name, cell in facts:
                typer.echo(f"{clean(name)}\t{_plain(cell)}")


def document(body: Any) -> Any:
    """The body as JSON would have it, also what a newer service has put into it."""
    if isinstance(body, BaseModel):
        return {name: document(value) for name, value in body}
    if isinstance(body, dict):
        return {name: document(value) for name, value in body.items()}
    if isinstance(body, list | tuple):
        return [document(each) for each in body]
    return to_jsonable_python(body)


def _plain(cell: Cell) -> str:
    return clean(cell.text if isinstance(cell, Styled) else cell)


def _text(cell: Cell) -> "Text":
    from rich.text import Text

    return Text(_plain(cell), style=cell.style if isinstance(cell, Styled) else "")
