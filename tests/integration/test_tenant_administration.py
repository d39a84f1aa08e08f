"""The part of the admin API about tenants, over PostgreSQL and as the role that it has there."""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile

import httpx
import pytest

from adapters.postgres.tenant_export import verified
from adapters.system_clock import SystemClock
from conformance.factories import new_run
from conformance.people import ACME, GLOBEX, NODE, PLATFORM
from deploy.admin_surface import create_admin_app
from deploy.administration.part import part
from deploy.administration.platform import Platform
from deploy.administration.routes import ROUTES
from deploy.roots.admin import exporter, subject_exporter
from deploy.roots.wiring import Choice, open_ports
from observability.metrics import Metrics
from ports.budget import Account, Amount, Booking, UsageEvent
from ports.budget_rules import accounts, tokens_per_day
from ports.errors import AgentOSError, InvalidArgument
from ports.ids import PrincipalId, TenantId, WorkerId
from ports.tenant import Entitlements, NewKey
from tests.support.admin import Tokens
from tests.support.postgres import Clone, cloned, execute, fetch, left_of

pytestmark = pytest.mark.anyio

PORTS = ("tenant", "run_state", "budget", "request_log", "administration", "privacy", "audit")
ACME_URL = f"/v1/admin/tenants/{ACME.tenant}"
MOST = 1_000_000


class Node:
    def __init__(self, database: Clone, http: httpx.AsyncClient, platform: Platform) -> None:
        self.database = database
        self.http = http
        self.platform = platform

    async def send(
        self, method: str, path: str, body: Any = None, *, who: str = "platform", **more: str | None
    ) -> httpx.Response:
        """`more` are headers, with _ for -; None: without it."""
        headers: dict[str, str | None] = {"authorization": f"Bearer {who}"}
        if method != "GET":
            headers |= {"idempotency-key": uuid.uuid4().hex, "if-match": "*"}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        sent = {name: value for name, value in headers.items() if value is not None}
        return await self.http.request(method, path, json=body, headers=sent)

    async def audit(self, tenant: TenantId = ACME.tenant) -> list[tuple[str, str, str]]:
        rows = await fetch(
            self.database.admin,
            "SELECT action, subject, actor_tenant FROM audit_log WHERE tenant_id = $1 ORDER BY id",
            tenant,
        )
        return [(row["action"], row["subject"], row["actor_tenant"]) for row in rows]


@asynccontextmanager
async def administered(folder: Path) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(cloned())
        stored = Choice(adapter="postgres", config={"dsn": database.control})
        choices = dict.fromkeys(PORTS, stored)
        ports = await stack.enter_async_context(open_ports(choices, dict.fromkeys(PORTS), clock=SystemClock()))
        platform = Platform(
            tenants=ports["tenant"],
            runs=ports["run_state"],
            budget=ports["budget"],
            requests=ports["request_log"],
            administration=ports["administration"],
            privacy=ports["privacy"],
            audit=ports["audit"],
            export=exporter(stored, folder),
            export_subject=subject_exporter(stored, folder),
        )

        async def answers() -> None:
            await platform.tenants.list_tenants(PLATFORM, limit=1)

        app = create_admin_app((part(platform),), verifier=Tokens(), metrics=Metrics(), probes={"database": answers})
        transport = httpx.ASGITransport(cast("Any", app))
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://admin"))
        yield Node(database, http, platform)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with administered(tmp_path / "exports") as made:
        yield made


