"""Logging of every process: structlog, JSON unless a person is watching; what libraries log goes the same way.

No line holds an API key, whoever wrote it and wherever in it the key stood: each is looked through when it is done.
"""

import json
import logging
import sys
from typing import Final

import structlog

from .texts import redacted

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_HIDDEN: Final = "***"
_secrets: set[str] = set()  # as they would stand in a line


def configure(process: str) -> None:
    """Sends this process's logs, and those of the libraries in it, to standard error."""
    render: list[structlog.typing.Processor]
    if sys.stderr.isatty():
        render = [structlog.dev.ConsoleRenderer()]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(  # past the standard library's records, which cost more than a line's rendering
        processors=[*_SHARED, *render, _redact],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render, _redact],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(process=process)


def hide(secret: str) -> None:
    """From now on no line of this process shows it. What looks like one of our keys is hidden anyway."""
    _secrets.update({secret, json.dumps(secret)[1:-1]})


def _redact(_logger: object, _method: str, line: structlog.typing.EventDict | str) -> str:
    """The last of the processors: it is given the line as it will be written, tracebacks and all."""
    assert isinstance(line, str)
    for secret in _secrets:
        line = line.replace(secret, _HIDDEN)
    return redacted(line)
