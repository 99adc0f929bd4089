"""A job's metrics: as a table, as CSV, as curves."""

import csv
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .command import Cli, command
from .ending import Exit, Stop
from .following import SHOWN, written
from .naming import JobArgument
from .plotting import Curve, chart
from .screen import Screen, Styled
from .text import number

if TYPE_CHECKING:
    from service.bodies.metrics import MetricsRow

app = typer.Typer()

_COLOURS: Final = ("cyan", "yellow", "magenta")
_STROKES: Final = ("⠉⠉", "⠉ ", "⠁⠁")  # as the curves are drawn
# What has the same scale shares a chart.
_CHARTS: Final = (
    ("train_loss", "test_loss"),
    ("test_accuracy", "test_top5_accuracy", "test_f1"),
    ("test_mae",),
    ("test_r2",),
    ("learning_rate",),
    ("gradient_norm",),
    ("samples_per_second",),
    ("train_seconds", "test_seconds"),
    ("peak_memory_bytes",),
)
_KNOWN: Final = tuple(name for names in _CHARTS for name in names)
_USUAL: Final = ("train_loss", "test_loss", "test_accuracy", "test_mae", "test_r2")
_TALLEST, _WIDEST, _LOWEST = 16, 120, 5


@command(app)
def metrics(
    cli: Cli,
    job: JobArgument,
    names: Annotated[list[str] | None, typer.Argument(metavar="[METRIC]...", help="Which; unset: the usual")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw curves")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write all columns as CSV")] = False,
) -> None:
    """Show a job's metrics, a row an epoch."""
    unknown = [name for name in names or [] if name not in _KNOWN]
    if unknown:
        raise Stop(Exit.USAGE, f"There is no metric {unknown[0]!r}; there are {', '.join(_KNOWN)}.")
    rows = cli.client.job(cli.job_id(job)).metrics()
    if cli.screen.as_json:
        cli.screen.json(rows)
    elif as_csv:
        _write_csv(rows, names)
    elif not rows:
        cli.screen.note("No epoch has ended yet.")
    elif plot:
        _plot(cli.screen, newest(rows), names)
    else:
        _table(cli.screen, rows, names)


def newest(rows: "Sequence[MetricsRow]") -> "list[MetricsRow]":
    """Of each epoch the newest row: one that was trained again has more."""
    return sorted({row.epoch: row for row in rows}.values(), key=lambda row: row.epoch)


def _write_csv(rows: "Sequence[MetricsRow]", names: list[str] | None) -> None:
    from service.bodies.metrics import MetricsRow

    columns = ["epoch", *names] if names else list(MetricsRow.model_fields)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = row.model_dump(mode="json")
        writer.writerow(["" if values[name] is None else values[name] for name in columns])
    sys.stdout.flush()  # here it is still heard when nobody reads it


def _table(screen: Screen, rows: "Sequence[MetricsRow]", names: list[str] | None) -> None:
    columns = names or [name for name in SHOWN if any(getattr(row, name) is not None for row in rows)]
    lines = [
        [
            str(row.epoch),
            *(number(None) if (value := getattr(row, name)) is None else written(name, value) for name in columns),
        ]
        for row in rows
    ]
    screen.table(("epoch", *columns), lines, right=("epoch", *columns))


def _plot(screen: Screen, rows: "Sequence[MetricsRow]", names: list[str] | None) -> None:
    wanted = set(names or _USUAL)
    groups = [[_curve(rows, name) for name in group if name in wanted] for group in _CHARTS]
    shown = [[curve for curve in group if any(y is not None for _, y in curve.points)] for group in groups]
    shown = [group for group in shown if group]
    if not shown:
        raise Stop(Exit.NOT_FOUND, "There is no number to draw.")
    size = shutil.get_terminal_size()
    width = min(size.columns, _WIDEST) if screen.is_terminal else size.columns
    height = max(min((size.lines - 2) // len(shown) - 2, _TALLEST), _LOWEST)
    for group in shown:
        _draw(screen, group, width, height)


def _curve(rows: "Sequence[MetricsRow]", name: str) -> Curve:
    return Curve(name, [(row.epoch, getattr(row, name)) for row in rows])


def _draw(screen: Screen, curves: list[Curve], width: int, height: int) -> None:
    plain = not _can_write("⣿└─┤")
    drawn = chart(curves, "epoch", width, height, ascii_only=plain)
    legend = [
        Styled(f"{'*' if plain else _STROKES[at % 3]} {curve.name}", _COLOURS[at % 3])
        for at, curve in enumerate(curves)
    ]
    screen.line(*legend)
    edge = "|" if plain else "│"
    mark = "+" if plain else "┤"
    for line in drawn.lines:
        cells = [Styled(text, "" if number is None else _COLOURS[number % 3]) for text, number in line.cells]
        screen.cells([Styled(line.label + (mark if line.label.strip() else edge), "dim"), *cells])
    screen.line(Styled(drawn.axis, "dim"))
    screen.line(Styled(drawn.numbers, "dim"))


def _can_write(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
