"""Where the service is and how it is reached."""

import os
from typing import Any, Final

import httpx2

_DEFAULT_PORT: Final = "8000"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def resolved_url(url: str | None) -> str:
    """Raises ValueError for what is no address."""
    url = url or os.environ.get("EPOCHD_URL") or f"http://127.0.0.1:{os.environ.get('EPOCHD_PORT') or _DEFAULT_PORT}"
    if "@" in url:  # whatever else is wrong with it: what may be a password is not said again
        raise ValueError("An address holds no user and no password (no @): give the API key as EPOCHD_API_KEY instead.")
    try:
        found = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{url} is no address: {error}") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise ValueError(f"{url} is no address of an epochd: http://<host>:<port> is one.")
    return str(found).rstrip("/")


def resolved_key(key: str | None) -> str | None:
    """Raises ValueError for what cannot be sent."""
    key = (key or os.environ.get("EPOCHD_API_KEY") or "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError("The API key holds characters that no key has: copy it again.")
    return key


def options(url: str, key: str | None) -> dict[str, Any]:
    """Of httpx2's client."""
    headers = {"Accept": "application/json", "User-Agent": "epochd-client"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    # What the environment says of proxies is about other machines.
    return {"base_url": url, "headers": headers, "trust_env": httpx2.URL(url).host not in _LOOPBACK}
