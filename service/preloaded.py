"""The process that has torch loaded: kept running, and asked to fork a predictor whenever one is wanted."""

import asyncio
import os
import socket
import sys
import time
from contextlib import suppress

import structlog
from worker.jobs.errors import PredictorUnavailable
from worker.jobs.processes import adopt_orphans
from worker.jobs.settings import Settings

_OWN = (
    "data_dir",
    "min_free_bytes",
    "max_pixels",
    "max_entries",
    "max_unpacked_bytes",
    "max_image_bytes",
    "predictor_bytes",
    "predictor_device",
)
_BURIAL_SECONDS = 0.5
_YOUNG_SECONDS = 10.0  # one that dies younger than this is restarted more and more slowly
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.05, 10.0
_log = structlog.get_logger()


class Preloaded:
    def __init__(self, settings: Settings) -> None:
        # Predictors decode what strangers send: they get what they need, and neither the key nor the database's
        # password.
        own = {f"EPOCHD_{name.upper()}": str(getattr(settings, name)) for name in _OWN}
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("EPOCHD_")} | own
        self._wire: socket.socket | None = None

    def fork(self, name: str) -> socket.socket:
        """Our end of the socket of a new predictor, which takes requests from now on and answers them when it is there.

        `name`: what `ps` will call it. Raises PredictorUnavailable.
        """
        if self._wire is None:
            raise PredictorUnavailable
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:  # no descriptors are left
            raise PredictorUnavailable from error
        with theirs:
            try:
                socket.send_fds(self._wire, [name.encode()], [theirs.fileno()])
            except OSError as error:  # it just died, or is so far behind that its socket is full
                ours.close()
                raise PredictorUnavailable from error
        ours.setblocking(False)
        return ours

    async def keep(self) -> None:
        """Starts the process, and starts it again when it dies. Until cancelled."""
        adopt_orphans()  # predictors live on when it dies
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            started = time.monotonic()
            try:
                await self._run_once()
            except Exception:  # no memory for a process: worth another try
                _log.exception("preloaded_failed")
            age = time.monotonic() - started
            backoff = _FIRST_BACKOFF_SECONDS if age > _YOUNG_SECONDS else min(2 * backoff, _MAX_BACKOFF_SECONDS)
            _log.warning("preloaded_died", age_seconds=round(age, 3), restart_in_seconds=backoff)
            await asyncio.sleep(backoff)

    @staticmethod
    def bury(pid: int) -> None:
        """A predictor that has ended, or is about to: if its parent is gone, it is ours to wait for."""

        def wait() -> None:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

        asyncio.get_running_loop().call_later(_BURIAL_SECONDS, wait)

    async def _run_once(self) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "worker.inference", str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    env=self._env,
                )
            ours.setblocking(False)
            self._wire = ours
            try:
                await process.wait()
            finally:
                self._wire = None
                if process.returncode is None:
                    process.kill()
                    await process.wait()
