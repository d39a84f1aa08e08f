"""The route table of Stack A's public API: every route with its scope, and what the OpenAPI document says of it."""

from typing import Final, get_args

from ports.agent import MAX_RUN_DEPTH
from ports.audit import READ
from ports.http import permissions
from ports.http.audit import DESCRIPTION, OWN, PARAMETERS, QUERY, EntryPage
from ports.http.limits import COMMON
from ports.http.openapi import Operation, Parameter
from ports.http.routes import LOOPBACK, PUBLIC, Route, RouteTable
from ports.http.strict_json import MAX_BODY_BYTES
from ports.messages import Json
from ports.run_state import MAX_PAGE, RunStatus
from stack_a.http import stream, wire
from stack_a.http.admission import DEFAULTS
from stack_a.runs.start import MAX_ALLOWLIST

JWKS: Final = "/.well-known/jwks.json"
DISCOVERY: Final = "/.well-known/openid-configuration"

_PAGE: Final = ("limit", "cursor")

ROUTES: Final = RouteTable(
    (
        Route(method="POST", template="/v1/agents/{agent_id}/runs", access="runs:create", mutation=True, query=()),
        Route(method="GET", template="/v1/agents", access="agents:read", query=_PAGE),
        Route(method="GET", template="/v1/agents/{agent_id}", access="agents:read", query=("version",)),
        Route(
            method="GET", template="/v1/runs", access="runs:read", query=(*_PAGE, "status", "agent_id", "parent_run_id")
        ),
        Route(method="GET", template="/v1/runs/{run_id}", access="runs:read", query=()),
        Route(method="POST", template="/v1/runs/{run_id}:cancel", access="runs:cancel", mutation=True, query=()),
        Route(method="POST", template="/v1/runs/{run_id}:retry", access="runs:create", mutation=True, query=()),
        Route(method="POST", template="/v1/runs/{run_id}:fork", access="runs:create", mutation=True, query=()),
        # A person's decision about a tool call: whoever may only start and stop runs must not make up results.
        Route(method="POST", template="/v1/runs/{run_id}:resolve", access="approvals:decide", mutation=True, query=()),
        Route(method="GET", template="/v1/runs/{run_id}/steps", access="runs:read", query=_PAGE),
        Route(method="GET", template="/v1/runs/{run_id}/events", access="runs:read", query=("after",)),
        Route(method="GET", template=OWN, access=READ, query=QUERY),
        permissions.ROUTE,
        Route(method="GET", template=JWKS, access=PUBLIC),
        Route(method="GET", template=DISCOVERY, access=PUBLIC),
        Route(method="GET", template="/healthz", access=PUBLIC),
        Route(method="GET", template="/readyz", access=PUBLIC),
        Route(method="GET", template="/openapi.json", access=PUBLIC),
        Route(method="GET", template="/metrics", access=LOOPBACK),
    )
)

LIMITS: Final = {
    "max_body_bytes": MAX_BODY_BYTES,
    **COMMON,
    "max_page_size": MAX_PAGE,
    "default_page_size": wire.DEFAULT_PAGE,
    "max_tool_allowlist": MAX_ALLOWLIST,
    "max_deadline_s": wire.MAX_DEADLINE_S,
    "max_run_depth": MAX_RUN_DEPTH,
    "max_event_streams_per_principal": DEFAULTS.max_event_streams_per_principal,
    "max_event_streams_per_tenant": DEFAULTS.max_event_streams,
    "event_stream_lag_s": int(stream.LAGGED_AFTER.total_seconds()),
}

_PAGING: Final = (
    Parameter(
        name="limit",
        description="Items on a page.",
        schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": wire.DEFAULT_PAGE},
    ),
    Parameter(name="cursor", description="`next_cursor` of the page before."),
)

_AGENT_ID: Final[dict[str, Json]] = {"type": "string", "pattern": "^agt_[a-z0-9][a-z0-9_-]{0,59}$"}
_RUN_ID: Final[dict[str, Json]] = {"type": "string", "pattern": "^run_[0-9a-f]{32}$"}
_EVENT_ID: Final[dict[str, Json]] = {"type": "string", "pattern": r"^[a-z0-9]{1,32}\.(0|[1-9][0-9]{0,17})$"}

