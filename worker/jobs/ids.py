"""Ids of jobs and datasets: opaque, and sorted by creation."""

import re
import secrets
import time
from datetime import datetime

_ID = re.compile(r"[0-9a-f]{24}")


def new_id() -> str:
    """Nanoseconds since 1970, then randomness, in hexadecimal."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


def id_of(moment: datetime) -> str:
    """The least that an id of that moment can be."""
    return f"{int(moment.timestamp()) * 10**9:016x}"


def is_id(text: str) -> bool:
    """PostgreSQL refuses some texts outright (NUL); what is no id of ours is asked of neither database."""
    return _ID.fullmatch(text) is not None
