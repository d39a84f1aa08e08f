"""One pool per process and configuration; a database that goes away is a quick, retryable refusal, and then works again."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from typing import Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import psutil
import pytest

from adapters.postgres import event, queue, run_state
from adapters.postgres.engine import CONNECT_SECONDS, Database, PostgresConfig, open_database
from adapters.postgres.rows import Row, packed
from adapters.postgres.statements import constant, statement
from adapters.system_clock import SystemClock
from conformance.factories import new_run
from conformance.people import ACME, NODE
from deploy import embedded_postgres as embedded
from ports.adapter import Given
from ports.errors import Internal, Unavailable
from ports.ids import RunId, WorkerId
from tests.support.ports import free_port
from tests.support.postgres import Clone, borrow, execute, fetch, give_back
from tests.support.postgres_node import Node

# The adapters' own deadline of 4.5 s, and room for a busy machine.
PATIENCE_S: Final = 20
ONE: Final = statement("SELECT 1 AS one")


@pytest.fixture
async def clone() -> AsyncIterator[Clone]:
    borrowed = await borrow()
    yield borrowed
    await give_back(borrowed)


async def connections(clone: Clone) -> int:
    [row] = await fetch(
        clone.superuser,
        "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND usename = 'ao_app'",
    )
    count: int = row["n"]
    return count


async def one(database: Database) -> int:
    async with database.transaction(ACME.tenant) as transaction:
        row = await transaction.row(ONE, {})
    assert row is not None
    answer: int = row["one"]
    return answer


@pytest.mark.anyio
class TestPool:
    async def test_ports_configured_alike_share_one_pool(self, clone: Clone) -> None:
        config = PostgresConfig(dsn=clone.app, pool_size=3)
        given = Given(clock=SystemClock())
        async with AsyncExitStack() as stack:
            runs = await stack.enter_async_context(run_state.SPEC.open(config, given))
            await stack.enter_async_context(event.SPEC.open(config, given))
            messages = await stack.enter_async_context(queue.SPEC.open(config, given))

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(runs.create, ACME, new_run())
                    group.start_soon(messages.enqueue, ACME, b"work")
            used = await connections(clone)

        # Three, and the one that carries wake-ups.
        assert used <= 4

    async def test_the_last_port_closes_the_pool(self, clone: Clone) -> None:
        config = PostgresConfig(dsn=clone.app)
        async with open_database(config) as outer:
            async with open_database(config) as inner:
                assert inner is outer
            assert await one(outer) == 1

        with anyio.fail_after(PATIENCE_S):
            while await connections(clone) > 0:
                await anyio.lowlevel.checkpoint()

    async def test_an_exhausted_pool_is_unavailable(self, clone: Clone) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with open_database(PostgresConfig(dsn=clone.app, pool_size=1)) as database:
                async with database.transaction(ACME.tenant):
                    with pytest.raises(Unavailable):
                        await one(database)

                assert await one(database) == 1

    async def test_a_worker_renews_its_lease_while_every_connection_of_the_pool_is_taken(self, clone: Clone) -> None:
        config = PostgresConfig(dsn=clone.app, pool_size=1)
        async with (
            run_state.SPEC.open(config, Given(clock=SystemClock())) as runs,
            open_database(config) as database,
            database.transaction(ACME.tenant),
        ):
            with anyio.fail_after(CONNECT_SECONDS):
                renewal = await runs.renew(NODE, WorkerId("wrk_busy"), timedelta(seconds=25))

        assert renewal.cancel_requested == frozenset()

    async def test_a_connection_the_server_closed_is_replaced_unseen(self, clone: Clone) -> None:
        async with open_database(PostgresConfig(dsn=clone.app, pool_size=2)) as database:
            assert await one(database) == 1
            await execute(
                clone.superuser,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND usename = 'ao_app'",
            )
            with anyio.fail_after(PATIENCE_S):
                while database.pool.size > 0:
                    await anyio.lowlevel.checkpoint()

            answers = [await one(database) for _ in range(4)]

        assert answers == [1, 1, 1, 1]

    async def test_settings_that_bound_every_session_are_in_force(self, clone: Clone) -> None:
        wanted = {
            "statement_timeout": "5s",
            "lock_timeout": "2s",
            "idle_in_transaction_session_timeout": "10s",
            "TimeZone": "UTC",
            "search_path": "agentos",
        }
        query = statement(
            "SELECT name, current_setting(name) AS value FROM pg_settings WHERE name IN "
            "('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'TimeZone', 'search_path')"
        )
        async with (
            open_database(PostgresConfig(dsn=clone.app)) as database,
            database.transaction(ACME.tenant) as transaction,
        ):
            rows = await transaction.rows(query, {})

        assert {row["name"]: row["value"] for row in rows} == wanted

    async def test_only_a_pool_that_says_so_does_not_wait_for_the_disk(self, clone: Clone) -> None:
        await execute(clone.superuser, "ALTER ROLE ao_app SET synchronous_commit = remote_apply")
        query = statement("SELECT current_setting('synchronous_commit') AS value")
        found: list[Row] = []
        try:
            for flushed in (True, False):
                async with open_database(PostgresConfig(dsn=clone.app), flushed=flushed) as database:
                    async with database.transaction(ACME.tenant) as transaction:
                        found += await transaction.rows(query, {})
                    found += await database.once(query, {})
        finally:
            await execute(clone.superuser, "ALTER ROLE ao_app RESET synchronous_commit")

        assert [row["value"] for row in found] == ["remote_apply", "remote_apply", "off", "off"]

    async def test_a_statement_by_itself_is_nobodys_and_sees_nothing(self, clone: Clone) -> None:
        await execute(
            clone.superuser,
            "INSERT INTO agentos.queue_turns (tenant_id, vtime, next_at, served_at) "
            f"VALUES ('{ACME.tenant}', 0, now(), now())",
        )
        query = statement("SELECT tenant_id FROM queue_turns")
        async with open_database(PostgresConfig(dsn=clone.app, pool_size=1)) as database:
            async with database.transaction(ACME.tenant) as transaction:
                assert len(await transaction.rows(query, {})) == 1
            # Also on a connection that was somebody's before.
            assert await database.once(query, {}) == []


@pytest.mark.anyio
class TestPosting:
    @pytest.mark.parametrize("conforming", ["on", "off"])
    async def test_any_text_is_a_constant_and_nothing_else(self, clone: Clone, conforming: str) -> None:
        texts = ["", "it's", "'", "''", "\\", "\\'", "\\\\' OR 1=1; --", "$1 $$ :name", '{"a": "\\u0000"}', "ünï😀\n"]
        [row] = await fetch(
            clone.superuser,
            f"SELECT set_config('standard_conforming_strings', '{conforming}', false), "
            + ", ".join(f"{constant(text)} AS t{number}" for number, text in enumerate(texts)),
        )
        assert [row[f"t{number}"] for number in range(len(texts))] == texts

    def test_no_constant_ends_a_statement_early(self) -> None:
        with pytest.raises(ValueError, match="NUL"):
            constant("a\0b")

    async def test_what_is_posted_is_bound_to_its_tenant_and_kept_whole_or_not_at_all(self, clone: Clone) -> None:
        put = statement(
            "INSERT INTO agents (tenant_id, namespace, id, version, digest, spec) "
            "SELECT a.tenant, 'default', a.id, 1, 'x', '{}' "
            "FROM json_to_recordset(CAST(:asks AS json)) AS a (tenant text, id text)"
        )
        async with open_database(PostgresConfig(dsn=clone.app, pool_size=1)) as database:

            async def post(*tenants: str) -> None:
                asks = [{"tenant": tenant, "id": f"agt_{number}"} for number, tenant in enumerate(tenants)]
                async with database.transaction(ACME.tenant) as transaction:
                    await transaction.post(put, packed(asks), wake="x")

            for _ in range(2):
                with pytest.raises(Internal, match="42501"):
                    await post(ACME.tenant, "tnt_globex")
            await post(ACME.tenant)
            # The connection is as good as before.
            assert await one(database) == 1

        rows = await fetch(clone.superuser, "SELECT tenant_id FROM agentos.agents")
        assert [row["tenant_id"] for row in rows] == [ACME.tenant]


@contextmanager
def stopped(layout: embedded.Layout) -> Iterator[None]:
    """Every process of the server gets SIGSTOP, and SIGCONT at the end."""
    server = embedded.server_process(layout)
    assert server is not None
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            try:
                process.resume()
            except psutil.NoSuchProcess:
                continue


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("outage") / "postgres")
    made.start()
    made.set_up()
    yield made
    made.end()


@pytest.mark.anyio
class TestOutages:
    async def test_a_stalled_server_is_refused_in_time_and_works_again_after(self, node: Node) -> None:
        given = Given(clock=SystemClock())
        async with run_state.SPEC.open(PostgresConfig(dsn=node.server.dsn("ao_app")), given) as runs:
            run = (await runs.create(ACME, new_run())).run

            with stopped(node.server.layout), anyio.fail_after(PATIENCE_S), pytest.raises(Unavailable) as refusal:
                await runs.load(ACME, run.id)
            with anyio.fail_after(PATIENCE_S):
                again = await runs.load(ACME, run.id)

        assert refusal.value.retryable
        assert again == run

    async def test_a_follower_outlives_a_restart_of_the_server(self, node: Node) -> None:
        config, given = PostgresConfig(dsn=node.server.dsn("ao_app")), Given(clock=SystemClock())
        async with run_state.SPEC.open(config, given) as runs, event.SPEC.open(config, given) as events:
            run = (await runs.create(ACME, new_run())).run
            seen: list[str] = []

            async def follow(run_id: RunId) -> None:
                position = 0
                while not seen or seen[-1] != "run.cancelled":
                    try:
                        async for one in events.follow(ACME, run_id, after=position):
                            seen.append(one.type)
                            position = one.sequence
                    except Unavailable:
                        await anyio.lowlevel.checkpoint()

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as group:
                    group.start_soon(follow, run.id)
                    while not seen:
                        await anyio.lowlevel.checkpoint()
                    await anyio.to_thread.run_sync(node.stop)
                    await anyio.to_thread.run_sync(node.start)
                    await runs.cancel(ACME, run.id, reason="enough")

        assert seen == ["run.created", "run.cancelled"]

    async def test_a_server_that_is_not_there_is_unavailable(self) -> None:
        dsn = f"postgresql://ao_app:x@127.0.0.1:{free_port()}/agentos"

        with anyio.fail_after(PATIENCE_S), pytest.raises(Unavailable):
            async with open_database(PostgresConfig(dsn=dsn)):
                pass

    async def test_a_lock_held_too_long_is_unavailable(self, clone: Clone) -> None:
        given = Given(clock=SystemClock())
        async with run_state.SPEC.open(PostgresConfig(dsn=clone.app), given) as runs:
            run = (await runs.create(ACME, new_run())).run
            async with (
                open_database(PostgresConfig(dsn=clone.app, pool_size=1)) as other,
                other.transaction(ACME.tenant) as transaction,
            ):
                await transaction.rows(statement("SELECT 1 FROM runs WHERE tenant_id = 'tnt_acme' FOR UPDATE"), {})

                with anyio.fail_after(PATIENCE_S), pytest.raises(Unavailable):
                    await runs.cancel(ACME, run.id, reason="blocked")

            assert (await runs.cancel(ACME, run.id, reason="free")).status == "cancelled"
