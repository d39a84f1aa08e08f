"""The part of the admin surface that is about tenants, budgets, usage and runs: routes and endpoints. Platform only."""

from datetime import UTC, datetime
from typing import Annotated, Final, TypeAlias, get_args

import msgspec
from litestar import Response, delete, get, patch, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter

from deploy.admin_surface import Asked, Part, identity_of, json_answer, tenant_named, whose
from deploy.administration import privacy_part, wire
from deploy.administration.documentation import LIMITS, OPERATIONS
from deploy.administration.entitling import change_entitlements
from deploy.administration.offboarding import check_confirmed, offboard
from deploy.administration.platform import Platform
from deploy.administration.routes import (
    BUDGET,
    BUDGETS,
    DEFAULT_DAYS,
    DEFAULT_PAGE,
    ERASE_BATCHES_PER_REQUEST,
    MAX_DAYS,
    ROUTES,
    RUNS,
    TENANT,
    TENANTS,
    USAGE,
)
from deploy.administration.standing import budgets_of, first_moment, in_tenant, usage_of
from ports.budget import Budget
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound
from ports.http.edge import decoded, exchange
from ports.http.versions import etag, if_match
from ports.ids import AgentId, RunId, TenantId, is_agent_id, is_tenant_id
from ports.run_state import MAX_PAGE, RunFilter, RunStatus
from ports.tenant import Tenant
from stack_b.policies.problems import check_policy

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
Days: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_DAYS)]

_STATUSES: Final = get_args(RunStatus)


def part(platform: Platform) -> Part:
    return Part(
        routes=(*ROUTES, *privacy_part.ROUTES),
        operations={**OPERATIONS, **privacy_part.OPERATIONS},
        limits={**LIMITS, **privacy_part.LIMITS},
        handlers=[
            *_tenants(platform),
            *_budgets(platform),
            *_runs(platform),
            *privacy_part.handlers(platform),
        ],
    )


