"""`python -m worker.inference <fd>`: a process that has torch loaded, and forks a predictor for each socket that the
service hands it.

Predictors alone decode what strangers send: whatever that does costs one of them, and the next is there in
milliseconds, where a fresh process would take seconds. They do not die with this one: the service closes their sockets.
"""

import gc
import os
import signal
import socket
import sys
from typing import Final

import structlog
import torch

from worker.jobs import logs
from worker.jobs.processes import die_with_parent, name_process, set_niceness, thread_count
from worker.jobs.settings import Settings
from worker.jobs.wire import FrameKind, pack
from worker.training import arithmetic

from .serving import serve

_NAME_BYTES: Final = 15  # prctl(2)
_QUICK: Final = ("predictor", "planner")
_NICENESS_OF_ERRANDS: Final = 19  # they take long, and nobody counts their milliseconds
_log = structlog.get_logger()


def main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service closes the sockets
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    die_with_parent()
    logs.configure("predictor")
    settings = Settings()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(_fastest_exact())
    if (threads := thread_count("self")) != 1:
        raise RuntimeError(f"the preloaded process has {threads} threads: its children could hang")
    gc.collect()
    gc.freeze()  # a collection would copy the pages that children share
    with socket.socket(fileno=descriptor) as wire:
        try:
            wire.sendall(pack(FrameKind.HELLO, 0, body=str(os.getpid()).encode()))
        except OSError:  # the service has died meanwhile
            return
        while True:
            name, descriptors, _, _ = socket.recv_fds(wire, _NAME_BYTES, 1)
            if not name:
                return
            for each in descriptors:
                if os.fork() == 0:
                    wire.close()
                    _child(name.decode(), each, settings)
                os.close(each)


def _fastest_exact() -> str:
    """As `arithmetic.probe` finds, in a process that may start threads: this one must not."""
    out, into = os.pipe()
    if os.fork() == 0:
        os.write(into, arithmetic.probe()[0].encode())
        os._exit(0)
    os.close(into)
    with open(out) as told:  # noqa: PTH123  # a pipe has no path
        return told.read() or "highest"


def _child(name: str, descriptor: int, settings: Settings) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        name_process(name)
        os.setsid()
        if name not in _QUICK:
            set_niceness(os.getpid(), _NICENESS_OF_ERRANDS)
        with socket.socket(fileno=descriptor) as wire:
            serve(wire, settings)
        code = 0
    except ConnectionError:
        code = 0  # the service is gone
    except BaseException:
        _log.exception("predictor_failed")
    finally:
        os._exit(code)  # not what the parent would do at its end


if __name__ == "__main__":
    main(int(sys.argv[1]))
