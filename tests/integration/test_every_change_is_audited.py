"""Each change and each denial is in the audit: the list of both is made from the routes that the surfaces serve."""

import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import httpx
import pytest
from msgspec.structs import replace

from adapters.postgres import agent, audit, event, queue, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import generate_key, jwks
from conformance.factories import intent, new_run
from conformance.people import ACME, NODE, PLATFORM
from deploy.administration import own_keys
from deploy.administration.identity_routes import ACTING, KEYS, PRINCIPALS, REVOKE, ROTATE
from deploy.administration.privacy_part import ERASURES, EXPORTS, HOLDS, RELEASE, RETENTION
from deploy.administration.routes import BUDGET, KILL, TENANT_TEMPLATE, TENANTS, template
from deploy.roots import admin as admin_root
from deploy.roots.environment import Environment
from deploy.roots.wiring import Choice, open_ports
from observability.metrics import Metrics
from ports.adapter import Given
from ports.agent import AgentSpec
from ports.auth import mismatch
from ports.context import SCOPES, AuthContext
from ports.http.edge import Edge
from ports.http.routes import IDENTIFIED, LOOPBACK, PUBLIC, Route
from ports.ids import AgentId, PrincipalId, RunId, WorkerId
from ports.run_state import Change, NewEvent, StepResult
from ports.tenant import Entitlements
from stack_a.app import create_app
from stack_a.deps import ApiDeps
from stack_a.http.routes import ROUTES
from tests.support.postgres import Clone, cloned, execute, fetch

EVERYTHING: Final = replace(ACME, scopes=SCOPES)
NOTHING: Final = replace(ACME, principal=PrincipalId("usr_nobody"), scopes=frozenset())
AGENT: Final = AgentSpec(id=AgentId("agt_demo"), model="m", tools=("send",))
WORKER: Final = WorkerId("wrk_audit")
CREATE_TENANT: Final = Route(method="POST", template=TENANTS, access="admin:platform", mutation=True)


class Tokens:
    async def verify(self, token: str) -> AuthContext:
        return {"all": EVERYTHING, "none": NOTHING}[token]

    async def act_as(self, _: str, __: str, /) -> AuthContext:
        raise mismatch()


@dataclass(kw_only=True)
class World:
    clone: Clone
    http: httpx.AsyncClient
    api: ApiDeps
    tokens: dict[str, str]

    async def send(self, route: Route, *, who: str = "all", body: Any = None, **ids: str) -> httpx.Response:
        path = re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], "run_x"), route.template)
        headers = {"authorization": f"Bearer {self.tokens[who]}", "if-match": "*"}
        if route.mutation:
            headers["idempotency-key"] = uuid.uuid4().hex
        sent = {} if body is None and route.method in {"POST", "PUT", "PATCH"} else body
        return await self.http.request(route.method, path, headers=headers, json=sent)

    async def noted(self) -> list[tuple[str, str, str]]:
        rows = await fetch(self.clone.admin, "SELECT action, subject, outcome FROM audit_log ORDER BY id")
        return [(row["action"], row["subject"], row["outcome"]) for row in rows]

    async def run(self) -> RunId:
        create = next(one for one in ROUTES.routes if one.template == "/v1/agents/{agent_id}/runs")
        made = await self.send(create, body={"input": "x"}, agent_id="agt_demo")
        assert made.status_code == 202, made.text
        return RunId(made.json()["run_id"])

    async def ended(self, status: str) -> RunId:
        run = await self.run()
        await self.api.run_state.renew(NODE, WORKER, timedelta(hours=1))
        claimed = await self.api.run_state.claim(ACME, run, WORKER)
        steps = (intent(1), StepResult(n=1, status="unknown")) if status == "needs_operator" else ()
        events = (NewEvent(type="run.failed"),) if status == "failed" else ()
        change = Change(steps=steps, events=events, status=cast("Any", status))
        await self.api.run_state.append(ACME, run, claimed.epoch, change)
        return run


Exercise: TypeAlias = Callable[[World, Route], Awaitable[httpx.Response]]


async def create(world: World, route: Route) -> httpx.Response:
    return await world.send(route, body={"input": "x"}, agent_id="agt_demo")


async def cancel(world: World, route: Route) -> httpx.Response:
    return await world.send(route, run_id=await world.run())


async def retry(world: World, route: Route) -> httpx.Response:
    return await world.send(route, run_id=await world.ended("failed"))


async def fork(world: World, route: Route) -> httpx.Response:
    return await world.send(route, run_id=await world.run(), body={"from_step": 0})