OPERATIONS: Final = {
    ("GET", permissions.PATH): permissions.OPERATION,
    ("POST", "/v1/agents/{agent_id}/runs"): Operation(
        summary="Create a run",
        description=(
            "Durable once answered: the run survives any crash and ends in exactly one terminal event. Repeating with "
            "the same Idempotency-Key and body gives the same run; with another body, `idempotency_key_reused`. Beyond the "
            "tenant's rate of creations the answer is `rate_limited`, with too many of its runs queued "
            "`concurrency_limited`, and `unavailable` while the node is overloaded; each has a `Retry-After` in seconds, "
            "uses nothing up, and may be repeated with the same key. Runs beyond those a tenant may have running at a time "
            "are accepted and wait."
        ),
        tag="runs",
        request=wire.CreateRun,
        response=wire.RunAccepted,
        status=202,
        codes=("not_found", "rate_limited", "concurrency_limited"),
    ),
    ("GET", OWN): Operation(
        summary="What was done and denied in the caller's tenant, newest first",
        description=DESCRIPTION,
        tag="audit",
        response=EntryPage,
        parameters=PARAMETERS,
    ),
    ("GET", "/v1/agents"): Operation(summary="List agents", tag="agents", response=wire.AgentPage, parameters=_PAGING),
    ("GET", "/v1/agents/{agent_id}"): Operation(
        summary="Get an agent",
        tag="agents",
        response=wire.AgentView,
        parameters=(
            Parameter(
                name="version",
                description="A version; without it, the newest.",
                schema={"type": "integer", "minimum": 1},
            ),
        ),
        codes=("not_found",),
    ),
    ("GET", "/v1/runs"): Operation(
        summary="List runs, newest first",
        tag="runs",
        response=wire.RunPage,
        parameters=(
            *_PAGING,
            Parameter(
                name="status",
                description="Only runs in this status.",
                schema={"type": "string", "enum": list(get_args(RunStatus))},
            ),
            Parameter(name="agent_id", description="Only runs of this agent.", schema=_AGENT_ID),
            Parameter(name="parent_run_id", description="Only runs that this run made.", schema=_RUN_ID),
        ),
    ),
    ("GET", "/v1/runs/{run_id}"): Operation(
        summary="Get a run", tag="runs", response=wire.RunView, codes=("not_found",)
    ),
    ("POST", "/v1/runs/{run_id}:cancel"): Operation(
        summary="Cancel a run",
        description=(
            "A waiting or queued run ends at once; a running one within seconds, its tool interrupted. The runs that it "
            "made by calling agents are cancelled too. Cancelling a finished run changes nothing. The body may be left "
            "out. Without the scope runs:read the answer leaves out what was said: input, context, output and error."
        ),
        tag="runs",
        request=wire.CancelRun,
        response=wire.RunView,
        codes=("not_found",),
    ),
    ("POST", "/v1/runs/{run_id}:retry"): Operation(
        summary="Retry a failed or cancelled run",
        description=(
            "A new run that goes on after the last step that stands: what has a result is not done or paid again. "
            "`conflict` when the run has not failed and was not cancelled, or when a tool would be called again whose "
            "call may have taken effect: fork the run then, if that is meant. The body may be left out."
        ),
        tag="runs",
        request=wire.RetryRun,
        response=wire.RunAccepted,
        status=202,
        codes=("not_found", "conflict", "rate_limited", "concurrency_limited"),
    ),
    ("POST", "/v1/runs/{run_id}:fork"): Operation(
        summary="Fork a run",
        description=(
            "A new run with the same agent version, input and context that begins with the steps 1 to `from_step` and "
            "their results, and goes on from there by itself. Tools called after that step will be called anew, under "
            "the new run's keys. `conflict` when one of those steps has no result or is not there: `details` has the run's "
            "`steps`, how many they are, and the `max_from_step` that can be asked for."
        ),
        tag="runs",
        request=wire.ForkRun,
        response=wire.RunAccepted,
        status=202,
        codes=("not_found", "conflict", "rate_limited", "concurrency_limited"),
    ),
    ("POST", "/v1/runs/{run_id}:resolve"): Operation(
        summary="Decide about a step of unknown outcome",
        description=(
            "For a run in `needs_operator`: say what became of a step that is `unknown`, or have it called once more under "
            "the same key. When no step is unknown any more the run goes on; its deadline moves by the time it waited. "
            "`conflict` when the run or the step waits for no decision: `details` has the numbers of the `steps` that do."
        ),
        tag="runs",
        request=wire.ResolveStep,
        response=wire.RunView,
        codes=("not_found", "conflict"),
    ),
    ("GET", "/v1/runs/{run_id}/steps"): Operation(
        summary="List a run's steps, oldest first",
        tag="runs",
        response=wire.StepPage,
        parameters=_PAGING,
        codes=("not_found",),
    ),
    ("GET", "/v1/runs/{run_id}/events"): Operation(
        summary="Follow a run's events",
        description=(
            "Server-sent events, from the first or after `Last-Event-ID`, then live, until the terminal event. Each has "
            "`id: <stream epoch>.<sequence>`; sequences run 1…n without gaps. A comment is sent every 15 s. A reader that "
            "takes nothing for 30 s is closed with the comment `lagged` and resumes. `model.delta` tells the text of a "
            "model's reply while it grows: `step`, `attempt` and `text`; a higher attempt of a step begins its text again, "
            "and `model.completed` has it whole."
        ),
        tag="runs",
        stream=wire.EventData,
        parameters=(
            Parameter(name="Last-Event-ID", where="header", description="Resume after this event.", schema=_EVENT_ID),
            Parameter(name="after", description="The same, for clients that can't set headers.", schema=_EVENT_ID),
        ),
        codes=("not_found", "concurrency_limited"),
    ),
    ("GET", JWKS): Operation(
        summary="The public keys of this node's own issuer",
        description="Keys with `exp` were rotated out and verify until then. Fetch anew on a `kid` you don't know.",
        tag="identity",
        media_type="application/json",
        codes=("not_found",),
    ),
    ("GET", DISCOVERY): Operation(
        summary="Where those keys are, as OpenID Connect has it",
        description="`not_found` where the node's issuer is not called by a URL.",
        tag="identity",
        media_type="application/json",
        codes=("not_found",),
    ),
    ("GET", "/healthz"): Operation(summary="Is the process alive", tag="health", response=wire.Health),
    ("GET", "/readyz"): Operation(
        summary="Can it serve: every dependency answers",
        description="503 with the same body when one does not.",
        tag="health",
        response=wire.Readiness,
    ),
    ("GET", "/openapi.json"): Operation(summary="This document", tag="health", media_type="application/json"),
    ("GET", "/metrics"): Operation(
        summary="Prometheus metrics; from this machine only", tag="health", media_type="text/plain"
    ),
}
