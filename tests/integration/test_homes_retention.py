"""Retention of a tenant that lives in a home: its worker keeps the days there, those included that came with the tenant."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import pytest

from adapters.postgres import maintenance
from adapters.postgres.engine import PostgresConfig
from conformance.factories import SUCCEEDED, intent, result
from conformance.people import ACME, NODE
from ports.adapter import Given
from ports.ids import WorkerId
from ports.run_state import Change
from tests.support.homes import CLOCK, OTHER, Homes, open_homes, prompt
from tests.support.postgres import Clone, execute, fetch, shift_time

pytestmark = pytest.mark.anyio

WORKER: Final = WorkerId("wrk_retention")
RETENTION: Final = timedelta(days=30)


@pytest.fixture
async def homes() -> AsyncIterator[Homes]:
    with prompt():
        async with open_homes() as made:
            await made.entitle(ACME)
            yield made


async def days(database: Clone) -> set[str]:
    return {row["name"] for row in await fetch(database.superuser, "SELECT name FROM agentos.ao_event_partitions()")}


async def counted(database: Clone, table: str) -> int:
    [row] = await fetch(
        database.superuser, f"SELECT count(*) AS rows FROM agentos.{table} WHERE tenant_id = 'tnt_acme'"
    )
    rows: int = row["rows"]
    return rows


@pytest.mark.parametrize(
    "day_is_there", [True, False], ids=["of a day that the home has", "of a day that it never had"]
)
async def test_what_came_with_a_tenant_goes_when_its_time_is_up(homes: Homes, *, day_is_there: bool) -> None:
    run = await homes.api.create(ACME)
    await homes.api.runs.renew(NODE, WORKER, timedelta(hours=1))
    claimed = await homes.api.runs.claim(ACME, run, WORKER)
    await homes.api.runs.append(ACME, run, claimed.epoch, Change(steps=(intent(1), result(1, "x"))))
    await homes.api.runs.append(ACME, run, claimed.epoch, SUCCEEDED)
    if not day_is_there:
        for name in await days(homes.other):
            await execute(homes.other.superuser, f"DROP TABLE agentos.{name}")
    await homes.move(ACME.tenant, OTHER)
    assert await counted(homes.other, "run_events_default") == (
        0 if day_is_there else await counted(homes.other, "run_events")
    )
    for database in (homes.shared, homes.other):
        await shift_time(database, RETENTION + timedelta(days=2))

    async with maintenance.SPEC.open(PostgresConfig(dsn=homes.other.app), Given(clock=CLOCK)) as upkeep:
        while (await upkeep.upkeep(NODE, retention=RETENTION)).more:
            pass

    for table in ("runs", "steps", "run_events", "idempotency"):
        assert await counted(homes.other, table) == 0, table
    [row] = await fetch(
        homes.other.superuser, "SELECT 'run_events_' || to_char(agentos.ao_today(), 'YYYYMMDD') AS name"
    )
    assert row["name"] in await days(homes.other), "days are made ahead there"
