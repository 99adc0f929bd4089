"""The lines in which many predictions are told."""

import csv
import io
import json
from typing import Any, Literal, NamedTuple, Protocol

from worker.training.checkpoints import Metadata

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute: OWASP, "CSV injection"


class Line(NamedTuple):
    number: int  # from 1
    file: str | None = None  # its name in the archive
    truth: int | list[float] | None = None  # class index, or numbers
    error: str | None = None  # why there is no prediction


class Lines(Protocol):
    def head(self) -> bytes: ...

    def line(self, line: Line, answer: bytes | None) -> bytes:
        """`answer`: a `Prediction` as JSON."""

    def tail(self, done: int, failed: int, accuracy: float | None, seconds: float) -> bytes: ...


def lines_of(kind: Literal["csv", "ndjson"], metadata: Metadata, total: int, *, has_truth: bool) -> Lines:
    return (_Csv if kind == "csv" else _Ndjson)(metadata, total, has_truth=has_truth)


class _Ndjson:
    """One JSON object a line: first what answers and how many will come, then each picture, then how it went."""

    def __init__(self, metadata: Metadata, total: int, *, has_truth: bool) -> None:
        self._metadata, self._total, self._has_truth = metadata, total, has_truth

    def head(self) -> bytes:
        return _json({"job": self._metadata.job, "epoch": self._metadata.epoch, "total": self._total})

    def line(self, line: Line, answer: bytes | None) -> bytes:
        known: dict[str, Any] = {"number": line.number, "of": self._total}
        if line.file is not None:
            known["file"] = line.file
        if self._has_truth:
            known["truth"] = _truth(self._metadata, line)
        if answer is None:
            return _json(known | {"error": line.error})
        return _json(known)[:-2] + b"," + answer[1:] + b"\n"

    def tail(self, done: int, failed: int, accuracy: float | None, seconds: float) -> bytes:
        about = {"done": done, "failed": failed, "seconds": round(seconds, 3)}
        return _json(about if accuracy is None else about | {"accuracy": accuracy})


class _Csv:
    """A table (RFC 4180): a header, then a row for each picture."""

    def __init__(self, metadata: Metadata, total: int, *, has_truth: bool) -> None:
        del total
        self._metadata, self._has_truth = metadata, has_truth
        self._columns = metadata.targets or ["class_index", "label", "probability"]

    def head(self) -> bytes:
        truth = [f"true {name}" for name in self._metadata.targets or ["label"]] if self._has_truth else []
        return _row(["number", "file", *truth, *self._columns, "warnings", "error"])

    def line(self, line: Line, answer: bytes | None) -> bytes:
        told = json.loads(answer) if answer is not None else {"values": {}}
        found = told["values"] if self._metadata.targets or answer is None else told
        truth = _truth(self._metadata, line) if self._has_truth else []
        cells = [found.get(name) for name in self._columns]
        notes = [" ".join(told.get("warnings", [])), line.error]
        return _row([line.number, line.file, *(truth if isinstance(truth, list) else [truth]), *cells, *notes])

    def tail(self, done: int, failed: int, accuracy: float | None, seconds: float) -> bytes:
        del done, failed, accuracy, seconds  # a table has rows only
        return b""


def _truth(metadata: Metadata, line: Line) -> object:
    return metadata.classes[line.truth] if isinstance(line.truth, int) else line.truth


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _row(cells: list[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow([_harmless(cell) for cell in cells])
    return text.getvalue().encode(errors="backslashreplace")


def _harmless(cell: object) -> object:
    """Text that a spreadsheet would take for a formula gets a quote mark before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
