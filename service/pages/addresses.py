"""Which addresses are pages. Only names: who asks for keys needs them, and no page."""

from typing import Final

STATIC: Final = "/static/"  # scripts, styles and icons: the same for every epochd
SIGN_IN: Final = "/ui/key"
COOKIE: Final = "epochd_key"


def is_page(path: str) -> bool:
    return path == "/" or path.startswith("/ui/")
