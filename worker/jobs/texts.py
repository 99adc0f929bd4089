"""Texts that both databases can store and every page can show."""

import unicodedata

# Cc: control characters (NUL is refused by PostgreSQL), Cs: lone surrogates (no valid UTF-8).
_REFUSED = frozenset({"Cc", "Cs"})


def printable(text: str) -> str:
    """Returns `text`; raises ValueError when it holds a control character or half of a surrogate pair."""
    if not text.isprintable() and any(unicodedata.category(character) in _REFUSED for character in text):
        raise ValueError("must not contain control characters or lone surrogates")
    return text
