"""Migrations are applied once, in order, wholly or not at all; services insist on them."""

from collections.abc import AsyncIterator

import anyio
import asyncpg
import pytest

from adapters.postgres.bootstrap import bootstrap
from adapters.postgres.engine import PostgresConfig, open_database
from adapters.postgres.migrate import Migration, migrate, packaged, pending
from ports.errors import Conflict, Unavailable
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
