"""Stack A's wire formats. Ours, so unknown members of requests are refused. Not used below `http/`."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from litestar import Response
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace

from ports.agent import Agent, AgentLimits
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.event import Event
from ports.messages import Fault, Json, Usage
from ports.priority import DEFAULT, HIGHEST, LOWEST
from ports.run_state import Origin, Resolution, Run, RunStatus, Step
from ports.tool import MAX_OUTPUT_BYTES
from stack_a.runs.start import MAX_ALLOWLIST

MAX_SESSION_ID_CHARS: Final = 128
MAX_DEADLINE_S: Final = 86_400
DEFAULT_PAGE: Final = 50


ToolName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]


class CreateRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: Annotated[Json, Meta(description="Any JSON; a string is taken as the user's message.")]
    context: dict[str, Json] = {}
    tool_allowlist: Annotated[tuple[ToolName, ...], Meta(max_length=MAX_ALLOWLIST)] | None = None
    session_id: Annotated[str, Meta(min_length=1, max_length=MAX_SESSION_ID_CHARS)] | None = None
    deadline_s: Annotated[int, Meta(ge=1, le=MAX_DEADLINE_S)] | None = None
    priority: Annotated[
        int,
        Meta(
            ge=LOWEST,
            le=HIGHEST,
            description="Which of your queued runs start first: 9 before 0, and of equal ones the oldest. It changes "
            "nothing between tenants. Runs that it makes have the same.",
        ),
    ] = DEFAULT
    tenant: Annotated[str, Meta(description="May only repeat the token's tenant.")] | None = None


class CancelRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(max_length=500)] = ""


class RetryRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ForkRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    from_step: Annotated[
        int, Meta(ge=0, le=2**31 - 1, description="The last step to take over with its result; 0 begins anew.")
    ]


class ResolveStep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    step: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    decision: Annotated[
        Literal["done", "fail", "retry"],
        Meta(description="It took effect; it did not and shall not; call it again, once."),
    ]
    output: Annotated[
        Json | UnsetType, Meta(description="Of `done`, and required there: what the call would have answered.")
    ] = UNSET
    message: Annotated[str, Meta(max_length=500, description="Of `fail`: what the model is told.")] = ""


class UsageView(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_nanousd: int
    estimated: bool


class RunAccepted(Struct, frozen=True, kw_only=True):
    run_id: str
    status: RunStatus
    events_url: Annotated[str, Meta(description="A path on this server.")]
    agent_id: str
    agent_version: int
    tenant_id: str
    namespace: str
    created_at: datetime
    correlation_id: str


class OriginView(Struct, frozen=True, kw_only=True):
    run_id: str
    step: Annotated[int, Meta(description="The last step that was taken over; 0 for none.")]


class RunView(Struct, frozen=True, kw_only=True):
    run_id: str
    status: RunStatus
    events_url: str
    agent_id: str
    agent_version: int
    agent_digest: str
    tenant_id: str
    namespace: str
    principal_id: str
    input: Any
    context: dict[str, Any]
    tool_allowlist: tuple[str, ...] | None
    session_id: str | None
    output: Any
    error: Fault | None
    usage: Annotated[UsageView, Meta(description="With that of the runs it made, once they have ended.")]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    cancel_requested_at: datetime | None
    recoveries: int
    priority: int
    waits_for: Annotated[
        Literal["child", "approval", "timer", "peer"] | None, Meta(description="While it is `waiting`: what for.")
    ]
    parent_run_id: Annotated[str | None, Meta(description="The run that made this one, for an agent's call.")]
    depth: Annotated[int, Meta(description="How many runs are above it; 0 for one that was asked for.")]
    forked_from: Annotated[OriginView | None, Meta(description="The run that this one goes on from.")]
    correlation_id: Annotated[str, Meta(description="Of the request that created the run.")]


class StepView(Struct, frozen=True, kw_only=True):
    n: int
    kind: str
    name: str
    effect: str
    status: str
    input: Any
    input_digest: str
    output: Any
    error: Fault | None
    usage: UsageView
    started_at: datetime
    finished_at: datetime | None


class AgentView(Struct, frozen=True, kw_only=True):
    agent_id: str
    version: int
    digest: str
    description: str
    model: str
    instructions: str
    tools: tuple[str, ...]
    agents: Annotated[tuple[str, ...], Meta(description="Agents that it may hand work to.")]
    limits: AgentLimits
    created_at: datetime
    tenant_id: str
    namespace: str


class RunPage(Struct, frozen=True, kw_only=True):
    items: tuple[RunView, ...]
    next_cursor: Annotated[str | None, Meta(description="Send it as `cursor` for the next page; null on the last.")]
    tenant_id: str
    correlation_id: str


class StepPage(Struct, frozen=True, kw_only=True):
    items: tuple[StepView, ...]
    next_cursor: str | None
    run_id: str
    tenant_id: str
    correlation_id: str


class AgentPage(Struct, frozen=True, kw_only=True):
    items: tuple[AgentView, ...]
    next_cursor: str | None
    tenant_id: str
    correlation_id: str


class Health(Struct, frozen=True, kw_only=True):
    status: str


class Readiness(Struct, frozen=True, kw_only=True):
    status: str
    dependencies: Mapping[str, str]


EventData = Event
"""What `data` of one server-sent event holds."""


def events_url(run: Run) -> str:
    return f"/v1/runs/{run.id}/events"


def run_accepted(run: Run, auth: AuthContext) -> RunAccepted:
    return RunAccepted(
        run_id=run.id,
        # As it was answered the first time: a repeat gets the same reply, however far the run has come.
        status="queued",
        events_url=events_url(run),
        agent_id=run.agent_id,
        agent_version=run.agent_version,
        tenant_id=run.tenant,
        namespace=run.requester.namespace,
        created_at=run.created_at,
        correlation_id=auth.trace.correlation_id,
    )


def run_view(run: Run) -> RunView:
    return RunView(
        run_id=run.id,
        status=run.status,
        events_url=events_url(run),
        agent_id=run.agent_id,
        agent_version=run.agent_version,
        agent_digest=run.agent_digest,
        tenant_id=run.tenant,
        namespace=run.requester.namespace,
        principal_id=run.requester.principal,
        input=run.input,
        context=run.context,
        tool_allowlist=run.tool_allowlist,
        session_id=run.session_id,
        output=run.output,
        error=run.error,
        usage=_usage(run.usage),
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        deadline_at=run.deadline_at,
        cancel_requested_at=run.cancel_requested_at,
        recoveries=run.recoveries,
        priority=run.priority,
        waits_for=run.waits_for,
        parent_run_id=None if run.parent is None else run.parent.run_id,
        depth=run.depth,
        forked_from=_origin(run.forked_from),
        correlation_id=run.requester.trace.correlation_id,
    )


def changed_view(run: Run, auth: AuthContext) -> RunView:
    """Of a run that somebody changed: what was said in it is only for who may read runs."""
    view = run_view(run)
    if "runs:read" in auth.scopes:
        return view
    return replace(view, input=None, context={}, output=None, error=None)


def step_view(step: Step) -> StepView:
    return StepView(
        n=step.n,
        kind=step.kind,
        name=step.name,
        effect=step.effect,
        status=step.status,
        input=step.input,
        input_digest=step.input_digest,
        output=step.output,
        error=step.error,
        usage=_usage(step.usage),
        started_at=step.started_at,
        finished_at=step.finished_at,
    )


def agent_view(agent: Agent, auth: AuthContext) -> AgentView:
    spec = agent.spec
    return AgentView(
        agent_id=spec.id,
        version=agent.version,
        digest=agent.digest,
        description=spec.description,
        model=spec.model,
        instructions=spec.instructions,
        tools=spec.tools,
        agents=spec.agents,
        limits=spec.limits,
        created_at=agent.created_at,
        tenant_id=auth.tenant,
        namespace=auth.namespace,
    )


def deadline_of(body: CreateRun) -> timedelta | None:
    return None if body.deadline_s is None else timedelta(seconds=body.deadline_s)


def resolution_of(body: ResolveStep) -> Resolution:
    """Raises `InvalidArgument` for members that don't belong to the decision, and for an output no tool may give."""
    if (body.output is not UNSET) != (body.decision == "done"):
        raise InvalidArgument("`output` belongs to the decision `done`, which needs it", code="validation_failed")
    if body.message and body.decision != "fail":
        raise InvalidArgument("`message` belongs to the decision `fail`", code="validation_failed")
    if body.output is UNSET:
        return Resolution(decision=body.decision, message=body.message)
    size = len(msgspec.json.encode(body.output))
    if size > MAX_OUTPUT_BYTES:
        raise InvalidArgument(
            f"`output` is {size} bytes; at most {MAX_OUTPUT_BYTES} are taken", code="validation_failed"
        )
    return Resolution(decision=body.decision, output=body.output)


def _origin(origin: Origin | None) -> OriginView | None:
    return None if origin is None else OriginView(run_id=origin.run_id, step=origin.step)


def _usage(usage: Usage) -> UsageView:
    return UsageView(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cost_nanousd=usage.cost_nanousd,
        estimated=usage.estimated,
    )


def json_response(view: Struct, *, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(view), status_code=status, media_type="application/json")
