"""Calls that come together are committed together, and nobody is the worse for the company."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from msgspec.structs import replace

from adapters.postgres.blobs import Outgoing, keep_all
from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.queue import PostgresQueue
from adapters.postgres.rows import Row
from adapters.postgres.run_state import PostgresRunState
from adapters.postgres.statements import Statement, statement
from adapters.postgres.together import LANES, Apart, Together
from conformance.factories import idempotency, new_run
from conformance.people import ACME, GLOBEX, NODE
from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, Unavailable
from ports.ids import TenantId, WorkerId
from ports.run_state import Change, NewEvent, StepIntent, StepResult
from tests.support.postgres import Clone, cloned, fetch

PATIENCE_S = 30
OTHER = TenantId("tnt_other")
WORKER = WorkerId("wrk_together")
SEEN = statement("SELECT tenant_id FROM tenants ORDER BY tenant_id")
INSERT = statement("INSERT INTO tenants (tenant_id, name, entitlements) VALUES (:tenant, 'x', '{}')")
LIMITED = statement("UPDATE tenants SET entitlements = '{\"runs_per_minute\": 1}' WHERE tenant_id = :tenant")
REMEMBER = statement(
    "INSERT INTO memory_items (tenant_id, namespace, key, value, metadata, words, updated_at) "
    "VALUES (:tenant, 'default', 'k', '1', '{}', 0, ao_now())"
)
REMEMBERED = statement("SELECT tenant_id FROM memory_items")
BROKEN = statement("SELECT 1 / 0")
SLOW = statement("SELECT pg_sleep(10)")

pytestmark = pytest.mark.anyio


class Asked:
    """What is done for each ask: tenants seen, or trouble."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = anyio.Event()

    async def __call__(self, transaction: Transaction, asks: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(asks))
        if "first" in asks:
            await self.gate.wait()
        if "broken" in asks:
            await transaction.rows(BROKEN, {})
        if "slow" in asks:
            await transaction.rows(SLOW, {})
        if "apart" in asks:
            raise Conflict("in the way") if len(asks) == 1 else Apart([asks.index("apart")])
        if "locked" in asks:
            raise Unavailable("taken back", details={"rolled_back": True})
        if "refused with all" in asks:
            raise Conflict("one of them is wrong")
        seen = ",".join(row["tenant_id"] for row in await transaction.rows(SEEN, {}))
        return [Conflict("this one alone") if ask == "refused" else seen for ask in asks]


@pytest.fixture
async def clone() -> AsyncIterator[Clone]:
    async with cloned() as clone:
        yield clone


@pytest.fixture
async def database(clone: Clone) -> AsyncIterator[Database]:
    async with open_database(PostgresConfig(dsn=clone.app)) as database:
        for tenant in (ACME.tenant, GLOBEX.tenant):
            await fetch(clone.admin, INSERT.sql, tenant)
        yield database


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except AgentOSError as error:
        return error.code


async def occupy(group: TaskGroup, together: Together[str, str], asked: Asked) -> None:
    """Every lane, until the gate opens."""
    for lane in range(LANES):
        group.start_soon(outcome, together(ACME.tenant, "first", order=""))
        while len(asked.batches) == lane:
            await anyio.lowlevel.checkpoint()


async def all_at_once(together: Together[str, str], asked: Asked, *asks: tuple[TenantId, str]) -> list[object]:
    """The outcomes of `asks`, which come while every lane is busy."""
    outcomes: dict[int, object] = {}

    async def call(place: int, tenant: TenantId, ask: str) -> None:
        outcomes[place] = await outcome(together(tenant, ask, order=ask))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            await occupy(group, together, asked)
            for place, (tenant, ask) in enumerate(asks):
                group.start_soon(call, place, tenant, ask)
            await anyio.lowlevel.checkpoint()
            asked.gate.set()
    return [outcomes[place] for place in range(len(asks))]


