"""Services that act for tenants, over PostgreSQL: the audit has both, and only administration lets them."""

from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from msgspec.structs import replace

from adapters.postgres import run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import new_run
from conformance.people import ACME, GLOBEX, PLATFORM
from ports.adapter import Given
from ports.errors import AgentOSError
from ports.ids import PrincipalId
from ports.tenant import Entitlements, NewKey
from tests.support.postgres import Clone, cloned, fetch

pytestmark = pytest.mark.anyio

HUB = replace(ACME, principal=PrincipalId("svc_hub"))
GIVEN = Given(clock=SystemClock())


@pytest.fixture
async def database() -> AsyncIterator[Clone]:
    async with cloned() as clone:
        async with tenant.SPEC.open(PostgresConfig(dsn=clone.control), GIVEN) as tenants:
            for one in (ACME, GLOBEX):
                await tenants.create(PLATFORM, one.tenant, name="", entitlements=Entitlements())
        yield clone


async def test_what_it_does_is_in_the_tenants_audit_with_both_and_so_is_who_let_it(database: Clone) -> None:
    there = HUB.acting_for(GLOBEX.tenant)
    async with tenant.SPEC.open(PostgresConfig(dsn=database.control), GIVEN) as tenants:
        for _ in range(2):
            await tenants.let_act(PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=HUB.principal)
    async with run_state.SPEC.open(PostgresConfig(dsn=database.app), GIVEN) as runs:
        made = (await runs.create(there, new_run())).run
        await runs.cancel(there, made.id, reason="")
        await runs.create(replace(GLOBEX, principal=PrincipalId("tnt-odd")), new_run())

    rows = await fetch(
        database.admin,
        "SELECT action, actor_tenant, principal FROM audit_log "
        "WHERE tenant_id = $1 AND action <> 'tenant.create' ORDER BY id",
        GLOBEX.tenant,
    )
    assert [tuple(row) for row in rows] == [
        ("acting.allow", PLATFORM.tenant, PLATFORM.principal),
        ("run.create", ACME.tenant, "tnt_acme/svc_hub"),
        ("run.cancel", ACME.tenant, "tnt_acme/svc_hub"),
        ("run.create", GLOBEX.tenant, "tnt-odd"),
    ]
    assert (
        await fetch(database.admin, "SELECT FROM audit_log WHERE tenant_id = $1 AND action LIKE 'run%'", ACME.tenant)
        == []
    )


async def test_a_service_of_the_node_lets_nobody_act(database: Clone) -> None:
    async with tenant.SPEC.open(PostgresConfig(dsn=database.app), GIVEN) as tenants:
        with pytest.raises(AgentOSError):
            await tenants.let_act(PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=HUB.principal)
        with pytest.raises(AgentOSError):
            await tenants.end_acting(PLATFORM, GLOBEX.tenant, actor_tenant=ACME.tenant, principal=HUB.principal)


async def test_a_note_of_use_changes_nothing_else_and_is_of_no_future(database: Clone) -> None:
    async with tenant.SPEC.open(PostgresConfig(dsn=database.app), GIVEN) as tenants:
        key = await tenants.issue_key(
            ACME, NewKey(principal=HUB.principal, scopes=frozenset(), secret_sha256=b"0" * 32)
        )
        future = GIVEN.clock.now() + timedelta(days=1)
        await tenants.keys_used({key.id: future})
        [told] = (await tenants.list_keys(ACME, limit=5)).items

        assert told.last_used_at is not None
        assert told.last_used_at < future
        assert replace(told, last_used_at=None) == key
    connection = await asyncpg.connect(database.app)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM agentos.acting_principals")
    finally:
        await connection.close()
