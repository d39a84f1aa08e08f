"""Fairness over PostgreSQL, with production's worker: limits exact, turns kept, nobody forgotten, leases cheap."""

import itertools
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final, cast

import anyio
import anyio.lowlevel
import asyncpg
import msgspec
import pytest

from adapters.postgres.engine import SERVER_SETTINGS, PostgresConfig, open_database
from adapters.postgres.statements import load
from conformance.clock import ManualClock
from conformance.people import ACME, GLOBEX, NODE
from ports.context import AuthContext
from ports.errors import ResourceExhausted
from ports.ids import RunId, WorkerId, uuid_of
from ports.priority import DEFAULT
from ports.queue import Delivery, QueuePort
from ports.tenant import Entitlements
from stack_a.slots import RESERVED_FROM
from tests.faults.reconcile import record
from tests.support.postgres import Clone, execute, fetch, shift_time
from tests.support.worker_node import Node, open_node

PATIENCE_S: Final = 60
LEASE: Final = timedelta(minutes=1)


class OneLook:
    """A queue that, after the first, answers no look for anybody's messages; those for idle tenants' it does."""

    def __init__(self, queue: QueuePort) -> None:
        self._queue = queue
        self._looked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def lease(self, auth: AuthContext, *, idle_only: bool = False, **asked: Any) -> list[Delivery]:
        if not idle_only:
            if self._looked:
                await anyio.sleep_forever()
            self._looked = True
        return await self._queue.lease(auth, idle_only=idle_only, **asked)


