"""Counters and histograms for a process with one event loop: a dictionary's entry per series, no lock.

Most requests change ten of them. The library's own take a lock for each bucket and look their series up by hand.
"""

from bisect import bisect_left
from collections.abc import Iterator
from math import inf
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from observability.names import Metric

_UNLABELLED: Final = ()


class Counts(Collector):
    """One counter."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        # One without labels is there from the start, so that its first step can be told from its absence.
        self._counts: dict[tuple[str, ...], float] = {} if metric.labels else {_UNLABELLED: 0.0}

    def add(self, labels: tuple[str, ...], amount: float) -> None:
        self._counts[labels] = self._counts.get(labels, 0.0) + amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._metric.name, self._metric.help, labels=self._metric.labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family


class _Series:
    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0


class Distribution(Collector):
    """One histogram."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._bounds = (*sorted(metric.buckets), inf)
        self._series: dict[tuple[str, ...], _Series] = {} if metric.labels else {_UNLABELLED: self._empty()}

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = self._empty()
        series.counts[bisect_left(self._bounds, value)] += 1
        series.total += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._metric.name, self._metric.help, labels=self._metric.labels)
        for labels, series in self._series.items():
            below = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip(self._bounds, series.counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == inf else str(float(bound)), below))
            family.add_metric(labels, buckets=buckets, sum_value=series.total)
        yield family

    def _empty(self) -> _Series:
        return _Series(len(self._bounds))
