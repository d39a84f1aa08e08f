"""What is taken first is found by an index, however much waits behind it or is not to be taken."""

from typing import Any, Final

import asyncpg
import msgspec
import pytest

from adapters.postgres.engine import SERVER_SETTINGS
from conformance.people import ACME, GLOBEX
from tests.support.postgres import Clone, cloned, execute, fetch

pytestmark = pytest.mark.anyio

FEW: Final = 100
MANY: Final = 100_000
LEASE: Final = "SELECT * FROM ao_queue_lease_in_turn(1, interval '1 minute', 50)"
ORPHANS: Final = "SELECT * FROM ao_orphans_with_room(interval '1 second', 5, 50)"
ORPHANS_OF_ONE: Final = "SELECT * FROM ao_orphans_with_room(interval '1 second', 5, 1)"
"""Of tenants that may have one run running."""
NO_ORPHANS: Final = "SELECT * FROM ao_orphans_with_room(interval '100 years', 5, 50)"
"""Nothing is queued for so long: what a worker asks that has no slot for what is only queued."""

WITHOUT_ROOM: Final = f"""
SET search_path = agentos;
INSERT INTO workers (id, lease_until) VALUES ('wrk_x', now() + interval '1 hour') ON CONFLICT DO NOTHING;
INSERT INTO runs (tenant_id, namespace, agent_id, agent_version, agent_digest, requester, input, context,
                  status, worker_id, epoch, created_at, queued_at)
SELECT tenant, 'default', 'agt_x', 1, 'd', CAST(requester AS json), '""', '{{}}', status, worker, 1,
       now(), now() - interval '1 minute'
FROM (VALUES ('{ACME.tenant}', '{{}}', 'running', 'wrk_x'), ('{GLOBEX.tenant}', '"globex"', 'queued', NULL))
    AS v (tenant, requester, status, worker);
ANALYZE runs;
"""


async def wait_for(database: Clone, count: int) -> None:
    """So many queued runs of one tenant, with their messages; the most urgent are the newest."""
    await execute(
        database.superuser,
        f"""
        SET search_path = agentos;
        TRUNCATE queue_messages, queue_turns;
        DELETE FROM runs;
        INSERT INTO queue_turns (tenant_id, vtime, next_at, served_at) VALUES ('{ACME.tenant}', 0, now(), now());
        INSERT INTO queue_messages (tenant_id, namespace, requester, body, visible_at, priority)
        SELECT '{ACME.tenant}', '{ACME.namespace}', '{{}}', 'x', now(), n * 10 / ({count} + 1)
        FROM generate_series(1, {count}) n;
        INSERT INTO runs (tenant_id, id, namespace, agent_id, agent_version, agent_digest, requester, input, context,
                          status, created_at, queued_at, priority)
        SELECT '{ACME.tenant}', uuidv7(make_interval(secs => n - 1000000)), '{ACME.namespace}', 'agt_x', 1, 'd', '{{}}',
               '""', '{{}}', 'queued', now() - interval '1 hour', now() - interval '1 hour', n * 10 / ({count} + 1)
        FROM generate_series(1, {count}) n;
        """,
    )
    await execute(database.superuser, "VACUUM ANALYZE agentos.queue_messages, agentos.runs, agentos.queue_turns")


async def blocks(database: Clone, query: str) -> int:
    """How many blocks of tables and indexes it reads: its cost, however busy the machine is."""
    settings = {**SERVER_SETTINGS, "statement_timeout": "60000"}
    connection = await asyncpg.connect(database.superuser, server_settings=settings)
    try:
        for _ in range(3):  # the first ones plan, which reads the catalogue
            told = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}")
    finally:
        await connection.close()
    plan: dict[str, Any] = msgspec.json.decode(told)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize("query", [LEASE, ORPHANS, NO_ORPHANS], ids=["a lease", "orphans", "no orphans"])
async def test_taking_the_most_urgent_costs_the_same_whatever_waits_behind_it(query: str) -> None:
    async with cloned() as database:
        await wait_for(database, FEW)
        few = await blocks(database, query)
        await wait_for(database, MANY)
        many = await blocks(database, query)

    # Indexes are a level or two deeper.
    assert many < 2 * few + 20


async def test_a_look_for_orphans_costs_the_same_whatever_a_tenant_without_room_has_queued() -> None:
    """Nor does that hide the orphan of a tenant that has room, and whose run is the newest."""
    async with cloned() as database:
        found: list[int] = []
        for count in (2_000, MANY):
            await wait_for(database, count)
            await execute(database.superuser, WITHOUT_ROOM)
            found.append(await blocks(database, ORPHANS_OF_ONE))
            named = await fetch(database.superuser, ORPHANS_OF_ONE)
            assert [row["requester"] for row in named] == ['"globex"']

    few, many = found
    assert many < 2 * few + 20
