"""Prometheus metrics of one process, behind functions with the right labels.

A registry per process, never the library's global one: tests and several services in one process stay apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from observability import names
from observability.instrument import CANCELLED, OK, PortCall
from observability.tally import Count, Counts, Distribution, Series
from ports.ids import TenantId
from ports.messages import Usage

OTHER: Final = "other"

_MAX_TENANTS: Final = 100
_MAX_TOOLS: Final = 200
_MAX_MODELS: Final = 200
_MAX_HELD: Final = 4_096
"""Combinations of labels whose series are held on to."""
KeyT = TypeVar("KeyT")
SeriesT = TypeVar("SeriesT")

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Bounded:
    """Label values, of which the first `limit` seen get a series of their own; the rest is `other`.

    First come rather than greatest: a series that came and went with its rank would look like a counter reset.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value


class Metrics:
    """What the services of one process count. Every method is cheap, and safe to call from any thread."""

    content_type: Final = CONTENT_TYPE_LATEST

    def __init__(self, *, max_tenants: int = _MAX_TENANTS) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._counters = {m.name: Counts(m) for m in names.METRICS if m.kind == "counter"}
        self._gauges = {m.name: self._gauge(m) for m in names.METRICS if m.kind == "gauge"}
        self._histograms = {m.name: Distribution(m) for m in names.METRICS if m.kind == "histogram"}
        for collector in (*self._counters.values(), *self._histograms.values()):
            self._registry.register(collector)
        self._tenants = Bounded(max_tenants)
        self._tools = Bounded(_MAX_TOOLS)
        self._models = Bounded(_MAX_MODELS)
        # What most requests change, by what they say: looked up once.
        self._of_requests: dict[tuple[str, str, int, bool], tuple[Count, Series | None]] = {}
        self._of_models: dict[tuple[str, str], tuple[Count, Series]] = {}
        self._of_usage: dict[tuple[str, TenantId], tuple[Count, Count, Count]] = {}
        self._of_ports: dict[tuple[str, str], Series] = {}

    def render(self) -> bytes:
        """The text format that `/metrics` answers with, of type `content_type`."""
        return generate_latest(self._registry)

    # HTTP

    def http_request(self, *, route: str, method: str, status: int, seconds: float | None) -> None:
        """`route` is the template that matched, or `unmatched`. `seconds` is None for an event stream."""
        key = (route, method if method in _METHODS else OTHER, status, seconds is not None)
        requests, durations = self._of_requests.get(key) or self._request_series(*key)
        requests.value += 1
        if seconds is not None and durations is not None:
            durations.observe(seconds)

    def auth_failure(self, code: str) -> None:
        self._count(names.AUTH_FAILURES, code)

    # Runs

    def run_created(self, tenant: TenantId) -> None:
        self._count(names.RUNS_CREATED, self._tenants.label(tenant))

    def run_refused(self, code: str) -> None:
        self._count(names.RUNS_REFUSED, code)

    def run_claimed(self, *, waited: timedelta | None, recovered: bool) -> None:
        """`waited` is None when the run has been claimed before."""
        if waited is not None:
            self._observe(names.RUN_WAIT, waited.total_seconds())
        if recovered:
            self._count(names.RUN_RECOVERIES)

    def run_finished(self, *, status: str, took: timedelta) -> None:
        self._count(names.RUNS_FINISHED, status)
        self._observe(names.RUN_DURATION, took.total_seconds(), status)

    @contextmanager
    def run_active(self) -> Iterator[None]:
        """Around the time a worker holds a run."""
        with self._gauges[names.ACTIVE_RUNS.name].track_inprogress():
            yield

    def step(self, *, kind: str, status: str, seconds: float) -> None:
        self._observe(names.STEP_DURATION, seconds, kind, status)

    def tool_call(self, *, tool: str, seconds: float, error_code: str | None = None) -> None:
        label = self._tools.label(tool)
        self._observe(names.TOOL_DURATION, seconds, label)
        if error_code is not None:
            self._count(names.TOOL_ERRORS, label, error_code)

    def queue_depth(self, messages: int) -> None:
        self._gauges[names.QUEUE_DEPTH.name].set(messages)

    # The gateway

    def gateway_configuration(self, *, version: int, refused: bool) -> None:
        self._gauges[names.GATEWAY_VERSION.name].set(version)
        self._gauges[names.GATEWAY_REFUSED.name].set(int(refused))

    # Models

    def model_request(self, *, backend: str, model: str, seconds: float, error_code: str | None = None) -> None:
        """`backend` and `model` as configured, never as a client spelled them."""
        requests, durations = self._of_models.get((backend, model)) or self._model_series(backend, model)
        requests.value += 1
        durations.observe(seconds)
        if error_code is not None:
            self._count(names.MODEL_ERRORS, backend, error_code)

    def usage(self, *, model: str, tenant: TenantId, usage: Usage) -> None:
        prompt, completion, cost = self._of_usage.get((model, tenant)) or self._usage_series(model, tenant)
        prompt.value += usage.prompt_tokens
        completion.value += usage.completion_tokens
        cost.value += usage.cost_nanousd

    def policy_block(self, reason: str) -> None:
        """`reason` is one of the policy's own words."""
        self._count(names.POLICY_BLOCKS, reason)

    def redactions(self, kind: str, count: int = 1) -> None:
        self._count(names.POLICY_REDACTIONS, kind, amount=count)

    def budget_refusal(self, code: str) -> None:
        self._count(names.BUDGET_REFUSALS, code)

    # Ports

    def egress_denial(self, rule: str) -> None:
        self._count(names.EGRESS_DENIALS, rule)

    def secret_read(self, kind: str, code: str) -> None:
        self._count(names.SECRET_READS, kind, code)

    def port_call(self, call: PortCall) -> None:
        """An `on_call` for `instrument`."""
        key = (call.port, call.method)
        series = self._of_ports.get(key)
        if series is None:
            series = self._of_ports[key] = self._histograms[names.PORT_DURATION.name].at(key)
        series.observe(call.seconds)
        if call.code not in (OK, CANCELLED):
            self._count(names.PORT_ERRORS, call.port, call.method, call.code)

    def _request_series(self, route: str, method: str, status: int, timed: bool) -> tuple[Count, Series | None]:
        labels = (route, method, f"{status // 100}xx")
        durations = self._histograms[names.HTTP_DURATION.name].at(labels) if timed else None
        found = (self._counters[names.HTTP_REQUESTS.name].at(labels), durations)
        return _held(self._of_requests, (route, method, status, timed), found)

    def _model_series(self, backend: str, model: str) -> tuple[Count, Series]:
        requests = self._counters[names.MODEL_REQUESTS.name].at((backend, self._models.label(model)))
        durations = self._histograms[names.MODEL_DURATION.name].at((backend,))
        return _held(self._of_models, (backend, model), (requests, durations))

    def _usage_series(self, model: str, tenant: TenantId) -> tuple[Count, Count, Count]:
        label, whose = self._models.label(model), self._tenants.label(tenant)
        tokens = self._counters[names.MODEL_TOKENS.name]
        prompt, completion = (tokens.at((label, kind, whose)) for kind in ("prompt", "completion"))
        cost = self._counters[names.MODEL_COST.name].at((label, whose))
        return _held(self._of_usage, (model, tenant), (prompt, completion, cost))

    def _count(self, metric: names.Metric, *labels: str, amount: float = 1) -> None:
        self._counters[metric.name].at(labels).value += amount

    def _observe(self, metric: names.Metric, value: float, *labels: str) -> None:
        self._histograms[metric.name].at(labels).observe(value)

    def _gauge(self, metric: names.Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)


def _held(known: dict[KeyT, SeriesT], key: KeyT, series: SeriesT) -> SeriesT:
    if len(known) < _MAX_HELD:
        known[key] = series
    return series