async def test_what_comes_while_the_lanes_are_busy_goes_in_one_batch(database: Database) -> None:
    asked = Asked()
    together = Together(database, asked)

    await all_at_once(together, asked, *[(ACME.tenant, f"ask {n}") for n in range(10)])

    assert [len(batch) for batch in asked.batches] == [1] * LANES + [10]


async def test_a_batch_sees_the_tenants_that_are_in_it(clone: Clone, database: Database) -> None:
    await fetch(clone.admin, INSERT.sql, OTHER)
    asked = Asked()
    together = Together(database, asked)

    seen = await all_at_once(together, asked, (GLOBEX.tenant, "b"), (ACME.tenant, "a"), (GLOBEX.tenant, "c"))

    assert seen == [f"{ACME.tenant},{GLOBEX.tenant}"] * 3
    assert await together(OTHER, "d", order="d") == OTHER


async def test_a_batch_of_several_sees_nothing_where_no_batch_belongs(database: Database) -> None:
    """Of tables whose policies admit one tenant, it sees none, not all."""
    for tenant in (ACME.tenant, GLOBEX.tenant):
        async with database.transaction(tenant) as transaction:
            await transaction.rows(REMEMBER, {"tenant": tenant})

    async with database.transaction(ACME.tenant) as transaction:
        alone = await transaction.rows(REMEMBERED, {})
    async with database.transaction(ACME.tenant, GLOBEX.tenant) as transaction:
        together = await transaction.rows(REMEMBERED, {})

    assert ([row["tenant_id"] for row in alone], list(together)) == ([ACME.tenant], [])


@pytest.mark.parametrize(
    ("trouble", "code"), [("refused", "conflict"), ("refused with all", "conflict"), ("broken", "internal")]
)
async def test_what_is_wrong_with_one_is_told_to_that_one(database: Database, trouble: str, code: str) -> None:
    asked = Asked()
    together = Together(database, asked)

    outcomes = await all_at_once(
        together, asked, (ACME.tenant, "a"), (ACME.tenant, trouble), (GLOBEX.tenant, "z"), (TenantId("tnt_'"), "odd")
    )

    # That one is made by itself then, or not.
    assert outcomes[1] == code
    assert outcomes[3] == "invalid_request"
    assert all(tenant in str(seen) for tenant, seen in zip((ACME.tenant, GLOBEX.tenant), outcomes[::2], strict=True))


async def test_who_is_in_the_way_of_others_is_made_apart_and_they_stay_together(database: Database) -> None:
    asked = Asked()
    together = Together(database, asked)

    outcomes = await all_at_once(together, asked, (ACME.tenant, "a"), (ACME.tenant, "apart"), (GLOBEX.tenant, "b"))

    assert outcomes[1] == "conflict"
    assert asked.batches[LANES:] == [["a", "apart", "b"], ["a", "b"], ["apart"]]


async def test_a_lock_that_one_call_waits_for_in_vain_is_told_to_that_call(database: Database) -> None:
    asked = Asked()
    together = Together(database, asked)

    outcomes = await all_at_once(together, asked, (ACME.tenant, "a"), (ACME.tenant, "locked"), (GLOBEX.tenant, "b"))

    assert outcomes == [ACME.tenant, "unavailable", GLOBEX.tenant]


async def test_a_tenant_at_its_limit_takes_no_creation_of_another_along(clone: Clone, database: Database) -> None:
    runs = PostgresRunState(database, for_leases=database)
    await fetch(clone.admin, LIMITED.sql, ACME.tenant)
    outcomes: dict[str, list[object]] = {ACME.tenant: [], GLOBEX.tenant: []}

    async def create(auth: AuthContext) -> None:
        created = runs.create(auth, replace(new_run(), idempotency=idempotency()))
        outcomes[auth.tenant].append(await outcome(created))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(create, (ACME, GLOBEX)[number % 2])

    assert outcomes[ACME.tenant].count("rate_limited") == 9
    assert not any(isinstance(found, str) for found in outcomes[GLOBEX.tenant])


