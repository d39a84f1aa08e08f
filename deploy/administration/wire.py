"""What the administration of tenants says on the wire. Never a secret, and of runs neither inputs nor outputs."""

from datetime import date, datetime
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ports.administration import MAX_REASON_CHARS
from ports.budget import Balance, Budget, Mode, Period, Scope, Unit
from ports.budget_rules import ENDLESS
from ports.ids import TenantId
from ports.run_state import Run, RunStatus
from ports.tenant import Entitlements, Tenant

MAX_NAME_CHARS: Final = 200


class CreateTenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(max_length=64, description="tnt_ and small letters, digits, - or _; for good.")]
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    entitlements: Entitlements = Entitlements()


class PatchTenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entitlements: Annotated[
        dict[str, Any], Meta(description="Members of the entitlements to replace; what is not named stays as it is.")
    ]


class TenantView(Struct, frozen=True, kw_only=True):
    id: TenantId
    name: str
    status: Literal["active", "disabled"]
    entitlements: Entitlements
    created_at: datetime
    version: int
    tenant_id: TenantId
    correlation_id: str


class TenantLine(Struct, frozen=True, kw_only=True):
    id: TenantId
    name: str
    status: Literal["active", "disabled"]
    entitlements: Entitlements
    created_at: datetime
    version: int
    """Its `ETag` is this in quotes."""


class TenantPage(Struct, frozen=True, kw_only=True):
    items: tuple[TenantLine, ...]
    next_cursor: str | None
    tenant_id: TenantId
    correlation_id: str


class Deletion(Struct, frozen=True, kw_only=True):
    status: Literal["deleted", "deleting"]
    """`deleting`: there is more to remove; send the same request again to go on."""
    rows_removed: int
    """By this request."""
    export_sha256: str
    export_file: str | None
    """Where the export was written on the node; null where an earlier request did."""
    export_rows: int | None
    tenant_id: TenantId
    correlation_id: str


class PutBudget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=0, le=2**62)]
    scope: Scope = "tenant"
    scope_id: Annotated[str, Meta(max_length=256, description="Empty: each of the scope has this much for itself.")] = (
        ""
    )
    unit: Unit = "tokens"
    period: Period = "day"
    tz: Annotated[str, Meta(max_length=64)] = "UTC"
    mode: Mode = "hard"


class BudgetView(Struct, frozen=True, kw_only=True):
    budget: Budget
    window: "WindowView | None"
    """Null where each key, agent, session or tier has a window of its own: name one with `scope_id`."""


class WindowView(Struct, frozen=True, kw_only=True):
    scope_id: str
    spent: int
    held: int
    left: int
    start: datetime
    end: datetime | None
    """Null where it has none."""


class BudgetList(Struct, frozen=True, kw_only=True):
    items: tuple[BudgetView, ...]
    tenant_id: TenantId
    correlation_id: str


class BudgetAnswer(BudgetView, frozen=True, kw_only=True):
    tenant_id: TenantId
    correlation_id: str


class Removed(Struct, frozen=True, kw_only=True):
    removed: str
    tenant_id: TenantId
    correlation_id: str


class UsageLine(Struct, frozen=True, kw_only=True):
    day: date
    model: str
    agent: str | None
    """Null where agents are not told apart."""
    requests: int | None
    """What was asked of the gateway; null where agents are told apart."""
    denied: int | None
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int


class UsageReport(Struct, frozen=True, kw_only=True):
    since: datetime
    usage: tuple[UsageLine, ...]
    tenant_id: TenantId
    correlation_id: str


class RunLine(Struct, frozen=True, kw_only=True):
    run_id: str
    status: RunStatus
    agent_id: str
    agent_version: int
    namespace: str
    principal_id: str
    session_id: str | None
    parent_run_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    recoveries: int
    total_tokens: int
    cost_nanousd: int


class RunPage(Struct, frozen=True, kw_only=True):
    items: tuple[RunLine, ...]
    next_cursor: str | None
    tenant_id: TenantId
    correlation_id: str


class KillRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant_id: Annotated[str, Meta(max_length=64, description="Whose run it is; it is found nowhere else.")]
    namespace: Annotated[str, Meta(max_length=64)] = "default"
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS, description="Told in its last event.")] = ""


class RunAnswer(RunLine, frozen=True, kw_only=True):
    tenant_id: TenantId
    correlation_id: str


def tenant_line(tenant: Tenant) -> dict[str, Any]:
    return {name: getattr(tenant, name) for name in TenantLine.__struct_fields__}


def run_line(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "status": run.status,
        "agent_id": run.agent_id,
        "agent_version": run.agent_version,
        "namespace": run.requester.namespace,
        "principal_id": run.requester.principal,
        "session_id": run.session_id,
        "parent_run_id": None if run.parent is None else run.parent.run_id,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "cancel_requested_at": run.cancel_requested_at,
        "recoveries": run.recoveries,
        "total_tokens": run.usage.prompt_tokens + run.usage.completion_tokens,
        "cost_nanousd": run.usage.cost_nanousd,
    }


def window_view(balance: Balance, scope_id: str) -> WindowView:
    return WindowView(
        scope_id=scope_id,
        spent=balance.settled,
        held=balance.held,
        left=balance.limit - balance.settled - balance.held,
        start=balance.window_start,
        end=None if balance.window_end == ENDLESS else balance.window_end,
    )
