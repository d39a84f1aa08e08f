"""A page of a list of runs costs what is on it, whatever else its tenant has had."""

import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import msgspec
import pytest

from adapters.postgres import run_state
from adapters.postgres.engine import SERVER_SETTINGS, PostgresConfig
from adapters.postgres.statements import load
from adapters.system_clock import SystemClock
from conformance.people import ACME, GLOBEX
from ports.adapter import Given
from ports.context import AuthContext
from ports.ids import AgentId, uuid_of
from ports.run_state import Run, RunFilter, RunStatePort, RunStatus
from tests.support.postgres import Clone, cloned, execute

LIMIT: Final = 20
HISTORY: Final = 5_000
FILTERS: Final = {
    "nothing": RunFilter(),
    "a rare status": RunFilter(status="needs_operator"),
    "a common status": RunFilter(status="succeeded"),
    "a rare agent": RunFilter(agent_id=AgentId("agt_rare")),
    "a common agent": RunFilter(agent_id=AgentId("agt_common")),
    "a rare status of a common agent": RunFilter(status="failed", agent_id=AgentId("agt_common")),
    "a common status of a rare agent": RunFilter(status="succeeded", agent_id=AgentId("agt_rare")),
    "what there is none of": RunFilter(status="waiting", agent_id=AgentId("agt_rare")),
}
STATEMENTS: Final = load("run_state")


async def fill(database: Clone, first: int, count: int, *, agent: str, status: RunStatus, whose: AuthContext) -> None:
    """So many runs, one a second."""
    await execute(
        database.superuser,
        f"""
        INSERT INTO agentos.runs (tenant_id, id, namespace, agent_id, agent_version, agent_digest, requester, input,
                                  context, status, created_at, queued_at)
        SELECT '{whose.tenant}', uuidv7(make_interval(secs => n - 1000000)), '{whose.namespace}', '{agent}', 1, 'd',
               '{msgspec.json.encode(whose).decode()}', '""', '{{}}', '{status}', now(), now()
        FROM generate_series({first}, {first + count - 1}) n
        """,
    )


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def database() -> AsyncIterator[Clone]:
    """What is rare is oldest."""
    async with cloned() as made:
        await fill(made, 1, 5, agent="agt_rare", status="succeeded", whose=GLOBEX)
        await fill(made, 11, 5, agent="agt_rare", status="succeeded", whose=ACME)
        await fill(made, 21, 5, agent="agt_rare", status="needs_operator", whose=ACME)
        await fill(made, 31, 5, agent="agt_common", status="failed", whose=ACME)
        await fill(made, 1_000, HISTORY, agent="agt_common", status="succeeded", whose=ACME)
        await execute(made.superuser, "VACUUM ANALYZE agentos.runs")
        yield made


@pytest.fixture(scope="module")
async def runs(database: Clone) -> AsyncIterator[RunStatePort]:
    async with run_state.SPEC.open(PostgresConfig(dsn=database.app), Given(clock=SystemClock())) as opened:
        yield opened


@pytest.fixture(scope="module")
async def everything(runs: RunStatePort) -> list[Run]:
    return [run async for run in listed(runs, RunFilter(), limit=200)]


async def listed(runs: RunStatePort, where: RunFilter, *, limit: int) -> AsyncIterator[Run]:
    cursor = None
    while True:
        page = await runs.list_runs(ACME, where, limit=limit, cursor=cursor)
        for run in page.items:
            yield run
        if (cursor := page.next_cursor) is None:
            return


async def rows_read(database: Clone, whose: AuthContext, where: RunFilter, before: uuid.UUID, *, kept: bool) -> int:
    """What the list reads of the table and its indexes; `kept`: by the plan that a prepared statement ends up with."""
    statement = STATEMENTS[run_state._list_of(where)]
    given = {
        "tenant": whose.tenant, "namespace": whose.namespace, "before": before, "status": where.status,
        "agent_id": where.agent_id, "limit": LIMIT + 1,
    }  # fmt: skip
    values = ", ".join("NULL" if one is None else f"'{one}'" for one in statement.arguments(given))
    connection = await asyncpg.connect(database.app, server_settings=dict(SERVER_SETTINGS))
    try:
        await connection.execute(f"SET plan_cache_mode = force_{'generic' if kept else 'custom'}_plan")
        await connection.execute(f"PREPARE list AS {statement.sql}")
        await connection.execute(f"SET app.tenant_id = '{whose.tenant}'")
        told = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE list ({values})")
    finally:
        await connection.close()
    [plan] = msgspec.json.decode(told)
    return read(plan["Plan"])


def read(node: dict[str, Any]) -> int:
    own = 0
    if node["Node Type"].endswith("Scan") and "Relation Name" in node:
        passed_over = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        own = round((node["Actual Rows"] + passed_over) * node["Actual Loops"])
    return own + sum(read(child) for child in node.get("Plans", ()))


@pytest.mark.anyio
@pytest.mark.parametrize("kept", [False, True], ids=["planned anew", "kept plan"])
@pytest.mark.parametrize("where", FILTERS.values(), ids=FILTERS.keys())
async def test_a_page_of_runs_reads_about_what_is_on_it(
    database: Clone, everything: list[Run], where: RunFilter, *, kept: bool
) -> None:
    middle = uuid_of("run", everything[HISTORY // 2].id)
    assert middle is not None

    first = await rows_read(database, ACME, where, run_state._NEWEST, kept=kept)
    later = await rows_read(database, ACME, where, middle, kept=kept)

    # Of an agent, each status is looked up, and then the page.
    assert first <= 4 * (LIMIT + 1)
    assert later <= 4 * (LIMIT + 1)


@pytest.mark.anyio
@pytest.mark.parametrize("kept", [False, True], ids=["planned anew", "kept plan"])
async def test_a_tenant_with_few_runs_does_not_read_the_others(database: Clone, *, kept: bool) -> None:
    assert await rows_read(database, GLOBEX, RunFilter(), run_state._NEWEST, kept=kept) == 5


@pytest.mark.anyio
@pytest.mark.parametrize("where", FILTERS.values(), ids=FILTERS.keys())
async def test_the_pages_are_what_the_filter_says_newest_first(
    runs: RunStatePort, everything: list[Run], where: RunFilter
) -> None:
    found = [run.id async for run in listed(runs, where, limit=150)]

    assert found == [
        run.id
        for run in everything
        if where.status in {None, run.status} and where.agent_id in {None, run.agent_id}
    ]  # fmt: skip