async def test_who_leaves_is_not_served_and_takes_nobody_along(database: Database) -> None:
    asked = Asked()
    together = Together(database, asked)
    left = anyio.CancelScope()

    async def leave() -> None:
        with left:
            await together(ACME.tenant, "left", order="left")

    async with anyio.create_task_group() as group:
        await occupy(group, together, asked)
        group.start_soon(leave)
        await anyio.lowlevel.checkpoint()
        left.cancel()
        await anyio.lowlevel.checkpoint()
        asked.gate.set()
        assert await together(ACME.tenant, "stayed", order="stayed") == ACME.tenant

    assert "left" not in [ask for batch in asked.batches for ask in batch]


async def test_no_call_waits_longer_than_it_may_whoever_is_before_it(database: Database) -> None:
    together = Together(database, Asked())
    slow = [(ACME.tenant, "slow")] * LANES

    with anyio.fail_after(PATIENCE_S):
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for tenant, ask in slow:
                group.start_soon(outcome, together(tenant, ask, order=ask))
                await anyio.lowlevel.checkpoint()
            with pytest.raises(Unavailable):
                await together(ACME.tenant, "behind", order="behind")
            waited = anyio.current_time() - began

    assert waited < 6


async def test_acknowledging_a_message_twice_at_once_is_as_good_as_once(database: Database) -> None:
    queue = PostgresQueue(database, unflushed=database)
    for body in (b"1", b"2", b"3"):
        await queue.enqueue(ACME, body)
    first, *others = await queue.lease(NODE, limit=3, duration=timedelta(minutes=1))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            # The others take the lanes, so that the two are in one batch.
            for delivery in (*others, first, first):
                group.start_soon(queue.ack, NODE, delivery)

    assert (await queue.depth(NODE)).leased == 0


async def test_bodies_of_several_runs_are_kept_in_one_order() -> None:
    """Whatever order the runs are in: two batches with the same bodies must not wait for each other."""
    kept: list[bytes] = []

    class Recording(Transaction):
        def __init__(self) -> None: ...

        async def rows(self, _statement: Statement, parameters: Mapping[str, Any]) -> Sequence[Row]:
            kept.append(parameters["sha256"])
            return ()

    outgoing = [(ACME.tenant, uuid.uuid4(), Outgoing()) for _ in range(4)]
    for number, (_, _, one) in enumerate(outgoing):
        for other in range(3):
            one.packed(f"{number * other}" * 70_000)

    await keep_all(Recording(), outgoing)

    assert kept == sorted(kept)
    assert len(kept) > len(set(kept)) > 1


async def test_a_burst_of_whole_runs_costs_fewer_commits_than_runs(clone: Clone, database: Database) -> None:
    """The real statements, of two tenants at once; the server counts."""
    runs = PostgresRunState(database, for_leases=database)
    await runs.renew(NODE, WORKER, timedelta(minutes=1))

    async def one(number: int) -> None:
        auth = (ACME, GLOBEX)[number % 2]
        run = (await runs.create(auth, replace(new_run(), idempotency=idempotency(key=f"k-{number}")))).run
        claimed = await runs.claim(auth, run.id, WORKER)
        intent = StepIntent(n=1, kind="model", name="m", effect="idempotent", input={"n": number}, input_digest="d")
        steps = (intent, StepResult(n=1, status="completed", output={"n": number}))
        end = NewEvent(type="run.completed", data={"number": number})
        change = Change(steps=steps, status="succeeded", output=number, events=(end,))
        await runs.append(auth, run.id, claimed.epoch, change)
        assert (await runs.load(auth, run.id)).output == number
        assert [step.output for step in await runs.steps(auth, run.id)] == [{"n": number}]

    before = await writes(clone)
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(one, number)

    assert await writes(clone) - before < 60


async def writes(clone: Clone) -> int:
    """Transactions that wrote, so far."""
    [row] = await fetch(clone.admin, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS n")
    count: int = row["n"]
    return count
