"""Prometheus metrics of one process, behind functions with the right labels.

A registry per process, never the library's global one: tests and several services in one process stay apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from observability import names
from observability.instrument import CANCELLED, OK, PortCall
from observability.tally import Counts, Distribution
from ports.ids import TenantId
from ports.messages import Usage

OTHER: Final = "other"

_MAX_TENANTS: Final = 100
_MAX_TOOLS: Final = 200
_MAX_MODELS: Final = 200
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

    def render(self) -> bytes:
        """The text format that `/metrics` answers with, of type `content_type`."""
        return generate_latest(self._registry)

    # HTTP

    def http_request(self, *, route: str, method: str, status: int, seconds: float | None) -> None:
        """`route` is the template that matched, or `unmatched`. `seconds` is None for an event stream."""
        labels = (route, method if method in _METHODS else OTHER, f"{status // 100}xx")
        self._count(names.HTTP_REQUESTS, *labels)
        if seconds is not None:
            self._observe(names.HTTP_DURATION, seconds, *labels)

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
        self._count(names.MODEL_REQUESTS, backend, self._models.label(model))
        self._observe(names.MODEL_DURATION, seconds, backend)
        if error_code is not None:
            self._count(names.MODEL_ERRORS, backend, error_code)

    def usage(self, *, model: str, tenant: TenantId, usage: Usage) -> None:
        label, whose = self._models.label(model), self._tenants.label(tenant)
        self._count(names.MODEL_TOKENS, label, "prompt", whose, amount=usage.prompt_tokens)
        self._count(names.MODEL_TOKENS, label, "completion", whose, amount=usage.completion_tokens)
        self._count(names.MODEL_COST, label, whose, amount=usage.cost_nanousd)

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
        self._observe(names.PORT_DURATION, call.seconds, call.port, call.method)
        if call.code not in (OK, CANCELLED):
            self._count(names.PORT_ERRORS, call.port, call.method, call.code)

    def _count(self, metric: names.Metric, *labels: str, amount: float = 1) -> None:
        self._counters[metric.name].add(labels, amount)

    def _observe(self, metric: names.Metric, value: float, *labels: str) -> None:
        self._histograms[metric.name].observe(labels, value)

    def _gauge(self, metric: names.Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
