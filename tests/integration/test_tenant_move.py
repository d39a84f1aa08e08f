"""A tenant moves to a database of its own: everything arrives as it was, and the old home refuses it from then on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import suppress
from datetime import timedelta

import anyio
import asyncpg
import pytest
from msgspec.structs import replace

from adapters.postgres.engine import PostgresConfig, open_database
from adapters.postgres.errors import Moved, translate
from adapters.postgres.move import abort_move, clear_remains, move_tenant
from adapters.postgres.move_job import Step
from adapters.postgres.move_tables import SHARED, TABLES
from adapters.postgres.statements import statement
from conformance.factories import MEGABYTE, SUCCEEDED, intent, new_run, result, telling
from conformance.people import ACME, GLOBEX, NODE, PLATFORM
from ports.errors import Conflict, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from ports.ids import RunId, TenantId, WorkerId
from ports.run_state import Change, RunFilter
from ports.tenant import Entitlements
from tests.support.catalogue_lint import RULES
from tests.support.homes import (
    AGENT,
    OTHER,
    Homes,
    Killed,
    Ports,
    killed_at,
    open_homes,
    open_ports,
    prompt,
    silent,
    waits_for_a_lock,
)
from tests.support.postgres import Clone, execute, fetch, shift_time

pytestmark = pytest.mark.anyio

WORKER = WorkerId("wrk_move")
HOUR = timedelta(hours=1)
EVERYTHING = RunFilter()


@pytest.fixture
async def homes() -> AsyncIterator[Homes]:
    async with open_homes() as made:
        for auth in (ACME, GLOBEX):
            await made.entitle(auth)
        yield made


@pytest.fixture
def asks_each_time() -> Iterator[None]:
    with prompt():
        yield


async def live_a_little(ports: Ports) -> list[RunId]:
    """Runs in several states, with journals, large bodies, memory and messages."""
    made: list[RunId] = []
    await ports.runs.renew(NODE, WORKER, HOUR)
    for auth in (ACME, GLOBEX):
        for _ in range(3):
            made.append(run := await ports.create(auth))
            claimed = await ports.runs.claim(auth, run, WORKER)
            steps = Change(steps=(intent(1), result(1, MEGABYTE)), events=telling("step.started").events)
            await ports.runs.append(auth, run, claimed.epoch, steps)
        await ports.runs.append(auth, made[-1], 1, SUCCEEDED)
        made.append(await ports.create(auth))
        await ports.memory.put(auth, "colour", {"is": "blue \x01 \u2028"})
    return made


async def rows_of(clone: Clone, tenant: str) -> dict[str, int]:
    return {
        table.name: (await fetch(clone.admin, f"SELECT count(*) FROM {table.name} WHERE tenant_id = $1", tenant))[0][0]
        for table in TABLES
    }


async def standing(clone: Clone) -> list[tuple[str, str]]:
    rows = await fetch(clone.admin, "SELECT tenant, state FROM tenant_moves ORDER BY 1")
    return [(row["tenant"], row["state"]) for row in rows]


async def guards(clone: Clone) -> int:
    [row] = await fetch(clone.admin, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'ao_move_%' AND tgparentid = 0")
    count: int = row[0]
    return count


async def test_everything_arrives_and_is_read_where_it_lives(homes: Homes) -> None:
    made = await live_a_little(homes.api)
    before = [
        (
            await homes.api.runs.load(ACME, run),
            await homes.api.runs.steps(ACME, run),
            await homes.api.events.read(ACME, run),
        )
        for run in made[:4]
    ]
    counted = await rows_of(homes.shared, ACME.tenant)

    report = await homes.move(ACME.tenant, OTHER)

    assert (report.to, report.attempts) == (OTHER, 1)
    assert report.rows == counted
    assert await rows_of(homes.other, ACME.tenant) == counted
    after = [
        (
            await homes.api.runs.load(ACME, run),
            await homes.api.runs.steps(ACME, run),
            await homes.api.events.read(ACME, run),
        )
        for run in made[:4]
    ]
    assert after == before
    item = await homes.api.memory.get(ACME, "colour")
    assert item is not None
    assert item.value == {"is": "blue \x01 \u2028"}
    new = await homes.api.create(ACME)
    assert [
        row["tenant_id"] for row in await fetch(homes.other.admin, "SELECT tenant_id FROM runs WHERE status = 'queued'")
    ]
    with pytest.raises(NotFound):
        async with open_ports(PostgresConfig(dsn=homes.shared.app)) as old:
            await old.runs.load(ACME, new)
    assert len((await homes.api.runs.list_runs(GLOBEX, EVERYTHING, limit=50)).items) == 4


async def test_nobody_writes_to_the_old_home_after_the_switch(homes: Homes) -> None:
    """A process that knows of no homes, or too late: the database itself refuses, whatever is written."""
    made = await live_a_little(homes.api)
    async with open_ports(PostgresConfig(dsn=homes.shared.app)) as old:
        held = await old.runs.load(ACME, made[0])
        await homes.move(ACME.tenant, OTHER)
        remains = await rows_of(homes.shared, ACME.tenant)

        attempts: list[Awaitable[object]] = [
            old.runs.create(ACME, new_run()),
            old.runs.append(ACME, held.id, held.epoch, telling("model.delta")),
            old.runs.append(ACME, held.id, held.epoch, SUCCEEDED),
            old.runs.release(ACME, held.id, held.epoch),
            old.runs.claim(ACME, made[3], WORKER),
            old.runs.cancel(ACME, made[3], reason="late"),
            old.runs.cancel(ACME, held.id, reason="late"),
            old.memory.put(ACME, "colour", "red"),
            old.memory.forget(ACME, "colour"),
            old.queue.enqueue(ACME, b"late"),
            old.agents.publish(ACME, replace(AGENT, instructions="late")),
        ]
        for attempt in attempts:
            with pytest.raises(Moved):
                await attempt

        assert await old.queue.lease(NODE, limit=10, duration=HOUR) != [], "the other tenant's are to be had"
        assert {one.run_id for one in await old.runs.orphans(NODE, queued_for=timedelta(0), limit=50)} == {made[7]}
    assert await rows_of(homes.shared, ACME.tenant) == remains
    assert (await homes.api.memory.get(ACME, "colour")) is not None


async def test_a_reader_that_is_late_is_refused_and_goes_to_the_new_home(homes: Homes) -> None:
    made = await live_a_little(homes.api)
    late = homes.late()
    async with open_ports(late) as ports:
        await ports.runs.load(ACME, made[0])

        await homes.move(ACME.tenant, OTHER)
        new = await homes.api.create(ACME)

        # Right away: within the time that it trusts in what it knew.
        assert (await ports.runs.load(ACME, new)).id == new
        assert (await ports.runs.load(GLOBEX, made[4])).id == made[4]


@pytest.mark.usefixtures("asks_each_time")
async def test_a_tenant_moves_back_once_its_remains_are_cleared(homes: Homes) -> None:
    made = await live_a_little(homes.api)
    untouched = await rows_of(homes.shared, GLOBEX.tenant)
    await homes.move(ACME.tenant, OTHER)

    with pytest.raises(Conflict, match="clear them first"):
        await homes.move(ACME.tenant, SHARED)
    with pytest.raises(Conflict, match="are kept for 24 hours"):
        await clear_remains(PLATFORM, ACME.tenant, homes.places, tell=silent)
    await clear_remains(PLATFORM, ACME.tenant, homes.places, tell=silent, grace=timedelta(0))
    assert set((await rows_of(homes.shared, ACME.tenant)).values()) == {0}
    assert (await standing(homes.shared), await guards(homes.shared)) == ([], 0)

    report = await homes.move(ACME.tenant, SHARED)

    assert report.rows == await rows_of(homes.shared, ACME.tenant)
    assert [run.id for run in (await homes.api.runs.list_runs(ACME, RunFilter(), limit=9)).items] == made[3::-1]
    assert await rows_of(homes.shared, GLOBEX.tenant) == untouched
    actions = await fetch(
        homes.shared.admin, "SELECT action, subject FROM audit_log WHERE action LIKE 'tenant.move%' ORDER BY id"
    )
    assert [(row["action"], row["subject"]) for row in actions] == [
        ("tenant.move_begin", "tnt_acme@eu1"),
        ("tenant.move", "tnt_acme@eu1"),
        ("tenant.move_clear", "tnt_acme@shared"),
        ("tenant.move_begin", "tnt_acme@shared"),
        ("tenant.move", "tnt_acme@shared"),
    ]


POINTS = (
    ("marked", 1), ("guarded", 1), ("copied", 1), ("copied", 4), ("copied", 9), ("caught_up", 1), ("frozen", 1),
    ("compared", 1), ("written", 1), ("left", 1), ("directed", 1), ("opened", 1),
)  # fmt: skip


@pytest.mark.usefixtures("asks_each_time")
@pytest.mark.parametrize("back", [False, True], ids=["from the shared home", "to the shared home"])
async def test_killed_anywhere_it_goes_on_and_nothing_is_lost_or_twice(homes: Homes, *, back: bool) -> None:
    await live_a_little(homes.api)
    places = (SHARED, OTHER)
    if back:
        await homes.move(ACME.tenant, OTHER)
        places = (OTHER, SHARED)
    expected: set[RunId] = {run.id for run in (await homes.api.runs.list_runs(ACME, RunFilter(), limit=50)).items}
    clones = {SHARED: homes.shared, OTHER: homes.other}
    for point, times in POINTS:
        here, there = places
        await homes.clear(ACME.tenant)
        with pytest.raises(Killed):
            await homes.move(ACME.tenant, there, tell=killed_at(point, times=times))

        # It works all along, wherever it lives by now, and what it writes comes with it.
        expected.add(await homes.api.create(ACME))
        await homes.api.memory.put(ACME, "last", [point, times])
        await homes.api.memory.forget(ACME, "colour")
        async with open_ports(PostgresConfig(dsn=clones[there].app)) as early:
            found = await early.runs.orphans(NODE, queued_for=timedelta(0), limit=50)
            elsewhere = {one.run_id for one in found if one.requester.tenant == ACME.tenant}
            assert point in ("left", "directed", "opened") or not elsewhere, "two homes would execute it"
        await homes.move(ACME.tenant, there)

        listed = [run.id for run in (await homes.api.runs.list_runs(ACME, RunFilter(), limit=100)).items]
        assert len(listed) == len(set(listed))
        assert set(listed) == expected, f"killed at {point}"
        item = await homes.api.memory.get(ACME, "last")
        assert item is not None
        assert item.value == [point, times]
        assert await homes.api.memory.get(ACME, "colour") is None
        assert await standing(clones[there]) == []
        assert await standing(clones[here]) == [(ACME.tenant, "left")]
        places = (there, here)


@pytest.mark.parametrize(("point", "times"), [one for one in POINTS if one[0] not in ("left", "directed", "opened")])
async def test_a_move_is_aborted_until_its_switch(homes: Homes, point: str, times: int) -> None:
    await live_a_little(homes.api)
    before = await rows_of(homes.shared, ACME.tenant)
    with pytest.raises(Killed):
        await homes.move(ACME.tenant, OTHER, tell=killed_at(point, times=times))

    await abort_move(PLATFORM, ACME.tenant, homes.places, tell=silent)

    assert await rows_of(homes.shared, ACME.tenant) == before
    assert set((await rows_of(homes.other, ACME.tenant)).values()) == {0}
    assert await standing(homes.shared) == await standing(homes.other) == []
    assert await guards(homes.shared) == 0
    assert await fetch(homes.shared.admin, "SELECT 1 FROM tenant_changes") == []
    # It never lived there, so that nothing of it is to be asked of there.
    assert await fetch(homes.shared.admin, "SELECT 1 FROM tenant_stays") == []
    with pytest.raises(Conflict):
        await abort_move(PLATFORM, ACME.tenant, homes.places, tell=silent)


async def test_after_the_switch_there_is_nothing_to_abort(homes: Homes) -> None:
    await live_a_little(homes.api)
    with pytest.raises(Killed):
        await homes.move(ACME.tenant, OTHER, tell=killed_at("left"))

    with pytest.raises(Conflict):
        await abort_move(PLATFORM, ACME.tenant, homes.places, tell=silent)


async def test_what_differs_there_stops_the_switch_and_the_tenant_goes_on(homes: Homes) -> None:
    await live_a_little(homes.api)

    async def spoil(step: Step) -> None:
        if step.point == "frozen":
            await execute(homes.other.superuser, "UPDATE agentos.steps SET name = 'other' WHERE tenant_id = 'tnt_acme'")

    with pytest.raises(Conflict, match="steps"):
        await homes.move(ACME.tenant, OTHER, tell=spoil)

    assert await homes.api.create(ACME)
    assert await standing(homes.shared) == [(ACME.tenant, "leaving")]


async def test_what_differs_of_long_ago_stops_it_before_the_switch(homes: Homes) -> None:
    await live_a_little(homes.api)
    await execute(homes.shared.superuser, "UPDATE agentos.run_events SET time = time - interval '1 hour'")

    async def spoil(step: Step) -> None:
        assert step.point != "frozen"
        if step.point == "caught_up":
            await execute(homes.other.superuser, "UPDATE agentos.run_events SET type = 'other' WHERE sequence = 1")

    with pytest.raises(Conflict, match="run_events"):
        await homes.move(ACME.tenant, OTHER, tell=spoil)


async def test_the_walls_stand_in_the_new_home_too(homes: Homes) -> None:
    made = await live_a_little(homes.api)
    await homes.move(ACME.tenant, OTHER)
    await homes.move(GLOBEX.tenant, OTHER)

    for reader, runs in ((GLOBEX, made[:4]), (ACME, made[4:])):
        for run in runs:
            with pytest.raises(NotFound):
                await homes.api.runs.load(reader, run)
            with pytest.raises(NotFound):
                await homes.api.events.read(reader, run)
    async with open_database(PostgresConfig(dsn=homes.other.app)) as database:
        for table in TABLES:
            # Without a predicate: only the second wall is left.
            seen = statement(f"SELECT DISTINCT tenant_id FROM {table.name}")
            async with database.transaction(ACME.tenant) as transaction:
                found = {row["tenant_id"] for row in await transaction.rows(seen, {})}
            assert found <= {ACME.tenant}, table.name
    for rule, query in RULES.items():
        assert await fetch(homes.other.superuser, query) == [], rule
        assert await fetch(homes.shared.superuser, query) == [], rule


async def test_a_switch_that_takes_too_long_is_taken_back(homes: Homes) -> None:
    await live_a_little(homes.api)
    slow = [True]

    async def stall(step: Step) -> None:
        if step.point == "frozen" and slow:
            slow.pop()
            await anyio.sleep_forever()

    report = await move_tenant(PLATFORM, ACME.tenant, OTHER, homes.places, tell=stall, freeze_s=0.5)

    assert report.attempts == 2
    assert await homes.api.create(ACME)


async def test_a_switch_whose_commit_lands_as_its_time_ends_says_what_it_did(homes: Homes) -> None:
    await live_a_little(homes.api)
    # A commit that can't be stopped any more, and takes longer than the switch has.
    await execute(
        homes.shared.superuser,
        "CREATE FUNCTION lands_late() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(60); RETURN NULL; EXCEPTION WHEN query_canceled THEN RETURN NULL; END'",
    )
    await execute(
        homes.shared.superuser,
        "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON agentos.tenant_moves DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "WHEN (NEW.state = 'left') EXECUTE FUNCTION lands_late()",
    )
    left: list[float] = []

    async def tell(step: Step) -> None:
        if step.point == "left":
            left.append(step.seconds)

    report = await move_tenant(PLATFORM, ACME.tenant, OTHER, homes.places, tell=tell, freeze_s=0.5)

    assert [round(seconds, 3) for seconds in left] == [report.frozen_s]
    assert report.frozen_s >= 0.5
    assert report.done == f"{ACME.tenant} lives in {OTHER}"
    assert report.attempts == 1
    assert report.rows["runs"] == len(await fetch(homes.other.admin, "SELECT FROM runs"))
    assert report.checksums.keys() == report.rows.keys()


async def test_writers_wait_no_longer_for_a_mover_that_stands_still(homes: Homes) -> None:
    """As when its machine is stopped just then: nobody takes the switch back, but the database."""
    await live_a_little(homes.api)
    frozen, written = asyncio.Event(), asyncio.Event()

    async def stand_still(step: Step) -> None:
        if step.point == "frozen":
            frozen.set()
            while not written.is_set():
                with suppress(asyncio.CancelledError):
                    await written.wait()

    async def write() -> None:
        await frozen.wait()
        began = anyio.current_time()
        with anyio.fail_after(10):
            while True:
                try:
                    await homes.api.create(ACME)
                    break
                except Unavailable:
                    assert anyio.current_time() - began < 8
        written.set()

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        with pytest.raises(Unavailable):
            await move_tenant(PLATFORM, ACME.tenant, OTHER, homes.places, tell=stand_still, freeze_s=0.5)

    assert await standing(homes.shared) == [(ACME.tenant, "leaving")]
    await homes.move(ACME.tenant, OTHER)


async def test_two_do_not_move_one_tenant_at_once(homes: Homes) -> None:
    async def again(step: Step) -> None:
        if step.point == "guarded":
            with pytest.raises(Conflict, match="under way"):
                await homes.move(ACME.tenant, OTHER)

    assert (await homes.move(ACME.tenant, OTHER, tell=again)).done == "tnt_acme lives in eu1"
    assert (await homes.move(ACME.tenant, OTHER)).done == "tnt_acme lives in eu1 already"


async def test_only_the_platform_moves_tenants_and_only_to_homes(homes: Homes) -> None:
    with pytest.raises(PermissionDenied):
        await move_tenant(ACME, ACME.tenant, OTHER, homes.places, tell=silent)
    with pytest.raises(InvalidArgument, match="eu1"):
        await homes.move(ACME.tenant, "mars")
    with pytest.raises(NotFound):
        await homes.move(TenantId("tnt_nobody"), OTHER)


async def test_a_tool_in_the_middle_of_its_call_is_stopped_before_another_worker_makes_it(homes: Homes) -> None:
    homes.hold = anyio.Event()
    async with homes.worker(homes.shared), homes.worker(homes.other):
        with anyio.fail_after(60):
            run = await homes.api.create(ACME)
            await homes.held.wait()

            await homes.move(ACME.tenant, OTHER)

            async with open_ports(PostgresConfig(dsn=homes.other.app)) as there:
                # The lease of the worker that has it came along.
                assert await there.runs.orphans(NODE, queued_for=timedelta(0), limit=9) == ()
            await homes.let_go.wait()
            assert len(homes.calls) == 1, "the next one came before it was stopped"
            homes.hold = None
            await shift_time(homes.other, timedelta(seconds=30))
            types = [event.type async for event in homes.api.events.follow(ACME, run)]

    assert types[-1] == "run.completed"
    assert types.count("tool.completed") == 1
    assert len(homes.calls) == 2
    assert len(set(homes.calls)) == 1, "the same effect key on every attempt"
    assert [step.status for step in await homes.api.runs.steps(ACME, run)] == ["completed"] * 3
    assert (await homes.api.runs.load(ACME, run)).recoveries == 1


STAYS = {
    # The directory.
    "tenants", "api_keys", "principals", "acting_principals", "tenant_tombstones",
    # The directory's; a home has copies.
    "legal_holds", "retention_rules", "subject_tombstones",
    # Where it was written.
    "audit_log", "audit_chain", "audit_heads",
    # Made anew at each home.
    "queue_turns",
    # Stack B's.
    "budgets", "budget_windows", "budget_holds", "budget_hold_windows", "usage_events", "model_replies",
    "request_records", "request_contents",
}  # fmt: skip


async def test_every_table_of_tenants_moves_or_stays_on_purpose(homes: Homes) -> None:
    """A new one: add it to `move_tables.TABLES` and open its port with `at_homes`, or to `STAYS` and docs/homes.md."""
    rows = await fetch(
        homes.shared.superuser,
        "SELECT c.relname, array_agg(a.attname::text ORDER BY x.place) AS key FROM pg_class c "
        "JOIN pg_attribute t ON t.attrelid = c.oid AND t.attname = 'tenant_id' "
        "JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary, unnest(i.indkey) WITH ORDINALITY x (attnum, place), "
        "pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = x.attnum AND c.relkind IN ('r', 'p') "
        "AND NOT c.relispartition AND c.relnamespace = 'agentos'::regnamespace GROUP BY 1",
    )

    keys = {row["relname"]: tuple(row["key"]) for row in rows}
    assert keys.keys() == {table.name for table in TABLES} | STAYS
    assert {table.name: ("tenant_id", *table.columns) for table in TABLES} == {
        table.name: keys[table.name] for table in TABLES
    }


async def test_who_lives_elsewhere_is_not_removed_from_the_directory(homes: Homes) -> None:
    remove = "DELETE FROM agentos.api_keys; DELETE FROM agentos.tenants WHERE tenant_id = 'tnt_acme'"
    with pytest.raises(Killed):
        await homes.move(ACME.tenant, OTHER, tell=killed_at("guarded"))
    with pytest.raises(asyncpg.PostgresError, match="lives elsewhere"):
        await execute(homes.shared.superuser, remove)

    await homes.move(ACME.tenant, OTHER)
    with pytest.raises(asyncpg.PostgresError, match="lives elsewhere") as refused:
        await execute(homes.shared.superuser, remove)

    assert isinstance(translate(refused.value), Conflict)


async def test_limits_go_along_and_follow_the_directory(homes: Homes) -> None:
    await homes.api.tenants.set_entitlements(PLATFORM, ACME.tenant, Entitlements(max_queued_runs=1))
    await homes.move(ACME.tenant, OTHER)
    await homes.api.create(ACME)
    with pytest.raises(ResourceExhausted):
        await homes.api.create(ACME)

    await homes.api.tenants.set_entitlements(PLATFORM, ACME.tenant, Entitlements(max_queued_runs=2))

    await homes.api.create(ACME)
    with pytest.raises(ResourceExhausted):
        await homes.api.create(ACME)
    copy = statement("SELECT ao_copy_tenant('disabled', '{}')")
    async with (
        open_database(PostgresConfig(dsn=homes.shared.control)) as database,
        database.transaction(GLOBEX.tenant) as transaction,
    ):
        await transaction.rows(copy, {})
    assert (await homes.api.tenants.get(PLATFORM, GLOBEX.tenant)).status == "active", "the directory is no copy"


async def test_a_key_that_was_used_before_the_move_answers_with_the_same_run(homes: Homes) -> None:
    first = await homes.api.create(ACME, "key-1")

    await homes.move(ACME.tenant, OTHER)

    assert await homes.api.create(ACME, "key-1") == first


async def test_a_hold_that_is_placed_while_a_move_begins_goes_along(homes: Homes) -> None:
    """Both ask under one lock: the hold's is taken here, and the move finds what it comes to."""
    placing = await asyncpg.connect(homes.shared.superuser, server_settings={"search_path": "agentos"})
    try:
        holding = placing.transaction()
        await holding.start()
        await placing.execute("SELECT ao_lock_holds($1)", ACME.tenant)
        async with asyncio.TaskGroup() as group:
            group.create_task(homes.move(ACME.tenant, OTHER))
            await waits_for_a_lock(homes.shared)
            await placing.execute(
                "INSERT INTO legal_holds (tenant_id, reason, placed_by) VALUES ($1, 'case 17/26', 'usr_officer')",
                ACME.tenant,
            )
            await holding.commit()
    finally:
        await placing.close()

    [row] = await fetch(homes.other.superuser, "SELECT tenant_id, reason FROM legal_holds")
    assert tuple(row) == (ACME.tenant, "case 17/26")


@pytest.mark.parametrize("point", ["compared", "written", "left", "directed"])
async def test_limits_that_are_changed_while_it_moves_arrive(homes: Homes, point: str) -> None:
    changing: list[asyncio.Task[None]] = []

    async def change() -> None:
        await homes.api.tenants.set_entitlements(PLATFORM, ACME.tenant, Entitlements(max_queued_runs=7))

    async def tell(step: Step) -> None:
        if step.point == point:
            changing.append(asyncio.create_task(change()))
            # Either it waits for the move, or it is done before the move goes on.
            await asyncio.wait(changing, timeout=0.2)

    await homes.move(ACME.tenant, OTHER, tell=tell)
    await asyncio.gather(*changing)

    [row] = await fetch(homes.other.admin, "SELECT entitlements FROM tenants WHERE tenant_id = $1", ACME.tenant)
    assert '"max_queued_runs":7' in row["entitlements"].replace(" ", "")
    assert len(changing) == 1