async def created(node: Node, tenant: TenantId = ACME.tenant, **entitlements: Any) -> Any:
    body = {"id": tenant, "name": "Acme", "entitlements": entitlements}
    answer = await node.send("POST", "/v1/admin/tenants", body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def a_day_of_work(node: Node) -> None:
    """Usage, keys, runs: something in most tables."""
    await node.platform.tenants.issue_key(
        ACME, NewKey(principal=PrincipalId("svc_x"), scopes=frozenset({"runs:read"}), secret_sha256=b"s" * 32)
    )
    run = (await node.platform.runs.create(ACME, new_run())).run
    await node.platform.runs.cancel(ACME, run.id, reason="over")
    account: Account = tokens_per_day(MOST)
    hold = await node.platform.budget.hold(ACME, Amount(tokens=500), on=(account,), lease=timedelta(hours=1))
    events = tuple(
        UsageEvent(request=f"req-{n}", attempt=1, model="m-1", agent=agent, fresh_tokens=10, cost_nanousd=5)
        for n, agent in enumerate(("agt_a", "agt_a", "agt_b"))
    )
    await node.platform.budget.book(ACME, [Booking(hold=hold.id, events=events, end=True)])


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
async def test_every_route_is_the_platforms_alone(node: Node, route: Any) -> None:
    path = route.template.replace("{tenant_id}", ACME.tenant).replace("{budget_id}", "b").replace("{run_id}", "run_1")
    body: Any = None if route.method in {"GET", "DELETE"} else {}

    codes = {
        who: (answer.status_code, answer.json()["error"]["code"])
        for who in ("nobody", "user", "tenant_admin")
        if (answer := await node.send(route.method, path, body, who=who)) or True  # an answer of an error is false
    }

    assert codes == {
        "nobody": (401, "unauthenticated"),
        "user": (403, "insufficient_scope"),
        "tenant_admin": (403, "insufficient_scope"),
    }


async def test_of_two_administrators_the_second_is_told_that_the_first_was_there(node: Node) -> None:
    await created(node)
    version = (await node.send("GET", ACME_URL)).headers["etag"]
    seven, nine = ({"entitlements": {"weight": weight}} for weight in (7, 9))

    first = await node.send("PATCH", ACME_URL, seven, if_match=version)
    second = await node.send("PATCH", ACME_URL, nine, if_match=version)
    repeated = await node.send("PATCH", ACME_URL, seven, if_match=version)
    without = await node.send("PATCH", ACME_URL, nine, if_match=None)
    nonsense = await node.send("PATCH", ACME_URL, nine, if_match="W/7")
    listed = (await node.send("GET", "/v1/admin/tenants")).json()["items"]
    third = await node.send("PATCH", ACME_URL, nine, if_match=first.headers["etag"])

    assert (version, first.status_code, first.headers["etag"], third.headers["etag"]) == ('"1"', 200, '"2"', '"3"')
    assert (second.status_code, second.json()["error"]["details"]) == (409, {"current": 2})
    assert (repeated.status_code, repeated.headers["etag"]) == (200, '"2"'), "it was lost on its way back, say"
    assert [(one.status_code, one.json()["error"]["details"]["path"]) for one in (without, nonsense)] == [
        (400, "If-Match")
    ] * 2
    assert [(one["id"], one["version"], one["entitlements"]["weight"]) for one in listed] == [(ACME.tenant, 2, 7)]
    assert [action for action, _, _ in await node.audit()].count("tenant.entitle") == 2


async def test_a_hold_that_is_asked_for_again_with_its_key_is_one(node: Node) -> None:
    await created(node)
    holds = f"{ACME_URL}/privacy/holds"
    body = {"subject": "usr_ann", "reason": "case 17/26"}

    answers = await asyncio.gather(*(node.send("POST", holds, body, idempotency_key="case-17") for _ in range(4)))
    other = await node.send("POST", holds, {**body, "reason": "case 18/26"}, idempotency_key="case-17")
    another = await node.send("POST", holds, body, idempotency_key="case-18")

    assert [one.status_code for one in answers] == [201] * 4
    assert len({one.json()["id"] for one in answers}) == 1
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    listed = (await node.send("GET", holds)).json()["items"]
    assert [one["id"] for one in listed] == [answers[0].json()["id"], another.json()["id"]]
    assert [action for action, _, _ in await node.audit()].count("hold.place") == 2
    placed = listed[0]["id"]
    await node.send("POST", f"{holds}/{placed}:release", {})
    after = await node.send("POST", holds, body, idempotency_key="case-17")
    assert (after.status_code, after.json()["error"]["code"]) == (409, "hold_released")
    assert after.json()["error"]["details"] == {"hold_id": placed}


async def test_a_tenant_is_made_looked_at_changed_and_switched(node: Node) -> None:
    made = await created(node, tokens_per_day=1_000)
    again = await node.send("POST", "/v1/admin/tenants", {"id": ACME.tenant, "name": "Acme"})
    changed = await node.send("PATCH", ACME_URL, {"entitlements": {"max_active_runs": 7, "models": ["m-1"]}})
    wrong = await node.send("PATCH", ACME_URL, {"entitlements": {"max_active_runs": 0}})
    unknown = await node.send("PATCH", ACME_URL, {"entitlements": {"rain": 1}})
    unusable = {"policy": {"rules": [{"id": "a", "effect": "deny", "patterns": ["(?P‹"]}]}}
    policies = [
        await node.send("PATCH", ACME_URL, {"entitlements": unusable}),
        await node.send("POST", "/v1/admin/tenants", {"id": "tnt_new", "name": "New", "entitlements": unusable}),
    ]
    off = await node.send("POST", f"{ACME_URL}:disable", {})
    on = await node.send("POST", f"{ACME_URL}:enable", {})
    shown = await node.send("GET", ACME_URL)
    absent = await node.send("GET", "/v1/admin/tenants/tnt_nobody")

    assert (made["status"], made["entitlements"]["tokens_per_day"]) == ("active", 1_000)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    assert changed.json()["entitlements"]["tokens_per_day"] == 1_000, "what is not named stays"
    assert changed.json()["entitlements"]["max_active_runs"] == 7
    assert [answer.status_code for answer in (wrong, unknown, absent)] == [422, 422, 404]
    assert wrong.json()["error"]["details"]["path"] == "$.max_active_runs"
    assert [answer.status_code for answer in policies] == [400, 400]
    assert all("rule 'a'" in answer.json()["error"]["details"]["problems"][0] for answer in policies)
    assert (off.json()["status"], on.json()["status"]) == ("disabled", "active")
    assert shown.json()["entitlements"] == changed.json()["entitlements"]
    assert [one[0] for one in await node.audit()] == [
        "tenant.create", "tenant.entitle", "tenant.disable", "tenant.enable",
    ]  # fmt: skip
    assert {one[2] for one in await node.audit()} == {PLATFORM.tenant}


async def test_tenants_are_listed_in_pages(node: Node) -> None:
    for name in ("tnt_a", "tnt_b", "tnt_c"):
        await created(node, TenantId(name))

    seen: list[str] = []
    cursor, pages = "", 0
    while pages < 5:
        page = (await node.send("GET", f"/v1/admin/tenants?limit=2{cursor}")).json()
        pages, seen = pages + 1, seen + [one["id"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert (seen, pages) == (["tnt_a", "tnt_b", "tnt_c"], 2)
    for query in ("limit=0", "limit=201", "cursor=x", "rain=1"):
        assert (await node.send("GET", f"/v1/admin/tenants?{query}")).status_code == 400


async def test_a_budget_tells_what_is_spent_held_and_left(node: Node) -> None:
    await created(node)
    url = f"{ACME_URL}/budgets"
    put = await node.send("PUT", f"{url}/monthly", {"limit": 1_000, "unit": "nanousd", "period": "month"})
    await node.send("PUT", f"{url}/monthly", {"limit": 1_000, "unit": "nanousd", "period": "month"})
    await node.send("PUT", f"{url}/each-agent", {"limit": 900, "scope": "agent"})
    mine = await node.platform.budget.budgets(ACME)
    on = accounts(MOST, mine, {"agent": "agt_a"})
    await node.platform.budget.hold(ACME, Amount(tokens=100, nanousd=40), on=on, lease=timedelta(hours=1))
    used = await node.platform.budget.hold(ACME, Amount(tokens=100, nanousd=40), on=on, lease=timedelta(hours=1))
    event = UsageEvent(request="r", attempt=1, model="m", agent="agt_a", fresh_tokens=30, cost_nanousd=7)
    await node.platform.budget.book(ACME, [Booking(hold=used.id, events=(event,), end=True)])

    listed = (await node.send("GET", url)).json()["items"]
    agents = (await node.send("GET", f"{url}/each-agent?scope_id=agt_a")).json()
    wrong = await node.send("PUT", f"{url}/x", {"limit": 1, "tz": "Moon/Base"})
    bad_id = await node.send("PUT", f"{url}/NO", {"limit": 1})
    gone = await node.send("DELETE", f"{url}/monthly")
    again = await node.send("DELETE", f"{url}/monthly")

    assert put.status_code == 200
    windows = {one["budget"]["id"]: one["window"] for one in listed}
    figures = {name: (one["spent"], one["held"], one["left"]) for name, one in windows.items() if one is not None}
    assert figures == {"tokens_per_day": (30, 100, MOST - 130), "monthly": (7, 40, 953)}
    assert windows["each-agent"] is None
    assert [agents["window"][part] for part in ("scope_id", "spent", "held", "left")] == ["agt_a", 30, 100, 770]
    assert [answer.status_code for answer in (wrong, bad_id, gone, again)] == [400, 400, 200, 404]
    assert [one[:2] for one in await node.audit() if one[0].startswith("budget")] == [
        ("budget.set", "monthly"), ("budget.set", "each-agent"), ("budget.remove", "monthly"),
    ]  # fmt: skip


async def test_usage_is_told_by_model_or_by_agent(node: Node) -> None:
    await created(node)
    await a_day_of_work(node)

    by_model = (await node.send("GET", f"{ACME_URL}/usage?days=2")).json()["usage"]
    by_agent = (await node.send("GET", f"{ACME_URL}/usage?days=2&by_agent=true")).json()["usage"]
    wrong = [await node.send("GET", f"{ACME_URL}/usage?{query}") for query in ("days=0", "days=367", "by_agent=yes")]

    assert [(one["model"], one["agent"], one["calls"], one["cost_nanousd"]) for one in by_model] == [
        ("m-1", None, 3, 15)
    ]
    assert [(one["agent"], one["calls"]) for one in by_agent] == [("agt_a", 2), ("agt_b", 1)]
    assert [answer.status_code for answer in wrong] == [400, 400, 400]


async def test_adding_up_usage_reads_what_is_asked_for_only(node: Node) -> None:
    """Not all that a tenant ever did."""
    await created(node)
    # Of a year: the foreign key to holds is not what this is about.
    await execute(
        node.database.superuser,
        "SET session_replication_role = replica; SET search_path = agentos; "
        "INSERT INTO usage_events (tenant_id, request_id, attempt, at, hold_id, kind) "
        f"SELECT '{ACME.tenant}', 'r' || n, 1, now() - n * interval '1 hour', gen_random_uuid(), 'call' "
        "FROM generate_series(1, 8760) n; ANALYZE usage_events",
    )
    plan = await explained(
        node.database.control,
        "SELECT sum(u.fresh_tokens) FROM usage_events u "
        f"WHERE u.tenant_id = '{ACME.tenant}' AND u.at >= now() - interval '1 day'",
    )

    assert "usage_events_by_time" in plan
    assert "Seq Scan" not in plan


async def explained(dsn: str, query: str) -> str:
    rows = await fetch(dsn, f"/* plan */ EXPLAIN {query}")
    return "\n".join(row[0] for row in rows)


async def test_a_run_that_a_worker_holds_is_killed_and_the_kill_is_in_the_audit(node: Node) -> None:
    await created(node)
    await node.platform.runs.renew(NODE, WorkerId("wrk_a"), timedelta(hours=1))
    run = (await node.platform.runs.create(ACME, new_run())).run
    await node.platform.runs.claim(ACME, run.id, WorkerId("wrk_a"))
    listing = f"/v1/admin/runs?tenant_id={ACME.tenant}"

    before = (await node.send("GET", f"{listing}&status=running")).json()["items"]
    foreign = await node.send("POST", f"/v1/admin/runs/{run.id}:kill", {"tenant_id": GLOBEX.tenant})
    absent = await node.send("POST", "/v1/admin/runs/run_nothing:kill", {"tenant_id": ACME.tenant})
    killed = await node.send("POST", f"/v1/admin/runs/{run.id}:kill", {"tenant_id": ACME.tenant, "reason": "wild"})
    repeat = await node.send("POST", f"/v1/admin/runs/{run.id}:kill", {"tenant_id": ACME.tenant})

    assert [one["run_id"] for one in before] == [run.id]
    assert not {"input", "output", "context"} & set(before[0])
    assert [answer.status_code for answer in (foreign, absent, killed, repeat)] == [404, 404, 200, 200]
    assert killed.json()["status"] == "cancelled"
    assert [one for one in await node.audit() if one[0] == "run.kill"] == [("run.kill", run.id, PLATFORM.tenant)]


async def test_a_tenant_is_deleted_only_when_disabled_confirmed_idle_and_exported(node: Node) -> None:
    await created(node)
    await a_day_of_work(node)
    open_run = (await node.platform.runs.create(ACME, new_run())).run

    unconfirmed = await node.send("DELETE", ACME_URL)
    active = await node.send("DELETE", f"{ACME_URL}?confirm={ACME.tenant}")
    await node.send("POST", f"{ACME_URL}:disable", {})
    busy = await node.send("DELETE", f"{ACME_URL}?confirm={ACME.tenant}")
    await node.send("POST", f"/v1/admin/runs/{open_run.id}:kill", {"tenant_id": ACME.tenant})
    done = await node.send("DELETE", f"{ACME_URL}?confirm={ACME.tenant}")
    again = await node.send("DELETE", f"{ACME_URL}?confirm={ACME.tenant}")
    anew = await node.send("POST", "/v1/admin/tenants", {"id": ACME.tenant, "name": "Acme"})
    absent = await node.send("DELETE", "/v1/admin/tenants/tnt_nobody?confirm=tnt_nobody")

    assert [answer.status_code for answer in (unconfirmed, active, busy, absent)] == [400, 409, 409, 404]
    assert busy.json()["error"]["details"] == {"open_runs": 1}
    assert (done.status_code, done.json()["status"]) == (200, "deleted")
    assert (again.json()["rows_removed"], again.json()["export_file"]) == (0, None)
    assert again.json()["export_sha256"] == done.json()["export_sha256"]
    assert anew.status_code == 409
    manifest = verified(Path(done.json()["export_file"]))
    assert (manifest.tables["runs"].rows, manifest.tables["usage_events"].rows) == (2, 3)
    assert manifest.tables["api_keys"].omitted == ("secret_sha256",)
    assert done.json()["export_rows"] == manifest.rows
    assert [one[0] for one in await node.audit()][-2:] == ["tenant.erase", "tenant.erased"]
    assert await left_of(node.database, ACME.tenant) == {"tenant_tombstones"}


async def test_an_erasing_that_was_interrupted_is_gone_on_with_and_exports_nothing_again(node: Node) -> None:
    await created(node)
    await a_day_of_work(node)
    await node.send("POST", f"{ACME_URL}:disable", {})
    begun = await node.platform.administration.erase(PLATFORM, ACME.tenant, export_sha256="sha256:first", limit=1)

    done = await node.send("DELETE", f"{ACME_URL}?confirm={ACME.tenant}")

    assert not begun.done
    assert (done.json()["export_sha256"], done.json()["export_file"]) == ("sha256:first", None)
    assert await left_of(node.database, ACME.tenant) == {"tenant_tombstones"}


async def test_an_export_is_the_tenants_own_whole_and_found_out_when_it_was_changed(node: Node, tmp_path: Path) -> None:
    await created(node)
    await created(node, GLOBEX.tenant)
    await a_day_of_work(node)
    await node.platform.runs.create(GLOBEX, new_run())

    export = await node.platform.export(ACME.tenant)

    path = Path(export.path)
    assert os.stat(export.path).st_mode & 0o777 == 0o600  # noqa: PTH116 - a test may wait for the disk
    with ZipFile(path) as packed:
        texts = {name: packed.read(name).decode() for name in packed.namelist()}
    assert GLOBEX.tenant not in "".join(texts.values())
    assert (b"s" * 32).hex() not in "".join(texts.values())
    [tenant] = [json.loads(line) for line in texts["tables/tenants.ndjson"].splitlines()]
    assert tenant["name"] == "Acme"
    assert verified(path) == export.manifest
    forged = tmp_path / "forged.zip"
    with ZipFile(forged, "w") as packed:
        for name, text in texts.items():
            packed.writestr(name, text.replace("m-1", "m-2"))
    with pytest.raises(InvalidArgument, match="usage_events"):
        verified(forged)
    with pytest.raises(InvalidArgument):
        verified(tmp_path / "nothing.zip")


async def test_the_services_role_can_do_nothing_of_this(node: Node) -> None:
    """Also with the code of the admin service in its hands."""
    await created(node)
    choices = dict.fromkeys(PORTS, Choice(adapter="postgres", config={"dsn": node.database.app}))

    async with open_ports(choices, dict.fromkeys(PORTS), clock=SystemClock()) as ports:
        attempts: tuple[Awaitable[object], ...] = (
            ports["tenant"].set_status(PLATFORM, ACME.tenant, "disabled"),
            ports["tenant"].set_entitlements(PLATFORM, ACME.tenant, Entitlements(weight=9)),
            ports["tenant"].list_tenants(PLATFORM, limit=1),
            ports["budget"].remove_budget(PLATFORM, ACME.tenant, "b"),
            ports["administration"].erase(PLATFORM, ACME.tenant, export_sha256="x", limit=1),
        )
        for attempt in attempts:
            with pytest.raises(AgentOSError, match="SQLSTATE 42501"):
                await attempt

    assert (await node.platform.tenants.get(PLATFORM, ACME.tenant)).status == "active"
