"""How things are written for people. Whatever comes from elsewhere is made harmless first."""

import unicodedata
from datetime import UTC, datetime
from typing import Any, Final

# Control characters begin escape sequences, formatting ones turn the rest of a line around; those two join letters.
_DANGEROUS: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS: Final = frozenset("\u200c\u200d")
_SHORT_ID: Final = 8
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(text: str) -> str:
    """One line, in which nothing speaks to the terminal."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _DANGEROUS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def short(job_id: str) -> str:
    """The end of an id, which commands take for the whole."""
    return job_id[-_SHORT_ID:]


def number(value: Any) -> str:
    """Four digits of a fraction; a dash for what there is not."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.4g}"
    return str(value)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float | None) -> str:
    if count is None:
        return "-"
    step = 0
    while count >= 1024 and step < len(_UNITS) - 1:
        count, step = count / 1024, step + 1
    return f"{count:.1f} {_UNITS[step]}" if step else f"{count:.0f} B"


def ago(moment: datetime | None) -> str:
    if moment is None:
        return "-"
    seconds = max((datetime.now(UTC) - moment).total_seconds(), 0)
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def moment(at: datetime | None) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if at else "-"


def plain(value: Any) -> str:
    """A value of a spec, as it would be given to --set."""
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
