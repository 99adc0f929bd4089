"""The names in an archive. None of them ever names a file here; a hostile one is refused all the same, because it
says what the archive is, and a careless one because it would mean something else on another system.
"""

import unicodedata
from pathlib import PurePosixPath
from typing import Final

from worker.jobs.errors import ArchiveTooLarge, UnsafePath
from worker.jobs.texts import printable, redacted

USUAL_BYTES: Final = 160  # a name and what there is to say of it, in a zip's directory or in memory
_OVERHEAD_BYTES: Final = 46  # of these, without the name
_MAX_NAME, _MAX_PATH = 255, 1024  # bytes, as file systems count
_MAX_DEPTH: Final = 32
_CLUTTER: Final = frozenset({"__macosx", "thumbs.db", "desktop.ini"})  # what systems leave in folders, and .dotfiles


def is_clutter(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in path.parts)


class Names:
    """Judges the names of one archive, one after another."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._room = max_entries * USUAL_BYTES
        self._spelled: dict[str, str] = {}  # as a system sees it that ignores case -> as it came
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def check(self, name: str, *, is_folder: bool) -> PurePosixPath | None:
        """The path that the name means, None for the archive's root. Raises UnsafePath, which says which and why, and
        ArchiveTooLarge.
        """
        plain = name.removeprefix("./")
        if is_folder:
            plain = plain.removesuffix("/")
        if plain in ("", "."):
            return None
        if (problem := _problem(plain)) is not None:
            raise UnsafePath(f"The archive holds a name that {problem}{_shown(plain)}.")
        if not is_folder:
            if plain in self._files or plain in self._folders:
                raise UnsafePath(f"The archive holds a name twice{_shown(plain)}.")
            self._files.add(plain)
            self._compare(plain)
        folder = plain if is_folder else plain.rpartition("/")[0]
        while folder and folder not in self._folders:  # if it is, so are those above it
            if folder in self._files:
                raise UnsafePath(f"The archive holds a name twice, as a file and as a folder{_shown(folder)}.")
            self._folders.add(folder)
            self._compare(folder)
            folder = folder.rpartition("/")[0]
        return PurePosixPath(plain)

    def _compare(self, path: str) -> None:
        self._room -= _OVERHEAD_BYTES + len(path)  # a short path may name many folders that have no entry of their own
        if self._room < 0:
            raise ArchiveTooLarge(f"The archive holds more than {self._max_entries} files and folders of usual names.")
        blurred = unicodedata.normalize("NFC", path).casefold()
        if self._spelled.setdefault(blurred, path) != path:
            raise UnsafePath(f"The archive holds names that differ only in upper and lower case{_shown(path)}.")


def _problem(name: str) -> str | None:
    parts = name.split("/")
    if name.startswith("/"):
        return "begins at the root of a file system"
    if "\\" in name:
        return "holds a backslash"
    if len(name) > 1 and name[1] == ":":
        return "begins with a drive"
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of its folder"
    if any(part[-1] in ". " for part in parts):
        return "ends in a dot or a space"
    try:
        printable(name)
        encoded = [part.encode() for part in parts]
    except ValueError:
        return "is not valid UTF-8, or holds control characters or an API key"
    if len(parts) > _MAX_DEPTH:
        return f"lies more than {_MAX_DEPTH} folders deep"
    if max(map(len, encoded)) > _MAX_NAME or sum(map(len, encoded)) + len(parts) > _MAX_PATH:
        return f"is longer than {_MAX_NAME} bytes, or its path longer than {_MAX_PATH}"
    return None


def _shown(name: str) -> str:
    """The name, as far as it can be shown."""
    clean = "".join(character if character.isprintable() else "?" for character in redacted(name)[:80])
    return f": {clean}{'…' if len(name) > len(clean) else ''}"
