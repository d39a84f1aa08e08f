"""Migrations are applied once, in order, wholly or not at all; services insist on them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio
import asyncpg
import pytest
from msgspec.structs import replace

from adapters.postgres import audit, run_state
from adapters.postgres.bootstrap import bootstrap
from adapters.postgres.engine import PostgresConfig, open_database
from adapters.postgres.migrate import Migration, migrate, packaged, pending
from adapters.system_clock import SystemClock
from conformance.factories import SUCCEEDED, new_run
from conformance.people import ACME, NODE
from deploy.audit_check import checked
from ports.adapter import Given
from ports.audit import READ, Note
from ports.errors import Conflict, Unavailable
from ports.ids import WorkerId
from ports.run_state import RunFilter, RunStatePort
from tests.support.postgres import Clone, cloned, execute, fetch, server

FIRST = Migration(name="0001_first", sql="CREATE TABLE first (id integer)")
SECOND = Migration(name="0002_second", sql="CREATE TABLE second (id integer)")


@pytest.mark.anyio
class TestMigrations:
    @pytest.fixture
    async def empty(self) -> AsyncIterator[Clone]:
        """A database with roles and schema, and nothing else."""
        origin = await anyio.to_thread.run_sync(server)
        name = "empty_for_migrations"
        await bootstrap(origin.dsn("postgres", "postgres"), origin.passwords, database=name)
        yield Clone(server=origin, name=name)
        await execute(origin.dsn("postgres", "postgres"), f"DROP DATABASE {name} WITH (FORCE)")

    async def test_migrating_again_changes_nothing(self, empty: Clone) -> None:
        first = await migrate(empty.owner)
        again = await migrate(empty.owner)

        assert first == [migration.name for migration in packaged()]
        assert again == []

    async def test_runners_at_the_same_time_apply_each_migration_once(self, empty: Clone) -> None:
        applied: list[str] = []

        async def run() -> None:
            applied.extend(await migrate(empty.owner, (FIRST, SECOND)))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(run)

        assert sorted(applied) == ["0001_first", "0002_second"]

    async def test_a_migration_that_fails_leaves_nothing_of_itself(self, empty: Clone) -> None:
        broken = Migration(name="0002_second", sql="CREATE TABLE second (id integer); SELECT 1 / 0")

        with pytest.raises(asyncpg.DivisionByZeroError):
            await migrate(empty.owner, (FIRST, broken))

        rows = await fetch(
            empty.owner, "SELECT to_regclass('agentos.first') AS one, to_regclass('agentos.second') AS two"
        )
        assert rows[0]["one"] is not None
        assert rows[0]["two"] is None
        assert await migrate(empty.owner, (FIRST, SECOND)) == ["0002_second"]

    async def test_a_service_refuses_a_database_that_is_not_migrated(self, empty: Clone) -> None:
        with pytest.raises(Unavailable, match="0001_house"):
            async with open_database(PostgresConfig(dsn=empty.app)):
                pass

    async def test_a_service_refuses_a_database_of_a_newer_version(self) -> None:
        async with cloned() as newer:
            await execute(newer.owner, "INSERT INTO agentos.schema_migrations VALUES ('9999_future', 'x')")

            with pytest.raises(Conflict, match="9999_future"):
                async with open_database(PostgresConfig(dsn=newer.app)):
                    pass

    async def test_a_server_that_does_not_answer_is_unavailable(self) -> None:
        with pytest.raises(Unavailable):
            await migrate("postgresql://ao_owner:x@127.0.0.1:1/agentos")

    async def test_an_index_that_was_left_half_built_is_built_anew(self, empty: Clone) -> None:
        twice = Migration(name="0001_first", sql="CREATE TABLE first (id integer); INSERT INTO first VALUES (1), (1)")
        unique = Migration(
            name="0002_second",
            sql="-- outside a transaction\n-- Says what it is.\n"
            "CREATE INDEX CONCURRENTLY first_plain ON first (id);\n\n"
            "CREATE UNIQUE INDEX CONCURRENTLY first_id ON first (id);\n",
        )
        with pytest.raises(asyncpg.UniqueViolationError):
            await migrate(empty.owner, (twice, unique))
        left = await built(empty, "first_plain", "first_id")
        await execute(empty.owner, "DELETE FROM agentos.first WHERE ctid = (SELECT min(ctid) FROM agentos.first)")

        applied = await migrate(empty.owner, (twice, unique))

        assert left == {"first_plain": True, "first_id": False}
        assert applied == ["0002_second"]
        assert await built(empty, "first_plain", "first_id") == {"first_plain": True, "first_id": True}

    async def test_runners_at_the_same_time_build_an_index_once(self, empty: Clone) -> None:
        index = Migration(
            name="0002_second", sql="-- outside a transaction\nCREATE INDEX CONCURRENTLY first_id ON first (id);\n"
        )
        applied: list[str] = []

        async def run() -> None:
            applied.extend(await migrate(empty.owner, (FIRST, index)))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(run)

        assert sorted(applied) == ["0001_first", "0002_second"]
        assert await built(empty, "first_id") == {"first_id": True}

    async def test_no_migration_rewrites_a_table_that_is_there(self, empty: Clone) -> None:
        """Since those that services go on under: a table is locked for as long as it is rewritten."""
        query = (
            "SELECT relname, relfilenode FROM pg_class WHERE relkind = 'r' AND relnamespace = 'agentos'::regnamespace"
        )
        await migrate(empty.owner, tuple(one for one in packaged() if one.name < "0010"))
        before = {(row["relname"], row["relfilenode"]) for row in await fetch(empty.owner, query)}

        await migrate(empty.owner)

        after = {(row["relname"], row["relfilenode"]) for row in await fetch(empty.owner, query)}
        assert len(before) > 10
        assert before - after == set()

    async def test_what_was_noted_before_there_was_a_chain_is_its_beginning(self, empty: Clone) -> None:
        await migrate(empty.owner, tuple(one for one in packaged() if one.name < "0013"))
        noted = (
            "INSERT INTO agentos.audit_log "
            "(tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id) "
            "SELECT 'tnt_' || t, 'default', 'tnt_acme', 'usr_ann', 'thing.do', CAST(n AS text), '' "
            "FROM unnest(ARRAY['acme', 'globex']) t, generate_series(1, 3) n"
        )
        await execute(empty.superuser, noted)
        await migrate(empty.owner)
        reader = replace(ACME, scopes=frozenset({READ}))

        async with audit.SPEC.open(PostgresConfig(dsn=empty.app), Given(clock=SystemClock())) as log:
            await log.note(ACME, Note(action="thing.later", subject="x"))
            verdict = await checked(log, reader, ACME.tenant, {})

        assert (verdict.bad, verdict.checked) == (None, 4)
        rows = await fetch(empty.superuser, "SELECT tenant_id, seq FROM audit_heads ORDER BY tenant_id")
        assert [(row["tenant_id"], row["seq"]) for row in rows] == [("tnt_acme", 4), ("tnt_globex", 3)]

    async def test_while_a_migration_waits_for_a_lock_nobody_waits_behind_it(self) -> None:
        wider = Migration(name="9998_wider", sql="ALTER TABLE runs ADD COLUMN wider integer")
        async with cloned() as clone, opened(clone) as runs:
            reader = await asyncpg.connect(clone.superuser)
            reading = reader.transaction()
            await reading.start()
            await reader.execute("SELECT count(*) FROM agentos.runs")
            async with anyio.create_task_group() as group:
                group.start_soon(migrate, clone.owner, (*packaged(), wider))
                await until_asked(clone, wider)
                # Far longer than a call may wait for a lock in all.
                for _ in range(30):
                    await runs.create(ACME, new_run())
                    await anyio.sleep(0.1)
                still_waiting = await until_asked(clone, wider)
                await reading.rollback()
            await reader.close()

            assert still_waiting
            assert (
                await fetch(clone.owner, "SELECT name FROM agentos.schema_migrations WHERE name = '9998_wider'")
            ) != []

    async def test_a_service_goes_on_while_its_tables_are_migrated(self) -> None:
        """With statements that it prepared before, on all of its connections."""
        due = (
            Migration(name="9997_wider", sql="ALTER TABLE runs ADD COLUMN wider integer; ALTER TABLE steps ADD a text"),
            Migration(
                name="9998_index",
                sql="-- outside a transaction\nCREATE INDEX CONCURRENTLY runs_wider ON runs (tenant_id, wider, id);\n",
            ),
            Migration(name="9999_still_wider", sql="ALTER TABLE runs ADD COLUMN still_wider integer"),
        )
        done = 0
        migrated = anyio.Event()
        async with cloned() as clone, opened(clone) as runs:

            async def serve(worker: WorkerId) -> None:
                nonlocal done
                after = 3
                while after:
                    await runs.renew(NODE, worker, timedelta(seconds=25))
                    run = (await runs.create(ACME, new_run())).run
                    held = await runs.claim(ACME, run.id, worker)
                    await runs.append(ACME, run.id, held.epoch, SUCCEEDED)
                    await runs.steps(ACME, run.id)
                    await runs.list_runs(ACME, RunFilter(status="succeeded"), limit=5)
                    assert (await runs.load(ACME, run.id)).status == "succeeded"
                    done += 1
                    after -= migrated.is_set()

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    for number in range(4):
                        group.start_soon(serve, WorkerId(f"wrk_{number}"))
                    while done < 12:  # noqa: ASYNC110 - so few looks need no event
                        await anyio.sleep(0.02)
                    applied = await migrate(clone.owner, (*packaged(), *due))
                    migrated.set()

        assert applied == [migration.name for migration in due]


@asynccontextmanager
async def opened(clone: Clone) -> AsyncIterator[RunStatePort]:
    async with run_state.SPEC.open(PostgresConfig(dsn=clone.app), Given(clock=SystemClock())) as runs:
        yield runs


async def built(clone: Clone, *names: str) -> dict[str, bool]:
    """Whether these indexes are valid."""
    rows = await fetch(
        clone.owner, "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    )
    return {row["relname"]: row["indisvalid"] for row in rows if row["relname"] in names}


async def until_asked(clone: Clone, migration: Migration) -> bool:
    """Until the migration is at work, or asks for a lock."""
    query = "SELECT 1 FROM pg_stat_activity WHERE query = $1 AND state = 'active' AND wait_event_type = 'Lock'"
    with anyio.fail_after(20):
        while not await fetch(clone.superuser, query, migration.sql):  # noqa: ASYNC110 - another session's doing
            await anyio.sleep(0.02)
    return True


class TestHistory:
    def test_what_is_not_applied_yet_is_due_in_order(self) -> None:
        assert pending({}, (FIRST, SECOND)) == (FIRST, SECOND)
        assert pending({FIRST.name: FIRST.sha256}, (FIRST, SECOND)) == (SECOND,)

    def test_an_edited_migration_is_refused(self) -> None:
        with pytest.raises(Conflict, match="edited"):
            pending({FIRST.name: "another digest"}, (FIRST,))

    def test_an_unknown_migration_is_refused(self) -> None:
        with pytest.raises(Conflict, match="newer version"):
            pending({"0009_future": "x"}, (FIRST,))

    def test_a_migration_put_before_an_applied_one_is_refused(self) -> None:
        with pytest.raises(Conflict, match="new number"):
            pending({SECOND.name: SECOND.sha256}, (FIRST, SECOND))

    def test_names_are_numbered_without_gaps(self) -> None:
        names = [migration.name for migration in packaged()]

        # Parts of one, such as its indexes, have one number.
        numbers = list(dict.fromkeys(name[:5] for name in names))
        assert names == sorted(names)
        assert numbers == [f"{n:04}_" for n in range(1, len(numbers) + 1)]
