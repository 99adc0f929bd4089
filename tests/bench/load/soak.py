"""Half an hour of small jobs, predictions and streams: whether memory, descriptors, threads or files grow."""

import argparse
import asyncio
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from tests.end_to_end.pictures import png
from tests.end_to_end.serving import Epochd, epochd
from tests.tiny import prepare_tiny

from . import places
from .asking import Connection, Tally
from .tables import slope, spread, table

_SPEC: Final = b'{"threads": 1, "epochs": 3, "model": {"hidden": [32]}, "labels": {"of": "soak"}}'
_PREDICTIONS_PAUSE: Final = 0.05
_BROKEN_STREAM_PAUSE: Final = 0.5
_HOUR: Final = 3600.0
_MEMORY: Final = "bytes"
Sample = tuple[float, Counter[str]]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=5, metavar="MINUTES", help="that do not count")
    parser.add_argument("--every", type=float, default=10, metavar="SECONDS", help="between two samples")
    parser.add_argument("--streams", type=int, default=20)


def run(console: Console, scratch: Path, arguments: argparse.Namespace) -> bool:
    data_dir, temporary = scratch / "data", scratch / "temporary"
    temporary.mkdir()
    picture = png(np.array(prepare_tiny(data_dir).test.images[0, 0]))
    done: dict[str, Tally] = {"job, to its end": Tally(), "prediction": Tally(), "stream": Tally()}
    with epochd(data_dir, dict(places.UNLIMITED) | {"EPOCHD_SLOTS": "1", "TMPDIR": str(temporary)}) as server:
        first = server.submit(threads=1, epochs=1)
        server.wait_terminal(first)
        samples = asyncio.run(_Soak(server, first, picture, temporary, done).go(arguments))
    made = table(f"done in {arguments.minutes:g} minutes", "what", "count", "p50 ms", "p99 ms", "most ms", "errors")
    for name, tally in done.items():
        made.add_row(name, str(len(tally.seconds)), *spread(tally.seconds).cells, str(tally.errors))
    console.print(made, *(tally.last_error for tally in done.values() if tally.errors), sep="\n")
    console.print(_growth(samples, arguments.warm_up))
    return not any(tally.errors for tally in done.values())


class _Soak:
    def __init__(self, server: Epochd, job_id: str, picture: bytes, temporary: Path, done: dict[str, Tally]) -> None:
        self._server, self._job_id, self._picture, self._done = server, job_id, picture, done
        self._temporary, self._started = temporary, time.monotonic()
        self._newest = job_id

    async def go(self, arguments: argparse.Namespace) -> list[Sample]:
        whole = [self._jobs, self._predictions, *[self._streams] * arguments.streams]
        tasks = [asyncio.create_task(each()) for each in whole]
        samples: list[Sample] = []
        while (at := time.monotonic() - self._started) < 60 * arguments.minutes:
            samples.append((at, await asyncio.to_thread(self._sample)))
            await asyncio.sleep(arguments.every)
            for task in tasks:
                if task.done():
                    task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return samples

    async def _jobs(self) -> None:
        """One after another, each followed to its end."""
        connection, tally = Connection(self._server.url), self._done["job, to its end"]
        while True:
            started = time.perf_counter()
            try:
                answer = await connection.ask("POST", "/jobs", _SPEC)
                self._newest = answer.json["id"]
                await self._to_the_end(self._newest)
            except (OSError, KeyError) as error:
                tally.refuse(repr(error))
                await asyncio.sleep(_BROKEN_STREAM_PAUSE)
            else:
                tally.seconds.append(time.perf_counter() - started)

    async def _predictions(self) -> None:
        connection, path = Connection(self._server.url), f"/predict?job={self._job_id}"
        while True:
            kind = {"Content-Type": "image/png"}
            await connection.tallied(self._done["prediction"], "POST", path, self._picture, kind)
            await asyncio.sleep(_PREDICTIONS_PAUSE)

    async def _streams(self) -> None:
        """Of the newest job, again and again; every second one is left before its end."""
        tally, is_patient = self._done["stream"], True
        while True:
            started = time.perf_counter()
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if is_patient else _BROKEN_STREAM_PAUSE):
                        await self._to_the_end(self._newest)
            except OSError as error:
                tally.refuse(repr(error))
            else:
                tally.seconds.append(time.perf_counter() - started)
            is_patient = not is_patient
            await asyncio.sleep(_BROKEN_STREAM_PAUSE)

    async def _to_the_end(self, job_id: str) -> None:
        """Raises OSError."""
        events = Connection(self._server.url).events(f"/jobs/{job_id}/stream")
        try:
            async for each in events:
                if each.get("event") == "end":
                    return
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        raise OSError("a stream ended without its end")

    def _sample(self) -> Counter[str]:
        found = places.usage(self._server.process.pid)
        found["temporary files"] = sum(1 for _ in self._temporary.rglob("*"))
        with suppress(OSError):
            found["bytes of the write-ahead log"] = (self._server.data_dir / "epochd.db-wal").stat().st_size
        return found


def _growth(samples: list[Sample], warm_up: float) -> object:
    """Where trainings come and go, the line through all samples says more than the last one."""
    counted = [(at, found) for at, found in samples if at >= 60 * warm_up] or samples
    made = table(f"{len(counted)} samples after the warm-up", "what", "first", "last", "least", "most", "slope an hour")
    for name in sorted({name for _, found in counted for name in found}):
        unit, form = (1e6, ",.1f") if name.startswith(_MEMORY) else (1.0, ",.0f")
        values = [found[name] / unit for _, found in counted]
        grown = slope([(at / _HOUR, value) for (at, _), value in zip(counted, values, strict=True)])
        told = name.replace(_MEMORY, "MB") if unit > 1 else name
        cells = (values[0], values[-1], min(values), max(values), grown)
        made.add_row(told, *(format(cell, form) for cell in cells))
    return made
