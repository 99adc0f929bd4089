"""What an attempt logged: a file in the data folder, of which callers may want the end or what is new."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 2000
_STACKS_BYTES: Final = 2**15  # that a faulthandler writes
_DIED, _ASKED = b"\nFatal Python error: ", b"\nCurrent thread "  # how stacks begin
_PAGE_BYTES: Final = 2**18


def training_log(job_id: str, attempt: int) -> str:
    """Where an attempt at a job logs, relative to the data folder."""
    return f"jobs/{job_id}/attempt-{attempt}.log"


def tail(path: Path, lines: int = 10) -> str | None:
    """The last lines, of at most 2,000 bytes together; None where there are none.

    Where they are the stacks of a process that died or was asked what it is doing, it is their beginning.
    """
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - _STACKS_BYTES)
            file.seek(start)
            said = file.read()
    except OSError:
        return None
    stacks = (b"\n" + said).rfind(_DIED)
    if stacks < 0:
        stacks = (b"\n" + said).rfind(_ASKED)
    if stacks >= 0:
        return said[stacks:][:_TAIL_BYTES].decode(errors="replace").strip("\n")
    cut = start or len(said) > _TAIL_BYTES
    found = said[-_TAIL_BYTES:].decode(errors="replace").strip("\n").split("\n")
    if cut and len(found) > 1:
        found = found[1:]  # the first one is cut
    return "\n".join(found[-lines:]) or None


def newest(path: Path, limit: int) -> list[str]:
    """The last lines, oldest first: of at most 256 KiB."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - _PAGE_BYTES)
            file.seek(start)
            said = file.read(_PAGE_BYTES)
    except OSError:  # it has not said anything yet
        return []
    lines = said.decode(errors="replace").splitlines()
    return lines[1 if start else 0 :][-limit:]


@dataclass(frozen=True)
class Page:
    lines: list[str]  # bytes that are no UTF-8 are replaced
    next_since: int  # the offset behind them, in bytes
    is_end: bool  # whether the file had no more, not even a part of a line


def read(path: Path, since: int, limit: int, *, is_whole: bool) -> Page:
    """Up to `limit` lines from the byte offset `since` on, and not more than 256 KiB: a longer line comes in pieces.

    A last line without an end is only given when the log is whole: nobody will write any more.
    """
    try:
        with path.open("rb") as file:
            file.seek(since)
            chunk = file.read(_PAGE_BYTES)
            more = bool(file.read(1))
    except OSError:  # it has not said anything yet
        return Page([], since, is_end=True)
    *whole, rest = chunk.split(b"\n")
    taken = whole[:limit]
    end = since + sum(len(line) + 1 for line in taken)
    if rest and len(taken) == len(whole) < limit and (is_whole or more) and (not more or not whole):
        taken.append(_cut(rest) if more else rest)
        end += len(taken[-1])
    return Page([line.decode(errors="replace") for line in taken], end, is_end=not more and end == since + len(chunk))


def _cut(piece: bytes) -> bytes:
    """Without the part of a character that it may end with."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(piece)
    part, _ = decoder.getstate()
    return piece[: len(piece) - len(part)]