async def resolve(world: World, route: Route) -> httpx.Response:
    run = await world.ended("needs_operator")
    return await world.send(route, run_id=run, body={"step": 1, "decision": "retry"})


async def configure(world: World, route: Route) -> httpx.Response:
    return await world.send(route, body={"document": {}})


async def activate(world: World, route: Route) -> httpx.Response:
    put = Route(method="PUT", template="/v1/admin/gateway/configuration", access="admin:platform", mutation=True)
    await configure(world, put)
    return await world.send(route, version="1")


async def made(world: World) -> str:
    """Another tenant than the caller's."""
    tenant = f"tnt_{uuid.uuid4().hex[:8]}"
    answer = await world.send(CREATE_TENANT, body={"id": tenant, "name": "Another"})
    assert answer.status_code == 201, answer.text
    return tenant


async def create_tenant(world: World, route: Route) -> httpx.Response:
    return await world.send(route, body={"id": "tnt_new", "name": "New"})


async def entitle(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), body={"entitlements": {"max_active_runs": 7}})


async def disable(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world))


async def enable(world: World, route: Route) -> httpx.Response:
    tenant = await made(world)
    await world.send(replace(route, template=TENANT_TEMPLATE + ":disable"), tenant_id=tenant)
    return await world.send(route, tenant_id=tenant)


async def delete(world: World, route: Route) -> httpx.Response:
    tenant = await made(world)
    off = replace(route, method="POST", template=TENANT_TEMPLATE + ":disable")
    await world.send(off, tenant_id=tenant)
    return await world.send(replace(route, template=f"{route.template}?confirm={tenant}"), tenant_id=tenant)


async def set_budget(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), budget_id="monthly", body={"limit": 9})


async def remove_budget(world: World, route: Route) -> httpx.Response:
    tenant = await made(world)
    await world.send(replace(route, method="PUT"), tenant_id=tenant, budget_id="monthly", body={"limit": 9})
    return await world.send(route, tenant_id=tenant, budget_id="monthly")


async def kill(world: World, route: Route) -> httpx.Response:
    async with run_state.SPEC.open(PostgresConfig(dsn=world.clone.app), Given(clock=SystemClock())) as runs:
        run = (await runs.create(ACME, new_run())).run
    return await world.send(route, run_id=run.id, body={"tenant_id": ACME.tenant})


async def export_subject(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), body={"subject": "usr_ann"})


async def erase_subject(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), body={"subject": "usr_ann", "confirm": "usr_ann"})


async def hold(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), body={"subject": "usr_ann", "reason": "case 17/26"})


async def release(world: World, route: Route) -> httpx.Response:
    tenant = await made(world)
    placing = replace(route, template=template(HOLDS))
    placed = await world.send(placing, tenant_id=tenant, body={"subject": None, "reason": "case 17/26"})
    return await world.send(route, tenant_id=tenant, hold_id=placed.json()["id"])


async def retain(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), body={"days": {"runs": 30}})


async def bar(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), body={"principal": "svc_a", "status": "disabled"})


async def let_act(world: World, route: Route) -> httpx.Response:
    body = {"actor_tenant": ACME.tenant, "principal": "svc_hub", "allowed": True}
    return await world.send(route, tenant_id=await made(world), body=body)


async def issue_key(world: World, route: Route) -> httpx.Response:
    return await world.send(route, tenant_id=await made(world), body={"principal": "svc_a", "role": "viewer"})


async def on_a_key(world: World, route: Route) -> httpx.Response:
    tenant = await made(world)
    issuing = replace(route, template=template(KEYS))
    key = await world.send(issuing, tenant_id=tenant, body={"principal": "svc_a", "role": "viewer"})
    return await world.send(route, tenant_id=tenant, key_id=key.json()["key"]["id"])


async def issue_own_key(world: World, route: Route) -> httpx.Response:
    return await world.send(route, body={"principal": "svc_a", "role": "viewer"})


async def on_an_own_key(world: World, route: Route) -> httpx.Response:
    key = await issue_own_key(world, replace(route, template=own_keys.KEYS))
    return await world.send(route, key_id=key.json()["key"]["id"])


