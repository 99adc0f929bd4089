"""What FastAPI itself measures of HTTP, by OpenTelemetry's interface, straight into Prometheus' registry.

Not by OpenTelemetry's SDK: a provider of that starts threads in every process that is forked, before it becomes
another program, which hangs; and it costs four times as much a request.
"""

from collections.abc import Sequence
from typing import Any, Final

import prometheus_client
from opentelemetry import metrics
from prometheus_client import CollectorRegistry

# None of them has a client's text in it: methods that are not known are one, and routes are templates.
_LABELS: Final = ("http.request.method", "http.route", "http.response.status_code")
_SECONDS: Final = {"s": "_seconds"}


class MeterProvider(metrics.MeterProvider):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def get_meter(self, name: str, *_: Any, **__: Any) -> metrics.Meter:
        return _Meter(name, self._registry)


class _Meter(metrics.NoOpMeter):
    """The two kinds of instrument that FastAPI asks for."""

    def __init__(self, name: str, registry: CollectorRegistry) -> None:
        super().__init__(name)
        self._registry = registry

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> metrics.Histogram:
        buckets = explicit_bucket_boundaries_advisory or prometheus_client.Histogram.DEFAULT_BUCKETS
        shown = _shown(name) + _SECONDS.get(unit, "")
        labels = [_shown(label) for label in _LABELS]
        return _Histogram(
            prometheus_client.Histogram(shown, description, labels, buckets=buckets, registry=self._registry)
        )

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> metrics.UpDownCounter:  # noqa: ARG002
        return _UpDownCounter(prometheus_client.Gauge(_shown(name), description, registry=self._registry))


class _Histogram(metrics.NoOpHistogram):
    def __init__(self, histogram: prometheus_client.Histogram) -> None:
        super().__init__("")
        self._histogram = histogram

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:  # noqa: ARG002
        self._histogram.labels(*[attributes.get(label, "") for label in _LABELS]).observe(amount)


class _UpDownCounter(metrics.NoOpUpDownCounter):
    def __init__(self, gauge: prometheus_client.Gauge) -> None:
        super().__init__("")
        self._gauge = gauge

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:  # noqa: ARG002
        self._gauge.inc(amount)


def _shown(name: str) -> str:
    return name.replace(".", "_")
