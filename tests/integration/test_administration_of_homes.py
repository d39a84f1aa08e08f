"""Administration of a tenant that lives in a home: as of any other, and when it goes nothing stays."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest

from adapters.postgres.move import abort_move
from adapters.postgres.move_job import Step
from adapters.postgres.tenant_export import verified
from conformance.people import ACME, GLOBEX, PLATFORM
from deploy.admin_surface import create_admin_app
from deploy.administration.part import part
from deploy.administration.platform import Platform
from deploy.roots.admin import exporter, subject_exporter
from deploy.roots.wiring import Choice, open_ports
from observability.metrics import Metrics
from ports.errors import Conflict, Unavailable
from tests.support.admin import Tokens
from tests.support.homes import CLOCK, OTHER, Homes, open_homes, prompt, silent
from tests.support.postgres import fetch, left_of

pytestmark = pytest.mark.anyio

PORTS: Final = ("tenant", "run_state", "budget", "request_log", "administration", "privacy", "audit")
ACME_URL: Final = f"/v1/admin/tenants/{ACME.tenant}"
REMOVE: Final = f"{ACME_URL}?confirm={ACME.tenant}"


class Node:
    def __init__(self, homes: Homes, http: httpx.AsyncClient, platform: Platform) -> None:
        self.homes = homes
        self.http = http
        self.platform = platform

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": "Bearer platform"}
        if method != "GET":
            headers |= {"idempotency-key": uuid.uuid4().hex, "if-match": "*"}
        return await self.http.request(method, path, json=body, headers=headers)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    with prompt():
        async with AsyncExitStack() as stack:
            homes = await stack.enter_async_context(open_homes())
            for auth in (ACME, GLOBEX):
                await homes.entitle(auth)
            config: Any = {"dsn": homes.shared.control, "homes": [[OTHER, homes.other.control]]}
            stored = Choice(adapter="postgres", config=config)
            ports = await stack.enter_async_context(
                open_ports(dict.fromkeys(PORTS, stored), dict.fromkeys(PORTS), clock=CLOCK)
            )
            platform = Platform(
                tenants=ports["tenant"],
                runs=ports["run_state"],
                budget=ports["budget"],
                requests=ports["request_log"],
                administration=ports["administration"],
                privacy=ports["privacy"],
                audit=ports["audit"],
                export=exporter(stored, tmp_path / "exports"),
                export_subject=subject_exporter(stored, tmp_path / "exports"),
            )

            async def answers() -> None:
                await platform.tenants.list_tenants(PLATFORM, limit=1)

            app = create_admin_app(
                (part(platform),), verifier=Tokens(), metrics=Metrics(), probes={"database": answers}
            )
            transport = httpx.ASGITransport(cast("Any", app))
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://admin"))
            yield Node(homes, http, platform)


async def test_runs_of_a_tenant_are_listed_and_killed_where_it_lives(node: Node) -> None:
    await node.homes.move(ACME.tenant, OTHER)
    run = await node.homes.api.create(ACME)
    listing = f"/v1/admin/runs?tenant_id={ACME.tenant}"

    before = (await node.send("GET", listing)).json()["items"]
    killed = await node.send("POST", f"/v1/admin/runs/{run}:kill", {"tenant_id": ACME.tenant, "reason": "wild"})
    after = (await node.send("GET", f"{listing}&status=cancelled")).json()["items"]

    assert [one["run_id"] for one in before] == [run]
    assert (killed.status_code, killed.json()["status"]) == (200, "cancelled"), killed.text
    assert [one["run_id"] for one in after] == [run]
    noted = await fetch(node.homes.other.admin, "SELECT action, tenant_id FROM audit_log WHERE action = 'run.kill'")
    assert [tuple(row) for row in noted] == [("run.kill", ACME.tenant)]


async def test_requests_about_ones_data_are_answered_for_the_home_too(node: Node) -> None:
    privacy = f"{ACME_URL}/privacy"
    about = {"subject": ACME.principal}
    placed = await node.send("POST", f"{privacy}/holds", {"subject": None, "reason": "case 17/26"})
    await node.homes.move(ACME.tenant, OTHER)
    run = await node.homes.api.create(ACME)
    early = await node.send("POST", f"{privacy}/erasures", {**about, "confirm": ACME.principal})
    await node.homes.clear(ACME.tenant)
    held = await node.send("POST", f"{privacy}/erasures", {**about, "confirm": ACME.principal})
    await node.send("POST", f"{privacy}/holds/{placed.json()['id']}:release", {})
    await node.send("POST", f"/v1/admin/runs/{run}:kill", {"tenant_id": ACME.tenant})
    made = await node.send("POST", f"{privacy}/exports", about)

    while (gone := await node.send("POST", f"{privacy}/erasures", {**about, "confirm": ACME.principal})).is_success:
        if gone.status_code == 200:
            break
    kept = await node.send("PATCH", f"{privacy}/retention", {"days": {"runs": 30}})

    assert (held.status_code, held.json()["error"]["code"]) == (409, "legal_hold")
    assert made.status_code == 201, made.text
    assert f"{OTHER}/runs" in verified(Path(made.json()["export_file"])).tables
    assert (early.status_code, "remains" in early.text) == (409, True)
    assert (gone.status_code, gone.json()["counts"]["runs"]) == (200, 1), gone.text
    assert (kept.status_code, kept.json()["days"]) == (200, {"runs": 30})
    assert await fetch(node.homes.other.admin, "SELECT id FROM runs") == []


async def test_a_kill_that_comes_late_follows_the_tenant(node: Node) -> None:
    """Its process still takes the tenant to the old home, which would only end what is left behind there."""
    run = await node.homes.api.create(ACME)
    await node.send("GET", f"/v1/admin/runs?tenant_id={ACME.tenant}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("adapters.postgres.homes.LATE_S", 3600.0)
        await node.homes.move(ACME.tenant, OTHER)

        killed = await node.send("POST", f"/v1/admin/runs/{run}:kill", {"tenant_id": ACME.tenant})

    assert (killed.status_code, killed.json()["status"]) == (200, "cancelled"), killed.text
    [row] = await fetch(node.homes.other.admin, "SELECT status FROM runs")
    assert row["status"] == "cancelled"


async def test_what_a_tenant_may_and_has_spent_is_told_wherever_it_lives(node: Node) -> None:
    await node.homes.move(ACME.tenant, OTHER)

    put = await node.send("PUT", f"{ACME_URL}/budgets/monthly", {"limit": 1_000, "period": "month"})
    listed = await node.send("GET", f"{ACME_URL}/budgets")
    used = await node.send("GET", f"{ACME_URL}/usage")
    changed = await node.send("PATCH", ACME_URL, {"entitlements": {"max_queued_runs": 7}})

    assert [answer.status_code for answer in (put, listed, used, changed)] == [200] * 4
    assert "monthly" in {one["budget"]["id"] for one in listed.json()["items"]}
    [row] = await fetch(node.homes.other.admin, "SELECT entitlements ->> 'max_queued_runs' AS most FROM tenants")
    assert row["most"] == "7"


async def test_a_tenant_is_deleted_in_both_and_its_export_has_both(node: Node) -> None:
    await node.homes.api.create(ACME)
    await node.homes.api.create(GLOBEX)
    await node.homes.move(ACME.tenant, OTHER)
    await node.homes.api.create(ACME)
    await node.homes.api.memory.put(ACME, "colour", "blue")

    active = await node.send("DELETE", REMOVE)
    await node.send("POST", f"{ACME_URL}:disable", {})
    remains = await node.send("DELETE", REMOVE)
    await node.homes.clear(ACME.tenant)
    busy = await node.send("DELETE", REMOVE)
    for run in (await node.send("GET", f"/v1/admin/runs?tenant_id={ACME.tenant}")).json()["items"]:
        await node.send("POST", f"/v1/admin/runs/{run['run_id']}:kill", {"tenant_id": ACME.tenant})
    done = await node.send("DELETE", REMOVE)
    again = await node.send("DELETE", REMOVE)
    anew = await node.send("POST", "/v1/admin/tenants", {"id": ACME.tenant, "name": "Acme"})

    assert [answer.status_code for answer in (active, remains, busy)] == [409, 409, 409]
    assert "--clear" in remains.json()["error"]["message"]
    assert busy.json()["error"]["details"] == {"open_runs": 2}
    assert (done.status_code, done.json()["status"]) == (200, "deleted"), done.text
    assert (again.json()["rows_removed"], anew.status_code) == (0, 409)
    manifest = verified(Path(done.json()["export_file"]))
    assert (manifest.tables["runs"].rows, manifest.tables[f"{OTHER}/runs"].rows) == (0, 2)
    assert manifest.tables[f"{OTHER}/audit_log"].rows == 3
    assert await left_of(node.homes.shared, ACME.tenant) == {"tenant_tombstones", "tenant_stays"}
    assert await left_of(node.homes.other, ACME.tenant) == {"tenant_tombstones"}
    assert "runs" in await left_of(node.homes.shared, GLOBEX.tenant)


@pytest.mark.parametrize("limit", [1, 3])
async def test_an_erasing_in_two_databases_is_gone_on_with(node: Node, limit: int) -> None:
    await node.homes.move(ACME.tenant, OTHER)
    await node.homes.clear(ACME.tenant)
    await node.homes.api.memory.put(ACME, "colour", "blue and green")
    await node.send("POST", f"{ACME_URL}:disable", {})
    removed = 0

    for _ in range(100):
        erased = await node.platform.administration.erase(PLATFORM, ACME.tenant, export_sha256="sha256:x", limit=limit)
        removed += erased.removed
        assert erased.removed <= limit
        if erased.done:
            break

    assert erased.done
    assert removed >= 4
    assert await left_of(node.homes.shared, ACME.tenant) == {"tenant_tombstones", "tenant_stays"}
    assert await left_of(node.homes.other, ACME.tenant) == {"tenant_tombstones"}


async def test_who_is_on_the_way_is_not_deleted_and_who_is_being_deleted_does_not_move(node: Node) -> None:
    async def disabled_then_deleted(step: Step) -> None:
        if step.point == "guarded":
            await node.send("POST", f"{ACME_URL}:disable", {})
            with pytest.raises(Conflict, match="is being moved"):
                await node.platform.administration.erase(PLATFORM, ACME.tenant, export_sha256="sha256:x", limit=9)
            raise Unavailable("killed here")

    with pytest.raises(Unavailable):
        await node.homes.move(ACME.tenant, OTHER, tell=disabled_then_deleted)
    await abort_move(PLATFORM, ACME.tenant, node.homes.places, tell=silent)
    await node.platform.administration.erase(PLATFORM, ACME.tenant, export_sha256="sha256:x", limit=1)

    with pytest.raises(Conflict, match="is being removed"):
        await node.homes.move(ACME.tenant, OTHER)


async def test_a_disabled_tenant_is_disabled_in_its_home(node: Node) -> None:
    await node.homes.move(ACME.tenant, OTHER)
    await node.send("POST", f"{ACME_URL}:disable", {})

    [row] = await fetch(node.homes.other.admin, "SELECT status FROM tenants")

    assert row["status"] == "disabled"