CHANGES: Final[dict[tuple[str, str], tuple[Exercise, str]]] = {
    ("POST", "/v1/agents/{agent_id}/runs"): (create, "run.create"),
    ("POST", "/v1/runs/{run_id}:cancel"): (cancel, "run.cancel"),
    ("POST", "/v1/runs/{run_id}:retry"): (retry, "run.fork"),
    ("POST", "/v1/runs/{run_id}:fork"): (fork, "run.fork"),
    ("POST", "/v1/runs/{run_id}:resolve"): (resolve, "step.resolve_retry"),
    ("PUT", "/v1/admin/gateway/configuration"): (configure, "gateway.configure"),
    ("POST", "/v1/admin/gateway/configurations/{version}:activate"): (activate, "gateway.restore"),
    ("POST", TENANTS): (create_tenant, "tenant.create"),
    ("PATCH", TENANT_TEMPLATE): (entitle, "tenant.entitle"),
    ("DELETE", TENANT_TEMPLATE): (delete, "tenant.erased"),
    ("POST", TENANT_TEMPLATE + ":disable"): (disable, "tenant.disable"),
    ("POST", TENANT_TEMPLATE + ":enable"): (enable, "tenant.enable"),
    ("PUT", template(BUDGET)): (set_budget, "budget.set"),
    ("DELETE", template(BUDGET)): (remove_budget, "budget.remove"),
    ("POST", KILL): (kill, "run.kill"),
    ("POST", template(EXPORTS)): (export_subject, "subject.export"),
    ("POST", template(ERASURES)): (erase_subject, "subject.erased"),
    ("POST", template(HOLDS)): (hold, "hold.place"),
    ("POST", RELEASE): (release, "hold.release"),
    ("PATCH", template(RETENTION)): (retain, "retention.set"),
    ("PUT", template(PRINCIPALS)): (bar, "principal.disable"),
    ("PUT", template(ACTING)): (let_act, "acting.allow"),
    ("POST", template(KEYS)): (issue_key, "key.issue"),
    ("POST", own_keys.KEYS): (issue_own_key, "key.issue"),
    ("POST", own_keys.ROTATE): (on_an_own_key, "key.issue"),
    ("POST", own_keys.REVOKE): (on_an_own_key, "key.revoke"),
    # Of the successor; `key.rotate` of the key is before it.
    ("POST", ROTATE): (on_a_key, "key.issue"),
    ("POST", REVOKE): (on_a_key, "key.revoke"),
}
"""By route: how to make it change something, and what the audit then says. A change without a line here fails below."""


def changes(routes: tuple[Route, ...]) -> list[Route]:
    return [one for one in routes if one.mutation]


def guarded(routes: tuple[Route, ...]) -> list[Route]:
    return [one for one in routes if one.access not in {PUBLIC, LOOPBACK, IDENTIFIED}]


@pytest.mark.anyio
class TestStackA:
    @pytest.fixture
    async def world(self) -> AsyncIterator[World]:
        async with cloned() as clone, AsyncExitStack() as stack:
            config, given = PostgresConfig(dsn=clone.app), Given(clock=SystemClock())
            opened: dict[str, Any] = {
                name: await stack.enter_async_context(cast("Any", module).SPEC.open(config, given))
                for name, module in {
                    "run_state": run_state, "event": event, "queue": queue, "agent": agent, "audit": audit, "tenant": tenant
                }.items()
            }  # fmt: skip
            api = ApiDeps(clock=given.clock, verifier=Tokens(), metrics=Metrics(), **opened)
            control = PostgresConfig(dsn=clone.control)
            tenants = await stack.enter_async_context(tenant.SPEC.open(control, given))
            await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=Entitlements())
            await api.agent.publish(ACME, AGENT)
            transport = httpx.ASGITransport(cast("Any", create_app(api)))
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://node"))
            yield World(clone=clone, http=http, api=api, tokens={"all": "all", "none": "none"})

    async def test_each_change_is_in_the_audit(self, world: World) -> None:
        await _each_change(world, ROUTES.routes)

    async def test_each_denial_is_in_the_audit(self, world: World) -> None:
        await _each_denial(world, ROUTES.routes)

    async def test_a_tenant_asks_for_its_own_audit(self, world: World) -> None:
        await world.run()
        [route] = [one for one in ROUTES.routes if one.template == "/v1/audit"]

        answer = await world.send(route)
        filtered = await world.http.get(
            "/v1/audit?action=run.*&limit=1&since=2020-01-01", headers={"authorization": "Bearer all"}
        )
        refused = [
            (await world.http.get(f"/v1/audit?{query}", headers={"authorization": "Bearer all"})).status_code
            for query in (
                "outcome=x",
                "since=yesterday",
                "cursor=x",
                "limit=0",
                "tenant_id=tnt_globex",
                "until=0001-01-01T00:00:00%2B14:00",
            )
        ]

        actions = [one["entry"]["action"] for one in answer.json()["items"]]
        assert actions == ["run.create", "agent.publish", "tenant.create"]
        assert [one["seq"] for one in answer.json()["items"]] == [3, 2, 1]
        assert [one["entry"]["action"] for one in filtered.json()["items"]] == ["run.create"]
        assert refused == [400] * 6

    async def test_a_denial_that_can_not_be_noted_is_answered_as_unavailable(self, world: World) -> None:
        await execute(world.clone.owner, "REVOKE INSERT ON agentos.audit_log FROM ao_app")

        answer = await world.send(next(one for one in ROUTES.routes if one.template == "/v1/runs"), who="none")

        assert answer.status_code >= 500


