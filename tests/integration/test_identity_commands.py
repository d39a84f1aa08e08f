"""`agentos key` and `agentos principal` against a database, without a node that runs."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.postgres import tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.people import ACME, GLOBEX, PLATFORM
from ports.adapter import Given
from ports.tenant import Entitlements
from tests.support.cli import agentos, home_of
from tests.support.postgres import Clone, clone, drop, fetch


@pytest.fixture
def database() -> Iterator[Clone]:
    made = asyncio.run(clone())
    asyncio.run(_two_tenants(made))
    yield made
    asyncio.run(drop(made))


@pytest.fixture
def environ(database: Clone, tmp_path: Path) -> dict[str, str]:
    return home_of(database, tmp_path)


async def _two_tenants(database: Clone) -> None:
    async with tenant.SPEC.open(PostgresConfig(dsn=database.control), Given(clock=SystemClock())) as tenants:
        for one in (ACME, GLOBEX):
            await tenants.create(PLATFORM, one.tenant, name="", entitlements=Entitlements())


def test_a_key_is_issued_with_scopes_of_its_own_in_a_namespace(environ: dict[str, str]) -> None:
    line = (
        "key issue --tenant tnt_acme --principal svc_hub --scope tenant:act_as --scope runs:read --namespace lab --json"
    )
    made = json.loads(agentos(*line.split(), environ=environ).out)

    [listed] = json.loads(agentos("key", "list", "--tenant", "tnt_acme", "--json", environ=environ).out)
    told = agentos("key", "list", "--tenant", "tnt_acme", environ=environ)

    assert (made["roles"], made["scopes"]) == ([], ["runs:read", "tenant:act_as"])
    assert (listed["id"], listed["namespace"], listed["last_used_at"]) == (made["key_id"], "lab", None)
    assert "runs:read, tenant:act_as" in told.out


def test_a_service_is_let_to_act_and_not_any_more_and_the_tenant_bars_it_by_its_name(
    environ: dict[str, str], database: Clone
) -> None:
    act = ("principal", "act-as", "svc_hub", "--tenant", "tnt_acme", "--for", "tnt_globex")
    said = agentos(*act, environ=environ)
    told = json.loads(agentos("principal", "acting", "--tenant", "tnt_globex", "--json", environ=environ).out)
    barred = agentos("principal", "disable", "tnt_acme/svc_hub", "--tenant", "tnt_globex", environ=environ)
    ended = agentos(*act, "--end", "--json", environ=environ)

    assert "tnt_acme/svc_hub" in said.out
    assert [(one["actor_tenant"], one["principal"]) for one in told] == [("tnt_acme", "svc_hub")]
    assert (barred.code, "disabled" in barred.out) == (0, True)
    assert (ended.code, json.loads(ended.out)) == (0, [])
    rows = asyncio.run(
        fetch(
            database.admin,
            "SELECT action, subject FROM audit_log WHERE tenant_id = $1 AND action <> 'tenant.create' ORDER BY id",
            GLOBEX.tenant,
        )
    )
    assert [tuple(row) for row in rows] == [
        ("acting.allow", "tnt_acme/svc_hub"),
        ("principal.disable", "tnt_acme/svc_hub"),
        ("acting.end", "tnt_acme/svc_hub"),
    ]


@pytest.mark.parametrize(("home", "acted_for"), [("tnt_nobody", "tnt_globex"), ("tnt_acme", "tnt_nobody")])
def test_a_tenant_that_there_is_not_acts_for_none_and_is_acted_for_by_none(
    environ: dict[str, str], home: str, acted_for: str
) -> None:
    said = agentos("principal", "act-as", "svc_hub", "--tenant", home, "--for", acted_for, environ=environ)

    assert (said.code, said.out) == (1, "")
    assert "tnt_nobody" in said.err
