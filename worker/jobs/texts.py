"""Texts that both databases can store and every page can show, and that hold no API key."""

import re
import unicodedata
from typing import Final

KEY_PREFIX: Final = "epochd_"
REDACTED: Final = "epochd_***"
# What `secrets.token_urlsafe(32)` makes, behind the prefix. Whatever is glued to a key's end goes with it.
_KEY: Final = re.compile(r"epochd_[A-Za-z0-9_-]{43,}")
# Cc: control characters (NUL is refused by PostgreSQL), Cs: lone surrogates (no valid UTF-8).
_REFUSED = frozenset({"Cc", "Cs"})


def printable(text: str) -> str:
    """Returns `text`; raises ValueError when it holds a control character, half of a surrogate pair, or an API key.

    Keys get into labels and names by a slip of the hand; what is not stored cannot be read by others.
    """
    if not text.isprintable() and any(unicodedata.category(character) in _REFUSED for character in text):
        raise ValueError("must not contain control characters or lone surrogates")
    if looks_like_key(text):
        raise ValueError("must not contain an API key")
    return text


def looks_like_key(text: str) -> bool:
    """Whether there is something in it that could be one of our keys."""
    return KEY_PREFIX in text and _KEY.search(text) is not None


def redacted(text: str) -> str:
    """The text with `epochd_***` in place of every key. Ask before the text is cut: half a key is not recognised."""
    return _KEY.sub(REDACTED, text) if KEY_PREFIX in text else text
