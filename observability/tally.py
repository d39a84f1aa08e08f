"""Counters and histograms for a process with one event loop: an object per series, no lock.

Most requests change ten of them, and whoever changes the same ones each time holds on to them. The library's own take a
lock for each bucket and look their series up by hand.
"""

from bisect import bisect_left
from collections.abc import Iterator
from math import inf
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from observability.names import Metric

_UNLABELLED: Final = ()


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Counts(Collector):
    """One counter."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._series: dict[tuple[str, ...], Count] = {}
        if not metric.labels:
            # There from the start, so that its first step can be told from its absence.
            self.at(_UNLABELLED)

    def at(self, labels: tuple[str, ...]) -> Count:
        """Their series: it is there from now on."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Count()
        return series

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._metric.name, self._metric.help, labels=self._metric.labels)
        for labels, series in self._series.items():
            family.add_metric(labels, series.value)
        yield family


class Series:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Distribution(Collector):
    """One histogram."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._bounds = (*sorted(metric.buckets), inf)
        self._series: dict[tuple[str, ...], Series] = {}
        if not metric.labels:
            self.at(_UNLABELLED)

    def at(self, labels: tuple[str, ...]) -> Series:
        """Their series: it is there from now on."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Series(self._bounds)
        return series

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
