"""Datasets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .command import Cli, command
from .ending import Exit, Stop
from .screen import Cell, Styled, status
from .text import moment, number, size

if TYPE_CHECKING:
    from service.bodies.datasets import DatasetBody
    from service.client.transfers import Progress

app = typer.Typer(no_args_is_help=True, help="Datasets: list, look, add, delete.")

NameArgument = Annotated[str, typer.Argument(help="The dataset's name")]
VersionOption = Annotated[int | None, typer.Option("--version", min=1, help="Unset: the newest")]


@command(app, "list")
def show_all(cli: Cli) -> None:
    """List datasets, built-in ones included."""
    found = cli.client.datasets()
    if cli.screen.as_json:
        cli.screen.json(found)
        return
    rows: list[list[Cell]] = [
        [
            each.name,
            number(each.version),
            status(each.status),
            "built in" if each.built_in else "",
            number(len(each.classes) if each.classes else None),
            f"{each.width} x {each.height}" if each.width else "-",
            number(each.train_count),
            number(each.test_count),
        ]
        for each in found
    ]
    columns = ("name", "version", "status", "", "classes", "pixels", "train", "test")
    cli.screen.table(columns, rows, right=("version", "classes", "train", "test"))


@command(app)
def show(cli: Cli, name: NameArgument, version: VersionOption = None) -> None:
    """Look at a dataset: what it holds, and what was found in it."""
    _show(cli, cli.client.dataset(name, version))


@command(app)
def add(
    cli: Cli,
    name: NameArgument,
    path: Annotated[
        Path | None, typer.Argument(help="A zip, tar or tar.gz, or a folder; none: prepare the built-in one")
    ] = None,
    task: Annotated[Literal["classification", "regression"] | None, typer.Option(help="What is to be learnt")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels; unset: what suits the pictures")
    ] = None,
    channels: Annotated[Literal["grey", "colour"] | None, typer.Option(help="Unset: what suits the pictures")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Share to test on, where nothing else says")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse it when anything at all is found")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it is ready")] = True,
) -> None:
    """Upload pictures, or prepare a built-in dataset. The same name again makes a new version."""
    if path is None:
        dataset = cli.client.prepare_dataset(name)
    else:
        form: dict[str, Any] = {"task": task, "image_size": image_size, "channels": channels}
        form |= {"test_fraction": test_fraction, "strict": strict or None}
        with _uploading(cli) as progress:
            dataset = cli.client.add_dataset(path, name=name, progress=progress, **form)
    if wait and dataset.status not in ("ready", "invalid"):
        dataset = _waited(cli, dataset)
    _show(cli, dataset)
    if dataset.status == "invalid":
        raise Stop(Exit.REFUSED, dataset.error.message if dataset.error else "The dataset is invalid.")


@command(app)
def delete(cli: Cli, name: NameArgument, version: VersionOption = None) -> None:
    """Delete a dataset: all its versions, or one."""
    cli.client.delete_dataset(name, version)
    what = f"{name} (version {version})" if version else name
    cli.screen.json({"deleted": name, "version": version}) if cli.screen.as_json else cli.screen.line(
        what, "is deleted"
    )


@contextmanager
def _uploading(cli: Cli) -> "Iterator[Progress | None]":
    """A bar, where somebody looks."""
    if not cli.screen.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TimeRemainingColumn(), console=cli.screen.console, transient=True) as bar:
        task = bar.add_task("uploading")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _waited(cli: Cli, dataset: "DatasetBody") -> "DatasetBody":
    if cli.screen.is_terminal:
        with cli.screen.console.status("preparing"):
            return cli.client.wait_dataset(dataset.name, dataset.version)
    return cli.client.wait_dataset(dataset.name, dataset.version)


def _show(cli: Cli, dataset: "DatasetBody") -> None:
    if cli.screen.as_json:
        cli.screen.json(dataset)
        return
    facts: list[tuple[str, Cell]] = [
        ("name", dataset.name),
        ("version", f"{number(dataset.version)} of {', '.join(map(str, dataset.versions)) or '-'}"),
        ("status", status(dataset.status)),
        ("task", dataset.task),
        ("made", moment(dataset.created_at)),
    ]
    if dataset.error:
        facts.append(("error", Styled(dataset.error.message, "red")))
    card = dataset.card
    if card:
        facts += [
            ("pixels", f"{card.width} x {card.height}, {'colour' if card.channels == 3 else 'grey'}"),
            ("pictures", f"{card.train_count} to train, {card.test_count} to test"),
            ("size", size(card.channels * card.width * card.height * (card.train_count + card.test_count))),
        ]
        counts = zip(card.classes, card.train_counts, card.test_counts, strict=False)
        facts += [(f"class {label}", f"{train} to train, {test} to test") for label, train, test in counts]
        facts += [("target", name) for name in card.targets]
        facts += [(f"found: {each.kind}", Styled(f"{each.count}: {each.detail}", "yellow")) for each in card.findings]
    cli.screen.facts(facts)