def _tenants(platform: Platform) -> list[HTTPRouteHandler]:
    @get(TENANTS)
    async def list_tenants(
        request: Asked, limit: Limit = DEFAULT_PAGE, cursor: FromQuery[str | None] = None
    ) -> Response[bytes]:
        auth = identity_of(request)
        page = await platform.tenants.list_tenants(auth, limit=limit, cursor=cursor)
        lines = tuple(wire.TenantLine(**wire.tenant_line(tenant)) for tenant in page.items)
        return json_answer(wire.TenantPage(items=lines, next_cursor=page.next_cursor, **whose(auth)))

    @post(TENANTS, status_code=201)
    async def create(request: Asked) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.CreateTenant)
        if not is_tenant_id(body.id):
            raise InvalidArgument(
                "$.id: write tnt_ and small letters, digits, - or _", code="validation_failed", details={"path": "$.id"}
            )
        check_policy(body.entitlements.policy)
        made = await platform.tenants.create(auth, TenantId(body.id), name=body.name, entitlements=body.entitlements)
        return _shown(made, auth, status=201)

    @get(TENANT)
    async def show(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth = identity_of(request)
        return _shown(await _tenant(platform, auth, tenant_id), auth)

    @patch(TENANT)
    async def change(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.PatchTenant)
        version = if_match(request.headers.get("if-match"), of="the tenant", required=True)
        tenant = tenant_named(tenant_id)
        return _shown(await change_entitlements(platform.tenants, auth, tenant, body.entitlements, version), auth)

    @post(TENANT + "/:disable", status_code=200)
    async def disable(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth = identity_of(request)
        return _shown(await platform.tenants.set_status(auth, tenant_named(tenant_id), "disabled"), auth)

    @post(TENANT + "/:enable", status_code=200)
    async def enable(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth = identity_of(request)
        return _shown(await platform.tenants.set_status(auth, tenant_named(tenant_id), "active"), auth)

    @delete(TENANT, status_code=200)
    async def remove(request: Asked, tenant_id: FromPath[str], confirm: FromQuery[str] = "") -> Response[bytes]:
        auth, tenant = identity_of(request), tenant_named(tenant_id)
        check_confirmed(tenant, confirm)
        gone = await offboard(
            auth,
            tenant,
            tenants=platform.tenants,
            administration=platform.administration,
            export=platform.export,
            batches=ERASE_BATCHES_PER_REQUEST,
        )
        view = wire.Deletion(
            status="deleted" if gone.done else "deleting",
            rows_removed=gone.removed,
            export_sha256=gone.export_sha256,
            export_file=None if gone.export is None else gone.export.path,
            export_rows=None if gone.export is None else gone.export.manifest.rows,
            **whose(auth, tenant),
        )
        return json_answer(view, status=200 if gone.done else 202)

    return [list_tenants, create, show, change, disable, enable, remove]


def _budgets(platform: Platform) -> list[HTTPRouteHandler]:
    @get(BUDGETS)
    async def budgets(request: Asked, tenant_id: FromPath[str], scope_id: FromQuery[str] = "") -> Response[bytes]:
        auth = identity_of(request)
        tenant = await _tenant(platform, auth, tenant_id)
        found = await budgets_of(platform.budget, auth, tenant, scope_id=scope_id)
        return json_answer(wire.BudgetList(items=found, **whose(auth, tenant.id)))

    @get(BUDGET)
    async def budget(
        request: Asked, tenant_id: FromPath[str], budget_id: FromPath[str], scope_id: FromQuery[str] = ""
    ) -> Response[bytes]:
        auth = identity_of(request)
        return json_answer(
            await _one_budget(platform, auth, await _tenant(platform, auth, tenant_id), budget_id, scope_id)
        )

    @put(BUDGET)
    async def set_budget(request: Asked, tenant_id: FromPath[str], budget_id: FromPath[str]) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.PutBudget)
        tenant = await _tenant(platform, auth, tenant_id)
        budget = Budget(id=budget_id, **msgspec.structs.asdict(body))
        await platform.budget.set_budget(auth, tenant.id, budget)
        return json_answer(await _one_budget(platform, auth, tenant, budget_id, ""))

    @delete(BUDGET, status_code=200)
    async def remove_budget(request: Asked, tenant_id: FromPath[str], budget_id: FromPath[str]) -> Response[bytes]:
        auth = identity_of(request)
        tenant = await _tenant(platform, auth, tenant_id)
        await platform.budget.remove_budget(auth, tenant.id, budget_id)
        return json_answer(wire.Removed(removed=budget_id, **whose(auth, tenant.id)))

    @get(USAGE)
    async def usage(
        request: Asked, tenant_id: FromPath[str], days: Days = DEFAULT_DAYS, by_agent: FromQuery[str] = "false"
    ) -> Response[bytes]:
        auth = identity_of(request)
        if by_agent not in {"true", "false"}:
            raise InvalidArgument("by_agent is true or false", details={"path": "by_agent"})
        tenant = await _tenant(platform, auth, tenant_id)
        since = first_moment(datetime.now(UTC), days)
        lines = await usage_of(
            platform.budget, platform.requests, auth, tenant, since=since, by_agent=by_agent == "true"
        )
        return json_answer(wire.UsageReport(since=since, usage=lines, **whose(auth, tenant.id)))

    return [budgets, budget, set_budget, remove_budget, usage]


def _runs(platform: Platform) -> list[HTTPRouteHandler]:
    @get(RUNS)
    async def list_runs(
        request: Asked,
        *,
        tenant_id: FromQuery[str],
        namespace: FromQuery[str] = "default",
        status: FromQuery[str | None] = None,
        agent_id: FromQuery[str | None] = None,
        limit: Limit = DEFAULT_PAGE,
        cursor: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        auth = identity_of(request)
        tenant = await _tenant(platform, auth, tenant_id)
        reading = msgspec.structs.replace(in_tenant(auth, tenant), namespace=namespace)
        page = await platform.runs.list_runs(reading, _where(status, agent_id), limit=limit, cursor=cursor)
        lines = tuple(wire.RunLine(**wire.run_line(run)) for run in page.items)
        return json_answer(wire.RunPage(items=lines, next_cursor=page.next_cursor, **whose(auth, tenant.id)))

    @post(RUNS + "/{run_id:str}/:kill", status_code=200)
    async def kill(request: Asked, run_id: FromPath[str]) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.KillRun)
        killed = await platform.administration.kill(
            auth, tenant_named(body.tenant_id), RunId(run_id), reason=body.reason, namespace=body.namespace
        )
        return json_answer(wire.RunAnswer(**wire.run_line(killed), **whose(auth, killed.tenant)))

    return [list_runs, kill]


async def _one_budget(
    platform: Platform, auth: AuthContext, tenant: Tenant, budget_id: str, scope_id: str
) -> wire.BudgetAnswer:
    for view in await budgets_of(platform.budget, auth, tenant, scope_id=scope_id):
        if view.budget.id == budget_id:
            return wire.BudgetAnswer(budget=view.budget, window=view.window, **whose(auth, tenant.id))
    raise NotFound(f"there is no budget {budget_id[:64]!r}")


def _where(status: str | None, agent_id: str | None) -> RunFilter:
    if agent_id is not None and not is_agent_id(agent_id):
        raise InvalidArgument("agent_id can't be an agent's: they look like agt_<name>", details={"path": "agent_id"})
    if status is None:
        return RunFilter(agent_id=None if agent_id is None else AgentId(agent_id))
    if status not in _STATUSES:
        raise InvalidArgument(f"status is one of {', '.join(_STATUSES)}", details={"path": "status"})
    found: RunStatus = msgspec.convert(status, RunStatus)
    return RunFilter(status=found, agent_id=None if agent_id is None else AgentId(agent_id))


async def _tenant(platform: Platform, auth: AuthContext, text: str) -> Tenant:
    return await platform.tenants.get(auth, tenant_named(text))


def _shown(tenant: Tenant, auth: AuthContext, *, status: int = 200) -> Response[bytes]:
    answer = json_answer(wire.TenantView(**wire.tenant_line(tenant), **whose(auth, tenant.id)), status=status)
    answer.headers["etag"] = etag(tenant.version)
    return answer
