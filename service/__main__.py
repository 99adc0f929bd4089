"""`python -m service [--fd N]`: the HTTP service, in the foreground, on a socket of its own or an inherited one."""

import argparse
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from worker.jobs.starting import start

from .auth import first_key
from .main import create_app
from .protocol import protocol_of

_SWITCH_SECONDS = 0.0005  # a thread that looks something up must not hold the event loop for the usual 5 ms at a time
_GRACE_SECONDS = 5  # without a limit an open connection would keep the process alive after SIGTERM


class _Server(uvicorn.Server):
    """Lets those go who follow jobs, or they would keep it from ending; they come back to the one that follows."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        app = self.config.app
        if isinstance(app, FastAPI) and (feed := getattr(app.state, "feed", None)) is not None:
            feed.close_soon()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service")
    parser.add_argument("--fd", type=int, help="a listening socket to serve on")
    arguments = parser.parse_args()
    sys.setswitchinterval(_SWITCH_SECONDS)
    settings, db = start("service")
    if (key := first_key(settings, db)) is not None:
        sys.stderr.write(f"\nAPI key, shown only now: {key}\nSend it as: Authorization: Bearer <key>\n\n")
    db.close()
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        ws="none",
        http=protocol_of(settings),
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    sockets = [socket.socket(fileno=os.dup(arguments.fd))] if arguments.fd is not None else None
    # uvicorn stops by itself and then raises the signal again: by then leaving is all that is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _Server(config).run(sockets=sockets)


if __name__ == "__main__":
    main()
