"""Which addresses are pages. Only names: who asks for keys needs them, and no page."""

from typing import Final

STATIC: Final = "/static/"  # scripts, styles and icons: the same for every epochd
SIGN_IN: Final = "/ui/key"


def is_page(path: str) -> bool:
    return path == "/" or path.startswith("/ui/")


def cookie_name(host: str) -> str:
    """What a browser keeps the key under. It sends cookies to every port of a host, so each port has a name of its own.

    `host`: the request's header, `localhost:8000`.
    """
    port = host.rpartition(":")[2]
    return f"epochd_key_{port}" if port.isascii() and port.isdecimal() else "epochd_key"
