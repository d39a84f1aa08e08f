"""Every metric and log event name, with unit and labels. What is not here is not emitted.

Metrics are `agentos_<area>_<noun>_<unit>`; counters get `_total` from the client library. Every label has a bounded set
of values: a route template and not a path, a class of statuses and not a status, a tenant only within the bound of
`metrics.Bounded`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

# Seconds. From a call inside the process to the longest model reply that is still worth a bucket.
_CALL_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Seconds. Runs wait for models, tools and people.
_RUN_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


HTTP_REQUESTS: Final = Metric(
    name="agentos_http_requests",
    kind="counter",
    help="Requests answered, by route template.",
    labels=("route", "method", "status_class"),
)
HTTP_DURATION: Final = Metric(
    name="agentos_http_request_duration_seconds",
    kind="histogram",
    help="From the request's head to the end of the response; event streams are not observed.",
    labels=("route", "method", "status_class"),
    buckets=_CALL_BUCKETS,
)
AUTH_FAILURES: Final = Metric(
    name="agentos_auth_failures", kind="counter", help="Requests refused for who sent them.", labels=("code",)
)
RUNS_CREATED: Final = Metric(name="agentos_run_creations", kind="counter", help="Runs accepted.", labels=("tenant",))
RUNS_REFUSED: Final = Metric(
    name="agentos_run_refusals",
    kind="counter",
    help="Runs not accepted for want of room: a tenant's limit, or an overloaded node.",
    labels=("code",),
)
RUNS_FINISHED: Final = Metric(
    name="agentos_run_completions", kind="counter", help="Runs that reached a terminal status.", labels=("status",)
)
RUN_DURATION: Final = Metric(
    name="agentos_run_duration_seconds",
    kind="histogram",
    help="From a run's creation to its terminal event.",
    labels=("status",),
    buckets=_RUN_BUCKETS,
)
RUN_WAIT: Final = Metric(
    name="agentos_run_queue_wait_seconds",
    kind="histogram",
    help="From a run's creation to its first claim.",
    buckets=_RUN_BUCKETS,
)
RUN_RECOVERIES: Final = Metric(
    name="agentos_run_recoveries", kind="counter", help="Claims of a run that another worker had lost."
)
ACTIVE_RUNS: Final = Metric(name="agentos_run_active_runs", kind="gauge", help="Runs that this worker holds.")
STEP_DURATION: Final = Metric(
    name="agentos_step_duration_seconds",
    kind="histogram",
    help="From a step's intent to its result.",
    labels=("kind", "status"),
    buckets=_CALL_BUCKETS,
)
TOOL_DURATION: Final = Metric(
    name="agentos_tool_call_duration_seconds",
    kind="histogram",
    help="One tool call.",
    labels=("tool",),
    buckets=_CALL_BUCKETS,
)
TOOL_ERRORS: Final = Metric(
    name="agentos_tool_errors", kind="counter", help="Tool calls that failed.", labels=("tool", "code")
)
QUEUE_DEPTH: Final = Metric(
    name="agentos_queue_depth_messages", kind="gauge", help="Messages that wait for a worker, as last counted."
)
MODEL_REQUESTS: Final = Metric(
    name="agentos_model_requests", kind="counter", help="Calls to a backend.", labels=("backend", "model")
)
MODEL_DURATION: Final = Metric(
    name="agentos_model_request_duration_seconds",
    kind="histogram",
    help="One call to a backend, to the end of its reply.",
    labels=("backend",),
    buckets=_CALL_BUCKETS,
)
MODEL_ERRORS: Final = Metric(
    name="agentos_model_errors", kind="counter", help="Calls to a backend that failed.", labels=("backend", "code")
)
MODEL_TOKENS: Final = Metric(
    name="agentos_model_usage_tokens",
    kind="counter",
    help="Tokens settled; direction is prompt or completion.",
    labels=("model", "direction", "tenant"),
)
MODEL_COST: Final = Metric(
    name="agentos_model_cost_nanousd",
    kind="counter",
    help="Cost settled, in 10⁻⁹ US dollars.",
    labels=("model", "tenant"),
)
POLICY_BLOCKS: Final = Metric(
    name="agentos_policy_blocks", kind="counter", help="Requests and replies that policy blocked.", labels=("reason",)
)
POLICY_REDACTIONS: Final = Metric(
    name="agentos_policy_redactions", kind="counter", help="Values redacted, by kind.", labels=("kind",)
)
BUDGET_REFUSALS: Final = Metric(
    name="agentos_budget_refusals", kind="counter", help="Requests refused by a budget.", labels=("code",)
)
EGRESS_DENIALS: Final = Metric(
    name="agentos_egress_denials",
    kind="counter",
    help="Calls made for a tenant that were not let out, by rule: form, port, name, address, tenant.",
    labels=("rule",),
)
SECRET_READS: Final = Metric(
    name="agentos_secret_reads",
    kind="counter",
    help="Reads of secrets by reference: its kind, and ok or the code of the error.",
    labels=("kind", "code"),
)
GATEWAY_VERSION: Final = Metric(
    name="agentos_gateway_configuration_version",
    kind="gauge",
    help="The stored version of its configuration that this gateway goes by; 0 for a file, or for none.",
)
GATEWAY_REFUSED: Final = Metric(
    name="agentos_gateway_configuration_refused",
    kind="gauge",
    help="1 while the newest configuration can't be used here, and an older one is in force.",
)
PORT_DURATION: Final = Metric(
    name="agentos_port_call_duration_seconds",
    kind="histogram",
    help="One call through a port; for iterators, until they ended or were closed.",
    labels=("port", "method"),
    buckets=_CALL_BUCKETS,
)
PORT_ERRORS: Final = Metric(
    name="agentos_port_errors", kind="counter", help="Port calls that failed.", labels=("port", "method", "code")
)

METRICS: Final = (
    HTTP_REQUESTS, HTTP_DURATION, AUTH_FAILURES, RUNS_CREATED, RUNS_REFUSED, RUNS_FINISHED, RUN_DURATION, RUN_WAIT,
    RUN_RECOVERIES, ACTIVE_RUNS, STEP_DURATION, TOOL_DURATION, TOOL_ERRORS, QUEUE_DEPTH, MODEL_REQUESTS,
    MODEL_DURATION, MODEL_ERRORS, MODEL_TOKENS, MODEL_COST, POLICY_BLOCKS, POLICY_REDACTIONS, BUDGET_REFUSALS,
    EGRESS_DENIALS, SECRET_READS, GATEWAY_VERSION, GATEWAY_REFUSED, PORT_DURATION, PORT_ERRORS,
)  # fmt: skip

# Log events, as `area.what`, and what each says. A test finds the ones that are logged and not listed.
LOG_EVENTS: Final[Mapping[str, str]] = {
    "audit.head_contradicts": "the audit of a tenant contradicts a head of it that was signed",
    "audit.heads_damaged": "the file of signed heads contradicts itself; nothing is signed",
    "audit.not_signed": "the heads of the audit could not be signed; it is tried again in a minute",
    "http.completed": "a request was answered",
    "http.failed": "a bug answered a request with 500",
    "events.closed": "an event stream ended before its run did",
    "events.lagged": "an event stream was closed because its reader took nothing",
    "record.denial_waits": "a refusal was told before the audit had it; its record waits and is tried again",
    "record.dropped": "records of requests were dropped: the log could not take them in time",
    "record.not_kept": "a prompt and its answer were not kept: they could not be redacted",
    "record.refused": "the log of requests refused records for good",
    "run.created": "a run was accepted",
    "run.adopted": "a worker took over a run that another had lost",
    "run.crashed": "a bug ended a worker's hold on a run",
    "run.fenced": "another worker holds the run; this one stopped",
    "run.finished": "a run reached a terminal status",
    "run.family_untold": "a run has ended or waits, and its parent or children were not told; a sweep will",
    "run.mended": "a sweep told a run of its parent's or its children's end",
    "run.forked": "a run was made that goes on from another one's journal",
    "run.resolved": "an operator decided about a step of unknown outcome",
    "run.hint_lost": "a run was accepted and not enqueued; the sweeper will",
    "run.interrupted": "a worker let go of a run because something was unavailable",
    "step.abort_failed": "the gateway could not be told to end a model call; it finishes, and is paid",
    "step.crashed": "a bug ended a model call under a step key that nobody waited for any more",
    "step.extend_failed": "the lease of a model call under way could not be extended",
    "step.model_retried": "a model call failed in a way that may pass; the run waits and makes it again",
    "step.not_abandoned": "the journal could not be told that a model call failed; its lease ends by itself",
    "step.not_journaled": "a model's reply was given out although the journal could not keep it",
    "step.not_opened": "a call that its client will ask for again could not be noted; only this process knows of it",
    "step.reconcile_failed": "a tool could not say what became of an interrupted call; an operator is asked",
    "worker.renew_failed": "the worker's lease could not be extended",
    "worker.fenced_itself": "the worker stopped because its lease may have lapsed",
    "worker.lease_failed": "the queue could not be asked for work",
    "worker.claim_unanswered": "whether a run was claimed is unknown; the worker asks again",
    "worker.hint_failed": "a delivery could not be acted on",
    "worker.sweep_failed": "orphaned runs could not be looked for",
    "worker.adopt_failed": "an orphaned run could not be taken over",
    "upkeep.done": "runs past their retention were removed",
    "upkeep.failed": "old runs could not be removed now; the next round tries again",
    "backend.breaker": "a backend failed too often and is left alone, or is asked again",
    "canary.rolled_back": "a canary failed too often; its callers are back with the usual model",
    "egress.denied": "a call made for a tenant was not let out",
    "gateway.configured": "a changed configuration of the gateway is in force",
    "gateway.configuration_refused": "a changed configuration can't be used; the one before stays in force",
    "gateway.following_failed": "a bug ended one look at the configuration; what is in force stays, the next look follows",
    "gateway.configuration_unreachable": "the store of configurations does not answer; what is in force stays",
    "policy.unusable": "a tenant's own policy can't be used here; its calls are refused until it is changed",
    "backend.silent": "a model backend that used to answer does not",
    "budget.not_drained": "what this process still holds counts as spent when its lease ends",
    "budget.not_renewed": "leases were not prolonged; it is tried again until they end",
    "budget.settle_failed": "usage that the ledger refused for good; what is still held counts when its lease ends",
    "secret.read": "a secret was read for the first time, or in another version",
    "secret.unreadable": "a secret can't be read; what was opened with it before goes on",
    "telemetry.failed": "something could not be recorded; the work went on",
    "library.log": "a library spoke; only the pattern of what it said is repeated",
    "log.unnamed": "a record of ours without an event's name; its text is not repeated",
}

# What a log record may tell besides its event: ids, counts, durations, codes. Never a payload, a header or a token.
LOG_FIELDS: Final = frozenset(
    {
        # which request, whose
        "correlation_id", "traceparent", "tenant_id", "namespace", "principal",
        # which thing
        "run_id", "agent_id", "agent_version", "step", "sequence", "epoch", "worker_id", "event_id", "key_id", "hold_id",
        "port", "adapter", "method", "route", "tool", "model", "backend", "service", "version", "digest", "mode", "address",
        "pid", "experiment", "request_id", "reference",
        # how it went
        "status", "status_class", "state", "code", "retryable", "reason", "place", "kind", "error_type", "exit_code",
        "signal",
        # how much
        "active", "attempt", "recoveries", "count", "steps", "events", "size_bytes", "tokens", "prompt_tokens",
        "completion_tokens", "cost_nanousd", "depth", "limit", "seconds", "duration_ms", "latency_ms", "retry_after_s",
    }
)  # fmt: skip
