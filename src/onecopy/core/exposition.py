"""Samples of declared metrics as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest
from prometheus_client.registry import Collector

from onecopy.core.metrics import Metric

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0
Sample = tuple[Metric, tuple[str, ...], float]
"""A metric, the values of its labels in their order, the value."""


def text(samples: Iterable[Sample]) -> str:
    registry = CollectorRegistry()
    registry.register(_Collector(samples))
    return generate_latest(registry).decode()


class _Collector(Collector):
    def __init__(self, samples: Iterable[Sample]) -> None:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for metric, labels, value in samples:
            if metric.name not in families:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
            families[metric.name].add_metric(labels, value)
        self._families = families

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        return iter(self._families.values())
