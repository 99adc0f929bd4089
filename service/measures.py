"""What `/metrics` shows, in Prometheus' format. Each app has a registry of its own.

The database is asked at each scrape, so several services on one database all say the same of it: take one of them, or
`max by`. What a service says of itself (HTTP, predictions, streams, its process) is its own.
"""

import asyncio
import math
import shutil
import time
from collections.abc import Iterator
from typing import Final

import structlog
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import State
from starlette.types import Scope
from worker.jobs import stock
from worker.jobs.errors import EpochdError

from .telemetry import MeterProvider

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_FRESH_SECONDS: Final = 1.0  # several who scrape cost no more than one
_JOB_SECONDS: Final = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)
_PREDICT_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_log = structlog.get_logger()


class Measures:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._lock = asyncio.Lock()
        self._page, self._made = b"", -math.inf
        self.predict_seconds = Histogram(
            "epochd_predict_seconds",
            "Seconds from a picture's request to its answer, of those that were answered",
            buckets=_PREDICT_SECONDS,
            registry=self._registry,
        )
        self._predict_failures = Counter(
            "epochd_predict_failures",
            "Requests with pictures that were not answered, by the problem's code",
            ["code"],
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def telemetry(self) -> TelemetryConfig:
        """FastAPI's own, for this registry: only what it measures, and of that what has no client's text in it."""
        return {"meter_provider": MeterProvider(self._registry), "tracing": False, "logs": False, "exclude": _is_lean}

    def predict_failed(self, error: Exception) -> None:
        code = error.code if isinstance(error, EpochdError) else "internal"
        self._predict_failures.labels("validation_error" if isinstance(error, RequestValidationError) else code).inc()

    def watch(self, state: State) -> None:
        """Shows what this app's database, disk, predictor and streams are like."""
        self._registry.register(_Database(state))
        self._registry.register(_Here(state))

    async def page(self) -> bytes:
        """One scrape at a time, in one thread; whoever comes meanwhile gets the same one."""
        async with self._lock:
            if time.monotonic() - self._made > _FRESH_SECONDS:
                self._page = await asyncio.to_thread(
                    generate_latest, self._registry
                )  # others may all wait for the database
                self._made = time.monotonic()
            return self._page


def _is_lean(scope: Scope) -> bool:
    """POST /predict counts itself: FastAPI's way of doing that would be a twentieth of its time."""
    return (scope["type"], scope.get("method"), scope["path"]) == ("http", "POST", "/predict")


class _Database(Collector):
    def __init__(self, state: State) -> None:
        self._state = state
        self._open: frozenset[str] | None = None  # the jobs that had not ended when it was last asked
        self._job_seconds = Histogram(
            "epochd_job_seconds",
            "Seconds from a job's first start to its end, of jobs that ended while this service was scraped",
            ["status"],
            buckets=_JOB_SECONDS,
            registry=None,
        )

    def collect(self) -> Iterator[Metric]:
        try:
            found = stock.take(self._state.db)
            self._observe_ended(found.open_jobs)
        except SQLAlchemyError as error:
            _log.warning("metrics_without_database", exc_info=error)
            found = None
        described = "Whether the database answers; while it does not, what it knows is missing"
        yield _gauge("epochd_database_up", described, found is not None)
        if found is not None:
            yield from _shown(found)
        yield from self._job_seconds.collect()

    def _observe_ended(self, still_open: frozenset[str]) -> None:
        """Ended since the last scrape. Counted here and not in the database, where deleting a job would take it back,
        and a counter must not go down.
        """
        for status, seconds in stock.ended(self._state.db, (self._open or frozenset()) - still_open):
            self._job_seconds.labels(status).observe(seconds)
        self._open = still_open


def _shown(found: stock.Stock) -> Iterator[Metric]:
    for name, counts in (("jobs", found.jobs), ("datasets", found.datasets), ("deliveries", found.deliveries)):
        family = GaugeMetricFamily(f"epochd_{name}", f"How many {name} there are", labels=["status"])
        for status, count in counts.items():
            family.add_metric([status], count)
        yield family
    yield _gauge(
        "epochd_queue_oldest_seconds", "Age of the oldest queued job; 0 without any", found.oldest_queued_seconds
    )
    yield _gauge("epochd_samples_per_second", "Pictures that all running jobs train a second", found.samples_per_second)
    yield _gauge("epochd_workers", "Workers that are registered", found.workers)
    if found.heartbeat_age_seconds is not None:
        described = "Seconds since any worker was heard"
        yield _gauge("epochd_worker_heartbeat_age_seconds", described, found.heartbeat_age_seconds)


class _Here(Collector):
    """What can be told without the database."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        try:
            disk = shutil.disk_usage(self._state.settings.data_dir)
        except OSError:
            pass  # the folder is gone, which /readyz says
        else:
            yield _gauge("epochd_disk_free_bytes", "Free on the data folder's disk", disk.free)
            yield _gauge("epochd_disk_total_bytes", "Size of the data folder's disk", disk.total)
        predictor = self._state.predictor
        yield _gauge("epochd_predictor_ready", "Whether a picture would be answered at once", predictor.ready)
        yield _gauge("epochd_predictor_processes", "Processes that answer pictures and plans", len(predictor.pids))
        if (feed := getattr(self._state, "feed", None)) is not None:
            yield _gauge("epochd_streams_open", "Event streams and long polls that are open", feed.open)


def _gauge(name: str, described: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, described, value=float(value))
