"""PostgreSQL: events by day, and what removes them; large bodies, and what becomes of them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib.resources import files
from typing import Final

import anyio
import asyncpg
import pytest
from msgspec import Struct
from msgspec.structs import replace

from adapters.postgres import event, maintenance, run_state
from adapters.postgres.blobs import MAX_INLINE_BYTES
from adapters.postgres.bootstrap import bootstrap
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.migrate import migrate, packaged
from adapters.postgres.statements import parse
from adapters.system_clock import SystemClock
from conformance.factories import SUCCEEDED, idempotency, intent, new_run, result
from conformance.people import ACME, ACME_BEN, GLOBEX, NODE
from ports.adapter import Given
from ports.context import AuthContext
from ports.errors import Conflict
from ports.event import EventPort
from ports.ids import RunId, WorkerId, minted, uuid_of
from ports.maintenance import MaintenancePort
from ports.messages import Json
from ports.run_state import Change, NewEvent, Run, RunStatePort
from tests.support import catalogue_lint
from tests.support.postgres import Clone, cloned, execute, fetch, server, shift_time

pytestmark = pytest.mark.anyio

WORKER: Final = WorkerId("wrk_retention")
HOUR: Final = timedelta(hours=1)
RETENTION: Final = timedelta(days=30)
BEN: Final = replace(GLOBEX, principal=ACME_BEN.principal)
LARGE: Final = "x" * (MAX_INLINE_BYTES + 1)


class Ports(Struct, frozen=True):
    runs: RunStatePort
    events: EventPort
    maintenance: MaintenancePort


@pytest.fixture
async def database() -> AsyncIterator[Clone]:
    async with cloned() as made:
        yield made


@pytest.fixture
async def ports(database: Clone) -> AsyncIterator[Ports]:
    async with opened(database) as made:
        yield made


@asynccontextmanager
async def opened(database: Clone) -> AsyncIterator[Ports]:
    config, given = PostgresConfig(dsn=database.app), Given(clock=SystemClock())
    async with AsyncExitStack() as stack:
        yield Ports(
            await stack.enter_async_context(run_state.SPEC.open(config, given)),
            await stack.enter_async_context(event.SPEC.open(config, given)),
            await stack.enter_async_context(maintenance.SPEC.open(config, given)),
        )


async def ended(ports: Ports, auth: AuthContext = ACME, text: Json = "hello", *, output: Json = "42") -> Run:
    await ports.runs.renew(NODE, WORKER, HOUR)
    created = await ports.runs.create(auth, replace(new_run(), input=text))
    run = await ports.runs.claim(auth, created.run.id, WORKER)
    await ports.runs.append(auth, run.id, run.epoch, Change(steps=(intent(1), result(1, output))))
    await ports.runs.append(auth, run.id, run.epoch, replace(SUCCEEDED, output=output))
    return run


async def kept_clean(ports: Ports) -> None:
    while (await ports.maintenance.upkeep(NODE, retention=RETENTION)).more:
        pass


async def partitions(database: Clone) -> set[str]:
    rows = await fetch(database.superuser, "SELECT name FROM ao_event_partitions()")
    return {row["name"] for row in rows}


async def partition_of(database: Clone, run: Run) -> set[str]:
    rows = await fetch(
        database.superuser,
        "SELECT DISTINCT tableoid::regclass::text AS name FROM run_events WHERE run_id = $1",
        uuid_of("run", run.id),
    )
    return {row["name"] for row in rows}


async def event_count(database: Clone, run: Run) -> int:
    [row] = await fetch(
        database.superuser, "SELECT count(*) AS count FROM run_events WHERE run_id = $1", uuid_of("run", run.id)
    )
    count: int = row["count"]
    return count


async def today(database: Clone) -> str:
    [row] = await fetch(database.superuser, "SELECT 'run_events_' || to_char(ao_today(), 'YYYYMMDD') AS name")
    name: str = row["name"]
    return name


class TestDays:
    async def test_the_events_of_a_run_lie_in_the_partition_of_its_day(self, database: Clone, ports: Ports) -> None:
        run = await ended(ports)

        assert await partition_of(database, run) == {await today(database)}

    async def test_reading_a_run_looks_into_one_partition(self, database: Clone, ports: Ports) -> None:
        run = await ended(ports)
        statement = statement_of("event", "read")
        for name, value in {
            "tenant": f"'{ACME.tenant}'", "namespace": "'default'", "run": f"'{uuid_of('run', run.id)}'::uuid",
            "after": "0", "limit": "100",
        }.items():  # fmt: skip
            statement = statement.replace(f":{name}", value)

        plan = await fetch(database.superuser, f"EXPLAIN (COSTS OFF) {statement}")

        named = {
            word.removesuffix("_pkey") for row in plan for word in row[0].split() if word.startswith("run_events_")
        }
        assert named == {await today(database)}

    async def test_a_week_is_made_ahead_once(self, database: Clone, ports: Ports) -> None:
        before = await partitions(database)
        await shift_time(database, timedelta(days=3))

        await kept_clean(ports)
        after = await partitions(database)
        await kept_clean(ports)

        assert len(before) == maintenance.DAYS_AHEAD + 1
        assert len(after - before) == 3
        assert await partitions(database) == after

    async def test_callers_at_once_make_each_day_once(self, database: Clone, ports: Ports) -> None:
        await shift_time(database, timedelta(days=20))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(kept_clean, ports)

        assert len(await partitions(database)) == 2 * (maintenance.DAYS_AHEAD + 1)

    async def test_a_day_nobody_made_is_caught_and_moves_when_it_is_made(self, database: Clone, ports: Ports) -> None:
        await execute(database.owner, f"DROP TABLE agentos.{await today(database)}")
        run = await ended(ports)
        whole = await ports.events.read(ACME, run.id)
        caught = await partition_of(database, run)

        await kept_clean(ports)

        assert caught == {"run_events_default"}
        assert await partition_of(database, run) == {await today(database)}
        assert await ports.events.read(ACME, run.id) == whole
        assert len(whole) == 3

    async def test_a_new_partition_keeps_every_rule_of_the_catalogue(self, database: Clone, ports: Ports) -> None:
        await shift_time(database, timedelta(days=20))
        await kept_clean(ports)

        broken = {rule for rule, query in catalogue_lint.RULES.items() if await fetch(database.superuser, query)}

        assert broken == set()

    async def test_other_tenants_rows_in_a_partition_are_not_to_be_seen(self, database: Clone, ports: Ports) -> None:
        await ended(ports)
        connection = await asyncpg.connect(database.app, server_settings={"search_path": "agentos"})
        try:
            await connection.execute(f"BEGIN; SET LOCAL app.tenant_id = '{GLOBEX.tenant}'")
            seen = await connection.fetchval("SELECT count(*) FROM run_events")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetchval(f"SELECT count(*) FROM {await today(database)}")
        finally:
            await connection.close()

        assert seen == 0


class TestRetention:
    async def test_a_day_of_which_no_run_is_left_is_dropped(self, database: Clone, ports: Ports) -> None:
        await ended(ports)
        day = await today(database)
        await shift_time(database, RETENTION + timedelta(days=2))

        await kept_clean(ports)

        assert day not in await partitions(database)
        assert await fetch(database.superuser, "SELECT FROM run_events") == []

    async def test_a_day_stays_for_one_open_run(self, database: Clone, ports: Ports) -> None:
        await ended(ports)
        waiting = (await ports.runs.create(ACME, new_run())).run
        day = await today(database)
        await shift_time(database, RETENTION + timedelta(days=2))

        await kept_clean(ports)

        assert day in await partitions(database)
        assert len(await ports.events.read(ACME, waiting.id)) == 1

    @pytest.mark.parametrize("why", ["an open run", "a hold of another tenant"])
    async def test_a_day_that_stays_keeps_nothing_of_runs_that_are_gone(
        self, database: Clone, ports: Ports, monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        monkeypatch.setattr(maintenance, "ROWS", 2)
        gone = [await ended(ports, auth) for auth in (ACME, GLOBEX, ACME, ACME)]
        stays = (await ports.runs.create(GLOBEX, new_run())).run if why == "an open run" else await ended(ports, BEN)
        if why != "an open run":
            await execute(
                database.superuser,
                "INSERT INTO agentos.legal_holds (tenant_id, subject, reason, placed_by) "
                f"VALUES ('{BEN.tenant}', '{BEN.principal}', 'case 17/26', 'usr_operator')",
            )
        before = await event_count(database, stays)
        await shift_time(database, RETENTION + timedelta(days=2))

        await kept_clean(ports)

        assert await event_count(database, stays) == before > 0
        assert [await event_count(database, run) for run in gone] == [0, 0, 0, 0]

    @pytest.mark.parametrize("call", ["ao_forget_runs(6, 100)", "ao_drop_event_days(6)", "ao_make_event_days(400)"])
    async def test_the_database_itself_refuses_what_is_unreasonable(self, database: Clone, call: str) -> None:
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await fetch(database.app, f"SELECT {call}")

    async def test_a_long_backlog_is_removed_in_batches(
        self, database: Clone, ports: Ports, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(maintenance, "BATCH", 2)
        for _ in range(5):
            await ended(ports)
        await shift_time(database, RETENTION + timedelta(days=2))

        calls = [await ports.maintenance.upkeep(NODE, retention=RETENTION) for _ in range(4)]

        assert [(call.runs_removed, call.more) for call in calls] == [(2, True), (2, True), (1, False), (0, False)]


class TestConversion:
    async def test_events_of_before_are_all_there_and_go_with_their_time(self) -> None:
        origin = await anyio.to_thread.run_sync(server)
        name = "before_partitions"
        await bootstrap(origin.dsn("postgres", "postgres"), origin.passwords, database=name)
        database = Clone(server=origin, name=name)
        before = tuple(migration for migration in packaged() if migration.name < "0004")
        run_id = "01a1f640-bc00-7000-8000-000000000001"
        try:
            await migrate(database.owner, before)
            await execute(
                database.superuser,
                f"""
                SET search_path = agentos;
                INSERT INTO runs (tenant_id, id, namespace, agent_id, agent_version, agent_digest, requester, input,
                                  context, status, last_sequence, created_at, queued_at, finished_at)
                VALUES ('tnt_acme', '{run_id}', 'default', 'agt_a', 1, 'd', '{{}}', '1',
                        '{{}}', 'cancelled', 2, ao_now(), ao_now(), ao_now());
                INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
                VALUES ('tnt_acme', '{run_id}', 1, 'run.created', ao_now(), '{{}}', '', ''),
                       ('tnt_acme', '{run_id}', 2, 'run.cancelled', ao_now(), '{{}}', '', '')
                """,
            )

            await migrate(database.owner)
            async with opened(database) as ports:
                old = RunId(minted("run", uuid.UUID(run_id)))
                events = await ports.events.read(ACME, old)
                new = await ended(ports)
                await shift_time(database, RETENTION + timedelta(days=2))
                await kept_clean(ports)

            assert [one.type for one in events] == ["run.created", "run.cancelled"]
            assert "run_events_first" not in await partitions(database)
            assert await fetch(database.superuser, "SELECT FROM runs") == []
            assert new.id != old
        finally:
            await execute(origin.dsn("postgres", "postgres"), f"DROP DATABASE {name} WITH (FORCE)")


class TestBlobs:
    async def test_a_large_body_lies_beside_its_row_once_per_tenant(self, database: Clone, ports: Ports) -> None:
        for auth in (ACME, ACME, GLOBEX):
            await ended(ports, auth, LARGE, output=LARGE)

        blobs = await fetch(database.superuser, "SELECT tenant_id, octet_length(body) AS size FROM blobs ORDER BY 1")
        sizes = await fetch(
            database.superuser,
            "SELECT max(octet_length(input::text) + octet_length(output::text)) AS size FROM runs "
            "UNION ALL SELECT max(octet_length(output::text)) FROM steps",
        )

        assert [(row["tenant_id"], row["size"]) for row in blobs] == [
            ("tnt_acme", len(LARGE) + 2),
            ("tnt_globex", len(LARGE) + 2),
        ]
        assert max(row["size"] for row in sizes) < 250

    async def test_what_fits_stays_in_its_row(self, database: Clone, ports: Ports) -> None:
        await ended(ports, text="x" * (MAX_INLINE_BYTES - 2))

        assert await fetch(database.superuser, "SELECT FROM blobs") == []

    @pytest.mark.parametrize("value", [{"$blob": "00"}, {"$blob": "0" * 64, "bytes": 3}, {"a": 1, "$blob": None}])
    async def test_what_looks_like_a_reference_is_only_a_value(self, ports: Ports, value: Json) -> None:
        run = await ended(ports, text=value, output=value)

        [step] = await ports.runs.steps(ACME, run.id)
        assert (await ports.runs.load(ACME, run.id)).input == value
        assert step.output == value

    async def test_a_body_goes_with_the_last_run_that_needs_it(self, database: Clone, ports: Ports) -> None:
        await ended(ports, text=LARGE)
        still_open = (await ports.runs.create(ACME, replace(new_run(), input=LARGE))).run
        await shift_time(database, RETENTION + timedelta(days=2))
        await kept_clean(ports)
        while_needed = await fetch(database.superuser, "SELECT FROM blobs")
        read = await ports.runs.cancel(ACME, still_open.id, reason="enough")

        await shift_time(database, RETENTION + timedelta(days=20))
        await kept_clean(ports)

        assert len(while_needed) == 1
        assert read.input == LARGE
        assert await fetch(database.superuser, "SELECT FROM blobs") == []
        assert await fetch(database.superuser, "SELECT FROM blob_refs") == []

    async def test_writing_a_body_while_it_is_forgotten_keeps_it(self, database: Clone, ports: Ports) -> None:
        await ended(ports, text=LARGE)
        await shift_time(database, RETENTION + timedelta(days=2))
        forgetting = await asyncpg.connect(database.app, server_settings={"search_path": "agentos"})
        try:
            await forgetting.execute("BEGIN")
            await forgetting.execute("SELECT ao_forget_runs(30, 100)")
            written: list[Run] = []

            async def write() -> None:
                written.append((await ports.runs.create(ACME, replace(new_run(), input=LARGE))).run)

            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(write)
                    await anyio.sleep(0.2)
                    assert written == [], "it waits for the other's end"
                    await forgetting.execute("COMMIT")
        finally:
            await forgetting.close()

        assert (await ports.runs.load(ACME, written[0].id)).input == LARGE

    async def test_a_refused_write_leaves_no_body_behind(self, database: Clone, ports: Ports) -> None:
        run = await ended(ports)
        key = idempotency("used")
        await ports.runs.create(ACME, new_run(key))

        for refused in (
            ports.runs.append(ACME, run.id, run.epoch, Change(events=(NewEvent(type="x", data={"text": LARGE}),))),
            ports.runs.create(ACME, replace(new_run(replace(key, fingerprint="other")), input=LARGE)),
        ):
            with pytest.raises(Conflict):
                await refused

        assert await fetch(database.superuser, "SELECT FROM blobs") == []


def statement_of(file: str, name: str) -> str:
    source = (files("adapters.postgres") / "sql" / f"{file}.sql").read_text(encoding="utf-8")
    return parse(source)[name]
