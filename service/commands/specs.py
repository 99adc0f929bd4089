"""Specs as people write them: files of YAML or JSON, those that come with epochd, and single fields by --set."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from .command import Cli, command
from .ending import Exit, Stop
from .text import clean

OWN: Final = Path(__file__).parents[1] / "specs"
STDIN: Final = "-"
_MOST_VALUES: Final = 100_000

app = typer.Typer()

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="A field of the spec, with its value as YAML: optimizer.lr=0.01, model.layers.0.channels=8",
    ),
]

SweepSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="A field of the sweep, with its value as YAML: spec.epochs=3, parameters.optimizer.lr.values=[0.1, 0.2]",
    ),
]
# The name of a parameter is itself a path, and one key.
_PARAMETER: Final = re.compile(r"(parameters)\.(.+?)(?:\.(values|min|max|scale|integer))?")


@command(app)
def specs(cli: Cli, name: Annotated[str | None, typer.Argument(help="Print this one")] = None) -> None:
    """List the specs that come with epochd, or print one."""
    if name is None:
        rows = [(each.stem, _first_comment(each)) for each in _own()]
        if cli.screen.as_json:
            cli.screen.json([{"name": stem, "about": about} for stem, about in rows])
        else:
            cli.screen.table(("name", "about"), rows)
        return
    path = _named(name)
    if path is None:
        raise Stop(Exit.NOT_FOUND, f"No spec {name!r} comes with epochd; there are {_names()}.")
    if cli.screen.as_json:
        cli.screen.json(read(name))
    else:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)


def read(given: str | None) -> dict[str, Any]:
    """The spec that is meant: none, standard input, one of epochd's own, or a file. Raises Stop and OSError."""
    if given is None:
        return {}
    if given == STDIN:
        return parsed(sys.stdin.buffer.read(), "standard input")
    path = _named(given) or Path(given)
    if not path.exists():
        raise Stop(Exit.USAGE, f"There is no file {given}, and no such spec comes with epochd; there are {_names()}.")
    return parsed(path.read_bytes(), given)


def parsed(content: bytes, source: str) -> dict[str, Any]:
    """Raises Stop, which says where it is wrong."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Stop(Exit.USAGE, f"{source} is no text in UTF-8 (byte {error.start + 1}).") from error
    found = _yaml(text, source)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Stop(Exit.USAGE, f"{source} is {_kind(found)}; fields with values are wanted, such as: epochs: 3")
    _require_json(found, source)
    return found


def changed_sweep(form: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """The form of a sweep with what --set says. Raises Stop."""
    return changed(form, settings, _split_for_sweep)


def changed(
    spec: dict[str, Any], settings: list[str] | None, split: Callable[[str], list[str]] = lambda path: path.split(".")
) -> dict[str, Any]:
    """The spec with what --set says. Raises Stop."""
    for setting in settings or []:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise Stop(Exit.USAGE, f"--set {setting}: give a path and a value, such as optimizer.lr=0.01")
        value = _yaml(text, f"--set {path}")
        _require_json(value, f"--set {path}")
        _put(spec, split(path.strip()), value)
    return spec


def _split_for_sweep(path: str) -> list[str]:
    found = _PARAMETER.fullmatch(path)
    return [part for part in found.groups() if part] if found else path.split(".")


def _put(spec: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    at: Any = spec
    for depth, part in enumerate(parents):
        at = _inside(at, part, path, depth)
    if isinstance(at, list):
        at[_index(at, last, path, len(parents))] = value
    else:
        at[last] = value


def _inside(at: Any, part: str, path: list[str], depth: int) -> Any:
    """What a path goes on in; a part that is not there yet begins empty."""
    found = at[_index(at, part, path, depth)] if isinstance(at, list) else at.setdefault(part, {})
    if not isinstance(found, dict | list):
        whole, here = ".".join(path), ".".join(path[: depth + 1])
        raise Stop(Exit.USAGE, f"--set {whole}: {here} is {_kind(found)}, which has no fields.")
    return found


def _index(at: list[Any], part: str, path: list[str], depth: int) -> int:
    if part.isascii() and part.isdecimal() and int(part) < len(at):
        return int(part)
    whole, here = ".".join(path), ".".join(path[:depth])
    raise Stop(Exit.USAGE, f"--set {whole}: {here} is a list of {len(at)}: say which, from 0 to {len(at) - 1}.")


def _yaml(text: str, source: str) -> Any:
    """As of YAML 1.2, of which JSON is a part. Raises Stop."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = str(error.problem or error.context or "it cannot be read")
        if isinstance(error, DuplicateKeyError):
            what = what.partition(" with value")[0].replace("found duplicate key", "this field is there twice:")
        raise Stop(Exit.USAGE, f"{source}{where}: {what}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise Stop(Exit.USAGE, f"{source}: {what}") from error


def _require_json(value: Any, source: str) -> None:
    """YAML has more than JSON. Raises Stop, which says where."""
    left = [("", value)]
    for _ in range(_MOST_VALUES):
        if not left:
            return
        at, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{at}.{name}", each) for name, each in value.items()]
            wrong = next((name for name in value if not isinstance(name, str)), None)
            if wrong is not None:
                raise Stop(Exit.USAGE, f"{source}: the field {at.lstrip('.')}.{wrong} should have a text for its name.")
        elif isinstance(value, list):
            left += [(f"{at}.{index}", each) for index, each in enumerate(value)]
        elif not _is_json(value):
            raise Stop(
                Exit.USAGE, f"{source}: {at.lstrip('.') or 'the value'} is {_kind(value)}; JSON has no such thing."
            )
    raise Stop(Exit.USAGE, f"{source} is too large for a spec.")


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "a group of fields", list: "a list", str: "a text", bytes: "binary", set: "a set"}
    known = names.get(type(value))
    return known or (
        clean(str(value)) if isinstance(value, int | float) or value is None else f"a {type(value).__name__}"
    )


def _own() -> list[Path]:
    return sorted(OWN.glob("*.yaml"))


def _named(name: str) -> Path | None:
    return next((path for path in _own() if path.stem == name), None)


def _names() -> str:
    return ", ".join(each.stem for each in _own()) or "none"


def _first_comment(path: Path) -> str:
    """What a spec says of itself."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