@pytest.mark.anyio
class TestAdmin:
    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[World]:
        (tmp_path / "jwks.json").write_text(json.dumps(jwks(generate_key(tmp_path / "key.pem"))))
        clock = SystemClock()
        async with cloned() as clone, AsyncExitStack() as stack:
            (tmp_path / "dsn").write_text(clone.control)
            variables = {
                "AGENTOS_DATABASE_URL_FILE": str(tmp_path / "dsn"),
                "AGENTOS_EXPORTS_DIR": str(tmp_path / "exports"),
                "AGENTOS_ISSUER": "http://node",
                "AGENTOS_JWKS_FILE": str(tmp_path / "jwks.json"),
            }
            tenants = await stack.enter_async_context(
                tenant.SPEC.open(PostgresConfig(dsn=clone.control), Given(clock=clock))
            )
            await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=Entitlements())
            issuer = Choice(
                adapter="tokens", config={"private_key_file": str(tmp_path / "key.pem"), "issuer": "http://node"}
            )
            ports = await stack.enter_async_context(open_ports({"issuer": issuer}, {"issuer": None}, clock=clock))
            tokens = {
                name: ports["issuer"].mint(one, audience="admin", scopes=one.scopes, lifetime=timedelta(minutes=5))
                for name, one in {"all": EVERYTHING, "none": NOTHING}.items()
            }
            env = Environment(variables)
            app = await stack.enter_async_context(admin_root.create(env, admin_root.defaults(env), clock=clock))
            self.routes = cast("Edge", app)._routes.routes  # what is really served
            transport = httpx.ASGITransport(cast("Any", app))
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://admin"))
            yield World(clone=clone, http=http, api=cast("Any", None), tokens=tokens)

    async def test_each_change_is_in_the_audit(self, world: World) -> None:
        await _each_change(world, self.routes)

    async def test_each_denial_is_in_the_audit(self, world: World) -> None:
        await _each_denial(world, self.routes)

    async def test_a_look_into_anothers_audit_is_in_it_and_only_the_platforms(self, world: World) -> None:
        headers = {"authorization": f"Bearer {world.tokens['all']}"}
        for path in ("", "/chain", "/verification"):
            answer = await world.http.get(f"/v1/admin/audit{path}?tenant_id=tnt_globex", headers=headers)
            assert answer.status_code == 200, answer.text

        rows = await fetch(world.clone.admin, "SELECT * FROM audit_log WHERE tenant_id = 'tnt_globex' ORDER BY id")
        assert [(row["action"], row["actor_tenant"]) for row in rows] == [("audit.read", ACME.tenant)] * 3

    async def test_a_chain_is_checked(self, world: World) -> None:
        headers = {"authorization": f"Bearer {world.tokens['all']}"}

        own = (await world.http.get("/v1/admin/audit/verification", headers=headers)).json()
        chain = (await world.http.get("/v1/admin/audit/chain?after=0&limit=5", headers=headers)).json()

        assert (own["good"], own["verdict"]["checked"], own["verdict"]["bad"]) == (True, 1, None)
        assert [one["entry"]["action"] for one in chain["items"]] == ["tenant.create"]
        assert chain["head"]["hash"] == chain["items"][-1]["hash"]


async def _each_change(world: World, routes: tuple[Route, ...]) -> None:
    asked = changes(routes)
    assert asked
    unmapped = [(one.method, one.template) for one in asked if (one.method, one.template) not in CHANGES]
    assert unmapped == []
    missing = []
    for route in asked:
        exercise, action = CHANGES[(route.method, route.template)]
        before = await world.noted()
        answer = await exercise(world, route)
        assert answer.status_code < 300, f"{route.template}: {answer.text}"
        added = (await world.noted())[len(before) :]
        if not added or added[-1][0] != action:
            missing.append((route.template, added))
    assert missing == []


async def _each_denial(world: World, routes: tuple[Route, ...]) -> None:
    asked = guarded(routes)
    assert asked
    missing = []
    for route in asked:
        before = await world.noted()
        answer = await world.send(route, who="none")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope"), answer.text
        if (await world.noted())[len(before) :] != [("route.deny", route.template, "denied")]:
            missing.append(route.template)
    assert missing == []
