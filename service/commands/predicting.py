"""What a network says of pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .command import Cli, command
from .screen import Cell, Styled
from .text import number

if TYPE_CHECKING:
    from worker.jobs.wire import ClassPrediction, NumberPrediction

app = typer.Typer()

# What the service takes in one request, with room for what is around the pictures.
_MOST_PICTURES, _MOST_BYTES = 64, 16 * 2**20
_ALL: Final = "all"


@command(app)
def predict(
    cli: Cli,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="JPEG, PNG, WebP, BMP or GIF")],
    job: Annotated[str | None, typer.Option(help="Which job answers: its id, the end of one, or: last")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="best, last, an epoch, or all: one answer an epoch")] = None,
    model: Annotated[str | None, typer.Option(help="Which alias answers")] = None,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="How many classes to name")] = 3,
    auto_fix: Annotated[bool, typer.Option("--auto-fix", help="Mend polarity, orientation and crop")] = False,
) -> None:
    """Ask a network what is on pictures. Unless you say who, the alias default answers, else the newest success.

    As JSON it is a list, with an entry for each picture, and for each epoch where all of them answer.
    """
    who = cli.job_id(job) if job else None
    documents: list[dict[str, Any]] = []
    for some in _bundles(pictures):
        if checkpoint == _ALL:
            every = cli.client.predict_epochs(*some, job=who, model=model, top_k=top_k, auto_fix=auto_fix)
            answers = [(each.checkpoint.epoch, each.predictions) for each in every.epochs]
            answered_by = every.job
        else:
            one = cli.client.predict(*some, job=who, checkpoint=checkpoint, model=model, top_k=top_k, auto_fix=auto_fix)
            answers, answered_by = [(one.checkpoint.epoch, one.predictions)], one.job
        for epoch, predictions in answers:
            for path, found in zip(some, predictions, strict=True):
                if cli.screen.as_json:
                    about = {"file": str(path), "job": answered_by, "epoch": epoch}
                    documents.append(about | found.model_dump(mode="json"))
                else:
                    _show(cli, path, epoch, found)
    if cli.screen.as_json:
        cli.screen.json(documents)


def _bundles(paths: list[Path]) -> Iterator[list[Path]]:
    """As many at once as the service takes. Raises OSError."""
    some: list[Path] = []
    total = 0
    for path in paths:
        size = path.stat().st_size
        if some and (len(some) == _MOST_PICTURES or total + size > _MOST_BYTES):
            yield some
            some, total = [], 0
        some.append(path)
        total += size
    if some:
        yield some


def _show(cli: Cli, path: Path, epoch: int, found: "ClassPrediction | NumberPrediction") -> None:
    cells: list[Cell] = [Styled(str(path), "bold")]
    if epoch and cli.screen.is_terminal:
        cells.append(Styled(f"epoch {epoch}", "dim"))
    cells += _said(found)
    if cli.screen.is_terminal:
        cli.screen.line(*cells)
    else:
        cli.screen.table((), [[str(path), str(epoch), *_said(found)]])
    for kind, style, texts in (("warning", "yellow", found.warnings), ("fixed", "green", found.fixed)):
        for text in texts:
            cli.screen.note(f"{path}: {kind}: {text}") if not cli.screen.is_terminal else cli.screen.line(
                Styled(f"  {kind}: {text}", style)
            )


def _said(found: "ClassPrediction | NumberPrediction") -> list[Cell]:
    if hasattr(found, "top"):
        guesses = [f"{each.label} {each.probability:.1%}" for each in found.top]
        return [Styled(guesses[0], "green"), *guesses[1:]]
    return [f"{name} {number(value)}" for name, value in found.values.items()]