@pytest.mark.anyio
class TestFairness:
    @pytest.fixture
    async def node(self) -> AsyncIterator[Node]:
        async with open_node() as node:
            yield node

    async def test_never_more_runs_are_active_than_the_tenant_may_have_and_all_end(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements(max_active_runs=5))
        node.gate.set()

        with anyio.fail_after(PATIENCE_S):
            async with node.worker(concurrency=8), node.worker(concurrency=8):
                runs = [await node.create(ACME) for _ in range(40)]
                for run in runs:
                    await node.ended(ACME, run)

        # By the store's own account as well: starts and ends in the order they were committed.
        most = max(node.most[ACME.tenant], await most_active(node.database))
        found = record("R9", {"max_active": most}, limits={"max_active": 5}, runs=len(runs))
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        assert found.ok, found
        assert node.most[ACME.tenant] >= 1

    async def test_a_full_tenant_keeps_no_slot_from_others_and_goes_on_when_a_run_of_it_ends(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements(max_active_runs=2))
        await node.entitle(GLOBEX, Entitlements())

        with anyio.fail_after(PATIENCE_S):
            async with node.worker(concurrency=4):
                blocked = [await node.create(ACME) for _ in range(10)]
                await node.until_inside(ACME, 2)
                others = [await node.create(GLOBEX) for _ in range(2)]
                await node.until_inside(GLOBEX, 2)
                node.gate.set()
                for auth, run in [(ACME, one) for one in blocked] + [(GLOBEX, one) for one in others]:
                    await node.ended(auth, run)

        assert node.most == {ACME.tenant: 2, GLOBEX.tenant: 2}
        # Nobody went round in circles meanwhile: every hint was leased once or twice.
        rows = await fetch(node.database.admin, "SELECT max(epoch) AS epochs FROM runs")
        assert rows[0]["epochs"] == 1

    async def test_a_parked_tenants_messages_are_leased_at_once_when_a_run_ends(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements(max_active_runs=1))
        worker = WorkerId("wrk_one")
        await node.runs.renew(NODE, worker, LEASE)
        first, _ = await node.create(ACME), await node.create(ACME)
        [hint] = await node.queue.lease(NODE, limit=1, duration=LEASE)
        await node.runs.claim(ACME, first, worker)
        await node.queue.ack(NODE, hint)
        assert await node.queue.lease(NODE, limit=8, duration=LEASE) == []

        await node.runs.release(ACME, first, 1)

        assert len(await node.queue.lease(NODE, limit=8, duration=LEASE)) == 1

    async def test_a_slot_is_kept_for_a_tenant_that_has_nothing_running(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Nor does a clock that stands still renew the lease: nothing wakes the worker but what it does itself.
        monkeypatch.setattr("stack_a.worker.LEASE_WAIT", timedelta(hours=1))
        await node.entitle(ACME, Entitlements())
        await node.entitle(GLOBEX, Entitlements())
        for _ in range(10):
            await node.create(ACME)

        with anyio.fail_after(PATIENCE_S):
            async with node.worker(concurrency=RESERVED_FROM, clock=ManualClock()):
                await node.until_inside(ACME, RESERVED_FROM - 1)
                await node.create(GLOBEX)
                await node.until_inside(GLOBEX, 1)
                assert node.inside[ACME.tenant] == RESERVED_FROM - 1
                node.gate.set()

    async def test_a_newcomer_does_not_wait_for_a_look_that_fills_the_other_slots(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements())
        await node.entitle(GLOBEX, Entitlements())
        for _ in range(RESERVED_FROM // 2):
            await node.create(ACME)
        node.queue = cast("QueuePort", OneLook(node.queue))

        with anyio.fail_after(PATIENCE_S):
            # A clock that stands still: no sweep comes to its help.
            async with node.worker(concurrency=RESERVED_FROM, clock=ManualClock()):
                await node.until_inside(ACME, RESERVED_FROM // 2)
                await node.create(GLOBEX)
                await node.until_inside(GLOBEX, 1)
                node.gate.set()

    async def test_a_tenant_with_a_run_running_is_not_idle(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements())
        worker = WorkerId("wrk_one")
        await node.runs.renew(NODE, worker, LEASE)
        first, _ = await node.create(ACME), await node.create(ACME)
        [hint] = await node.queue.lease(NODE, limit=1, duration=LEASE)
        await node.runs.claim(ACME, first, worker)
        await node.queue.ack(NODE, hint)

        running = await node.queue.lease(NODE, limit=8, duration=LEASE, idle_only=True)
        await node.runs.release(ACME, first, 1)
        idle = await node.queue.lease(NODE, limit=8, duration=LEASE, idle_only=True)

        assert running == []
        assert len(idle) == 1

    async def test_of_two_who_look_at_once_for_idle_tenants_one_gets_the_first_and_the_other_nothing(
        self, node: Node
    ) -> None:
        await node.entitle(ACME, Entitlements())
        for _ in range(2):
            await node.create(ACME)
        look = "SELECT body FROM ao_queue_lease_idle(1, interval '1 minute', 50)"
        settings = {"search_path": "agentos"}
        one = await asyncpg.connect(node.database.app, server_settings=settings)
        other = await asyncpg.connect(node.database.app, server_settings=settings)
        try:
            async with one.transaction():
                first = await one.fetch(look)
                second = await other.fetch(look)
            third = await other.fetch(look)
        finally:
            await one.close()
            await other.close()

        assert [len(first), len(second), len(third)] == [1, 0, 0]

    async def test_a_look_for_idle_tenants_looks_at_few_messages(self, node: Node) -> None:
        blocks = await blocks_of_a_lease(node.database, tenants=300, messages=30_000, look="idle")

        # Each of a tenant's messages lies in a block of its own, and of one tenant alone they are looked at.
        assert blocks <= 256

    async def test_a_backlog_of_ten_thousand_delays_another_tenants_run_by_a_few(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements())
        await node.entitle(GLOBEX, Entitlements())
        await backlog(node.database, ACME, 10_000)
        node.gate.set()
        ahead: list[int] = []

        with anyio.fail_after(PATIENCE_S):
            async with node.worker(concurrency=4):
                for _ in range(10):
                    run = await node.create(GLOBEX)
                    await node.ended(GLOBEX, run)
                    ahead.append(await started_meanwhile(node.database, ACME, run))

        # All four slots may just have been taken, and the next batch leased.
        assert max(ahead) <= 12

    async def test_what_is_done_for_each_run_costs_the_same_beside_a_large_backlog(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements(max_queued_runs=10_000))
        worker = WorkerId("wrk_one")
        await node.runs.renew(NODE, worker, LEASE)
        held = await node.create(ACME)
        await node.runs.claim(ACME, held, worker)  # which makes places
        [hint] = await node.queue.lease(NODE, limit=1, duration=LEASE)
        run = await node.create(ACME)
        whose = {
            "place": 0,
            "tenant": ACME.tenant,
            "namespace": ACME.namespace,
            "correlation_id": "",
            "traceparent": "",
        }
        claim = {**whose, "run": str(uuid_of("run", run)), "worker": worker}
        nothing = {"ends": False, "event_count": 0, "intents": [], "results": [], "events": []}
        free = {"prompt_tokens": 0, "completion_tokens": 0, "cost_nanousd": 0, "usage_estimated": False}
        append = {**whose, **nothing, **free, "run": str(uuid_of("run", held)), "epoch": 1}
        ack = {**whose, "message": str(uuid_of("msg", hint.id)), "lease": str(uuid_of("lse", hint.lease))}
        # Statements are planned with what was known of the tables once: as in a process that began with few runs.
        await backlog(node.database, ACME, 100)
        await execute(node.database.superuser, "VACUUM ANALYZE agentos.queue_messages")
        few = {
            "claim": await blocks_of(node.database, "run_claim", "claim", claim),
            "append": await blocks_of(node.database, "run_append", "append", append),
            "ack": await blocks_of(node.database, "queue", "ack", ack),
        }
        await backlog(node.database, ACME, 5_000)

        many = {
            "claim": await blocks_of(node.database, "run_claim", "claim", claim),
            "append": await blocks_of(node.database, "run_append", "append", append),
            "ack": await blocks_of(node.database, "queue", "ack", ack),
        }

        assert all(many[name] <= 2 * few[name] for name in few), (few, many)

    async def test_one_tenants_racing_creations_get_all_the_room_there_is_and_no_more(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements(runs_per_minute=240, max_queued_runs=333))
        refused: list[ResourceExhausted] = []

        async def create() -> None:
            for _ in range(20):
                try:
                    await node.create(ACME)
                except ResourceExhausted as refusal:
                    refused.append(refusal)

        began = await now(node.database)
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                for _ in range(15):
                    group.start_soon(create)
        took = await now(node.database) - began

        accepted = 300 - len(refused)
        assert {refusal.code for refusal in refused} == {"rate_limited"}
        assert 240 <= accepted <= 240 + took.total_seconds() * 4 + 1

    async def test_the_count_of_queued_runs_is_right_whatever_became_of_them(self, node: Node) -> None:
        await node.entitle(ACME, Entitlements())
        node.gate.set()

        with anyio.fail_after(PATIENCE_S):
            runs = [await node.create(ACME) for _ in range(20)]
            for run in runs[:5]:
                await node.runs.cancel(ACME, run, reason="x")
            async with node.worker(concurrency=4):
                for run in runs[5:15]:
                    await node.ended(ACME, run)
            await anyio.lowlevel.checkpoint()

        # In one look: a claim that was under way when the worker left may still be committed.
        [row] = await fetch(
            node.database.admin,
            "SELECT (SELECT sum(queued) FROM run_backlogs) AS counted, "
            "(SELECT count(*) FROM runs WHERE status = 'queued') AS queued, "
            "(SELECT count(*) FROM run_slots WHERE run_id IS NOT NULL) AS placed, "
            "(SELECT count(*) FROM runs WHERE status = 'running') AS running",
        )
        assert (row["counted"], row["placed"]) == (row["queued"], row["running"])

    async def test_a_tenant_does_not_fall_asleep_while_a_message_of_it_is_on_its_way(self, node: Node) -> None:
        await node.queue.enqueue(ACME, b"first")
        [first] = await node.queue.lease(NODE, limit=1, duration=LEASE)
        await node.queue.ack(NODE, first)
        await shift_time(node.database, timedelta(seconds=1))
        second = {
            "place": 0,
            "tenant": ACME.tenant,
            "namespace": ACME.namespace,
            "requester": msgspec.json.encode(ACME).decode(),
            "body": b64encode(b"second").decode(),
            "not_before": None,
            "priority": DEFAULT,
        }
        asked = {"asks": msgspec.json.encode([second]).decode()}

        async with (
            open_database(PostgresConfig(dsn=node.database.app)) as database,
            database.transaction(ACME.tenant) as enqueueing,
        ):
            await enqueueing.rows(load("queue")["enqueue"], asked)
            before = await node.queue.lease(NODE, limit=1, duration=LEASE)

        [after] = await node.queue.lease(NODE, limit=1, duration=LEASE)
        assert (before, after.body) == ([], b"second")

    async def test_no_message_is_forgotten_while_tenants_fall_asleep_and_wake(self, node: Node) -> None:
        """Enqueues race with leases that put their tenants to sleep: time jumps, so that they sleep at every look."""
        people = (ACME, GLOBEX, msgspec.structs.replace(ACME, tenant=NODE.tenant))
        taken: set[bytes] = set()
        expected = 3 * 100

        async def enqueue(auth: AuthContext, bodies: range) -> None:
            for n in bodies:
                await node.queue.enqueue(auth, f"{auth.tenant}-{n}".encode())

        async def lease() -> None:
            while len(taken) < expected:
                for one in await node.queue.lease(NODE, limit=3, duration=10_000 * LEASE):
                    taken.add(one.body)
                    await node.queue.ack(NODE, one)

        async def pass_time() -> None:
            shift = timedelta(0)
            while len(taken) < expected:
                shift += timedelta(milliseconds=200)
                await shift_time(node.database, shift)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(pass_time)
                for _ in range(3):
                    group.start_soon(lease)
                for auth, who in itertools.product(people, range(4)):
                    group.start_soon(enqueue, auth, range(25 * who, 25 * (who + 1)))

        assert len(taken) == expected
        assert (await node.queue.depth(NODE)).ready == 0

    async def test_ten_thousand_tenants_that_are_awake_for_nothing_do_not_hide_one_that_has_a_message(
        self, node: Node
    ) -> None:
        await execute(
            node.database.superuser,
            """
            INSERT INTO agentos.queue_turns (tenant_id, vtime, next_at, served_at)
            SELECT 'tnt_idle' || n, 0, now(), now() - interval '1 hour' FROM generate_series(1, 10000) n;
            SELECT setval('agentos.queue_vtime', 1000000);
            """,
        )
        await node.queue.enqueue(ACME, b"work")
        found: list[bytes] = []

        with anyio.fail_after(PATIENCE_S):
            calls = 0
            while not found:
                calls += 1
                found = [one.body for one in await node.queue.lease(NODE, limit=1, duration=LEASE)]

        [awake] = await fetch(
            node.database.superuser, "SELECT count(*) AS n FROM queue_turns WHERE next_at < 'infinity' AND tenant_id <> $1",
            ACME.tenant,
        )  # fmt: skip
        # Each call sends some hundreds to sleep and keeps that; none gives up with nothing done.
        assert found == [b"work"]
        assert calls <= 40
        assert awake["n"] == 0

    async def test_a_lease_reads_as_much_with_ten_thousand_tenants_as_with_one(self, node: Node) -> None:
        alone = await blocks_of_a_lease(node.database, tenants=1, messages=100)
        among_many = await blocks_of_a_lease(node.database, tenants=10_000, messages=100_000)

        assert among_many <= 2 * alone


async def now(database: Clone) -> Any:
    [row] = await fetch(database.admin, "SELECT ao_now() AS now")
    return row["now"]


async def most_active(database: Clone) -> int:
    """The most runs that were between `run.started` and their end at a moment."""
    [row] = await fetch(
        database.admin,
        """
        SELECT max(active) AS most FROM (
            SELECT sum(change) OVER (ORDER BY at, change) AS active FROM (
                SELECT started_at AS at, 1 AS change FROM runs UNION ALL SELECT finished_at, -1 FROM runs
            ) changes
        ) sums
        """,
    )
    return int(row["most"])


async def started_meanwhile(database: Clone, auth: AuthContext, run: RunId) -> int:
    """Runs of `auth` that started between the creation and the start of `run`."""
    [row] = await fetch(
        database.admin,
        """
        SELECT count(*) AS runs FROM runs a, runs b
        WHERE a.tenant_id = $1 AND b.id = $2::text::uuid AND a.started_at BETWEEN b.created_at AND b.started_at
        """,
        auth.tenant,
        run.removeprefix("run_"),
    )
    return int(row["runs"])


async def backlog(database: Clone, auth: AuthContext, size: int) -> None:
    """Queue so many runs of `auth` with their hints, in one statement instead of so many requests."""
    requester = msgspec.json.encode(auth).decode()
    await execute(
        database.superuser,
        f"""
        SET search_path = agentos;
        WITH made AS (
            INSERT INTO runs (tenant_id, namespace, agent_id, agent_version, agent_digest, requester, input, context,
                              created_at, queued_at, last_sequence)
            SELECT a.tenant_id, 'default', a.id, a.version, a.digest, '{requester}', '"x"', '{{}}', now(), now(), 1
            FROM agents a, generate_series(1, {size}) WHERE a.tenant_id = '{auth.tenant}'
            RETURNING id
        ),
        told AS (
            INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
            SELECT '{auth.tenant}', id, 1, 'run.created', now(), '{{}}', '', '' FROM made
        )
        INSERT INTO queue_messages (tenant_id, namespace, requester, body, visible_at)
        SELECT '{auth.tenant}', 'default', '{requester}',
               convert_to('{{"run_id":"run_' || replace(id::text, '-', '') || '"}}', 'UTF8'), now()
        FROM made;
        INSERT INTO queue_turns (tenant_id, vtime, next_at, served_at) VALUES ('{auth.tenant}', 0, now(), now())
        ON CONFLICT (tenant_id) DO UPDATE SET next_at = now();
        """,
    )


async def blocks_of(database: Clone, file: str, name: str, ask: dict[str, Any]) -> int:
    """How many blocks a statement of batches reads for one ask, of ACME's, that it finds. It is rolled back."""
    statement = load(file)[name]
    asks = msgspec.json.encode([ask]).decode()
    arguments = ", ".join(f"'{asks}'" if one == "asks" else "50" for one in statement.names)
    settings = {**SERVER_SETTINGS, "plan_cache_mode": "force_generic_plan"}
    connection = await asyncpg.connect(database.app, server_settings=settings)
    try:
        await connection.execute(f"PREPARE asked AS {statement.sql}")
        for _ in range(3):  # the first ones plan, which reads the catalogue
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(f"SET LOCAL app.tenant_id = '{ACME.tenant}'")
            told = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked({arguments})")
            await transaction.rollback()
    finally:
        await connection.close()
    [plan] = msgspec.json.decode(told)
    assert plan["Plan"]["Actual Rows"] == 1
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


async def blocks_of_a_lease(database: Clone, *, tenants: int, messages: int, look: str = "in_turn") -> int:
    """How many blocks of tables and indexes a lease of one message reads: its cost, however busy the machine is."""
    await execute(
        database.superuser,
        f"""
        SET search_path = agentos;
        DELETE FROM queue_messages; DELETE FROM queue_turns;
        INSERT INTO queue_turns (tenant_id, vtime, next_at, served_at)
        SELECT 'tnt_' || n, 0, now(), now() FROM generate_series(1, {tenants}) n;
        INSERT INTO queue_messages (tenant_id, namespace, requester, body, visible_at)
        SELECT 'tnt_' || 1 + n % {tenants}, 'default', '{{}}', 'x', now() FROM generate_series(1, {messages}) n;
        """,
    )
    await execute(database.superuser, "VACUUM ANALYZE agentos.queue_messages, agentos.queue_turns")
    lease = f"SELECT * FROM ao_queue_lease_{look}(1, interval '1 minute', 50)"
    connection = await asyncpg.connect(database.superuser, server_settings={"search_path": "agentos"})
    try:
        for _ in range(3):  # the first ones plan, which reads the catalogue
            told = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {lease}")
    finally:
        await connection.close()
    [plan] = msgspec.json.decode(told)
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])
