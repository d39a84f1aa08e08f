"""Wake-ups cross processes, and what waits does not depend on them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from adapters.postgres import event, queue, run_state, signals
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.event import PostgresEvents
from adapters.system_clock import SystemClock
from conformance.factories import SUCCEEDED, new_run
from conformance.people import ACME, NODE
from ports.adapter import Given
from ports.event import Event, EventPort
from ports.ids import WorkerId
from ports.queue import Delivery, QueuePort
from ports.run_state import RunStatePort
from tests.support.postgres import Clone, borrow, execute, fetch, give_back

PATIENCE_S: Final = 10
NEVER: Final = (3_600.0, 3_600.0)
WORKER: Final = WorkerId("wrk_signals")
HOUR: Final = timedelta(hours=1)


class Process:
    """Ports with a pool and a line of wake-ups of their own, like another process on the same database."""

    def __init__(self, runs: RunStatePort, events: EventPort, messages: QueuePort) -> None:
        self.runs, self.events, self.queue = runs, events, messages


@pytest.fixture
async def clone() -> AsyncIterator[Clone]:
    borrowed = await borrow()
    yield borrowed
    await give_back(borrowed)


@pytest.fixture
async def two(clone: Clone) -> AsyncIterator[tuple[Process, Process]]:
    given = Given(clock=SystemClock())
    async with AsyncExitStack() as stack:
        made = []
        for size in (4, 5):
            # Another pool size is another pool.
            config = PostgresConfig(dsn=clone.app, pool_size=size)
            runs = await stack.enter_async_context(run_state.SPEC.open(config, given))
            events = await stack.enter_async_context(event.SPEC.open(config, given))
            messages = await stack.enter_async_context(queue.SPEC.open(config, given))
            made.append(Process(runs, events, messages))
        yield made[0], made[1]


async def listening(clone: Clone, count: int) -> None:
    """Until so many sessions listen."""
    query = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    while (await fetch(clone.superuser, query))[0]["n"] < count:
        await anyio.lowlevel.checkpoint()


def watched(monkeypatch: pytest.MonkeyPatch) -> list[signals.Waiter]:
    """Grows by a waiter each time one begins to wait."""
    seen: list[signals.Waiter] = []
    wait = signals.Waiter.wait

    async def noted(waiter: signals.Waiter, at_most: float | None = None) -> None:
        seen.append(waiter)
        await wait(waiter, at_most)

    monkeypatch.setattr(signals.Waiter, "wait", noted)
    return seen


@pytest.mark.anyio
class TestSignals:
    async def test_an_event_written_elsewhere_wakes_a_follower(
        self, clone: Clone, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals, "_POLL_SECONDS", NEVER)
        monkeypatch.setattr(signals, "_PATIENT_POLL_SECONDS", NEVER)
        here, there = two
        run = (await there.runs.create(ACME, new_run())).run
        await there.runs.renew(NODE, WORKER, HOUR)
        seen: list[str] = []

        async def follow() -> None:
            seen.extend([one.type async for one in here.events.follow(ACME, run.id)])

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(follow)
                await listening(clone, 1)
                claimed = await there.runs.claim(ACME, run.id, WORKER)
                await there.runs.append(ACME, run.id, claimed.epoch, SUCCEEDED)

        assert seen == ["run.created", "run.started", "run.completed"]

    async def test_a_message_enqueued_elsewhere_wakes_whoever_waits_to_lease(
        self, clone: Clone, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals, "_POLL_SECONDS", NEVER)
        waits = watched(monkeypatch)
        here, there = two
        got: list[Delivery] = []

        async def lease() -> None:
            got.extend(await here.queue.lease(NODE, limit=1, duration=HOUR, wait=HOUR))

        with anyio.fail_after(PATIENCE_S):
            for body in (b"while the line is built", b"over the line"):
                async with anyio.create_task_group() as group:
                    before = len(waits)
                    group.start_soon(lease)
                    await listening(clone, 1)
                    while len(waits) == before:
                        await anyio.lowlevel.checkpoint()
                    await there.queue.enqueue(ACME, body)

        assert [one.body for one in got] == [b"while the line is built", b"over the line"]

    async def test_a_process_looks_for_messages_no_more_often_than_it_may(self, two: tuple[Process, Process]) -> None:
        here, there = two
        await here.queue.lease(NODE, limit=1, duration=HOUR)
        await there.queue.enqueue(ACME, b"one")
        began = anyio.current_time()

        for _ in range(4):
            await here.queue.lease(NODE, limit=1, duration=HOUR)

        # The first of them may go at once, by when it comes.
        assert anyio.current_time() - began >= 3 * queue.LOOKS_APART_S

    async def test_a_look_for_idle_tenants_is_not_kept_apart_from_one_for_anybody(
        self, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = two
        await there.queue.enqueue(ACME, b"one")
        await here.queue.lease(NODE, limit=1, duration=HOUR, idle_only=True)
        monkeypatch.setattr(queue, "LOOKS_APART_S", 3_600.0)

        with anyio.fail_after(PATIENCE_S):
            await here.queue.lease(NODE, limit=1, duration=HOUR)
            await here.queue.lease(NODE, limit=1, duration=HOUR, idle_only=True)

    async def test_two_looks_for_idle_tenants_may_follow_at_once_and_no_more(
        self, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, _ = two
        began = anyio.current_time()
        for _ in range(5):
            await here.queue.lease(NODE, limit=1, duration=HOUR, idle_only=True)
        assert anyio.current_time() - began >= 3 * queue.LOOKS_APART_S

        # A moment later, the next two do.
        while anyio.current_time() < began + 10 * queue.LOOKS_APART_S:
            await anyio.lowlevel.checkpoint()
        monkeypatch.setattr(queue, "LOOKS_APART_S", 3_600.0)
        with anyio.fail_after(PATIENCE_S):
            for _ in range(2):
                await here.queue.lease(NODE, limit=1, duration=HOUR, idle_only=True)

    async def test_a_message_and_its_wake_up_are_sent_as_one(
        self, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = two
        monkeypatch.setattr(signals, "_POLL_SECONDS", NEVER)
        sent: list[str] = []
        execute = asyncpg.Connection.execute

        async def noting(connection: asyncpg.Connection, query: str, *values: object, **more: Any) -> str:
            sent.append(query)
            return await execute(connection, query, *values, **more)

        await there.queue.enqueue(ACME, b"the connection is opened, and knows the statement")
        await here.queue.lease(NODE, limit=1, duration=HOUR)
        got: list[Delivery] = []

        async def lease() -> None:
            got.extend(await here.queue.lease(NODE, limit=1, duration=HOUR, wait=HOUR))

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(lease)
                await anyio.lowlevel.checkpoint()
                monkeypatch.setattr(asyncpg.Connection, "execute", noting)
                await there.queue.enqueue(ACME, b"'; DROP TABLE runs; --")

        assert [one.body for one in got] == [b"'; DROP TABLE runs; --"]
        [message] = [query for query in sent if "EXECUTE" in query]
        assert message.startswith("BEGIN; SET LOCAL app.tenant_id = 'tnt_acme'; EXECUTE ")
        # In a transaction of its own: inside the other its lock would be in everybody's way.
        assert message.endswith("; COMMIT; SELECT pg_notify(E'agentos_wake', E'queue')")

    async def test_lost_wake_ups_cost_a_moment_and_nothing_else(
        self, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals.Signals, "tell", lambda _self, _topic: None)
        monkeypatch.setattr(signals, "_PATIENT_POLL_SECONDS", (0.1, 0.2))
        here, there = two
        run = (await there.runs.create(ACME, new_run())).run
        seen: list[str] = []

        async def follow() -> None:
            async for one in here.events.follow(ACME, run.id):
                seen.append(one.type)  # noqa: PERF401 - the main task looks at what was seen so far

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(follow)
                while not seen:
                    await anyio.lowlevel.checkpoint()
                await there.runs.cancel(ACME, run.id, reason="enough")

        assert seen == ["run.created", "run.cancelled"]

    async def test_a_line_that_breaks_is_built_anew(
        self, clone: Clone, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals, "_POLL_SECONDS", NEVER)
        here, there = two
        got: list[Delivery] = []

        async def lease() -> None:
            got.extend(await here.queue.lease(NODE, limit=1, duration=HOUR, wait=HOUR))

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(lease)
                await listening(clone, 1)
                await execute(
                    clone.superuser,
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND query LIKE 'LISTEN%'",
                )
                await there.queue.enqueue(ACME, b"work")

        assert [one.body for one in got] == [b"work"]

    async def test_hints_of_a_broken_line_are_sent_over_the_next_one(
        self, clone: Clone, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals, "_POLL_SECONDS", NEVER)
        monkeypatch.setattr(signals, "_PATIENT_POLL_SECONDS", NEVER)
        here, there = two
        run = (await there.runs.create(ACME, new_run())).run
        seen: list[str] = []
        sends = 0
        send = asyncpg.Connection.execute

        async def broken_once(connection: asyncpg.Connection, query: str, *values: object, **more: Any) -> str:
            nonlocal sends
            if "pg_notify" in query:
                sends += 1
                if sends == 1:
                    raise asyncpg.ConnectionDoesNotExistError
            return await send(connection, query, *values, **more)

        async def follow() -> None:
            seen.extend([one.type async for one in here.events.follow(ACME, run.id)])

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(follow)
                await listening(clone, 1)
                monkeypatch.setattr(asyncpg.Connection, "execute", broken_once)
                await there.runs.cancel(ACME, run.id, reason="enough")

        assert seen == ["run.created", "run.cancelled"]
        assert sends >= 2

    async def test_followers_that_wake_together_read_together(
        self, two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, _ = two
        run = (await here.runs.create(ACME, new_run())).run
        reads = 0
        read = PostgresEvents.read

        async def counted(port: PostgresEvents, *asked: Any, **more: Any) -> tuple[Event, ...]:
            nonlocal reads
            reads += 1
            return await read(port, *asked, **more)

        seen: list[list[str]] = []

        async def follow() -> None:
            seen.append([one.type async for one in here.events.follow(ACME, run.id)])

        monkeypatch.setattr(PostgresEvents, "read", counted)
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(follow)
                await anyio.sleep(0.3)
                before = reads
                await here.runs.cancel(ACME, run.id, reason="enough")

        assert seen == [["run.created", "run.cancelled"]] * 50
        assert reads - before <= 5

    async def test_a_line_that_the_driver_lost_track_of_is_built_anew(self) -> None:
        attempts = 0
        again = anyio.Event()

        async def connect() -> asyncpg.Connection:
            nonlocal attempts
            attempts += 1
            if attempts > 1:
                again.set()
            raise asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")

        line = signals.Signals(connect)
        line.tell("run_x")
        with anyio.fail_after(5):
            await again.wait()
        await line.close()

        assert attempts > 1

    async def test_no_write_transaction_notifies(self, clone: Clone) -> None:
        rows = await fetch(
            clone.superuser, "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'agentos'::regnamespace"
        )
        statements: list[Any] = [
            *run_state._SQL.values(), *queue._SQL.values(), *event._SQL.values(), *(row["prosrc"] for row in rows)
        ]  # fmt: skip

        assert [one for one in statements if "notify" in str(one).lower()] == []


class TestPayloads:
    def test_topics_go_together_as_far_as_the_server_takes_them(self) -> None:
        topics = {f"run_{n:032x}" for n in range(500)}

        pieces = signals.payloads(topics)

        assert len(pieces) == 3
        assert all(len(piece) < 8_000 for piece in pieces)
        assert {topic for piece in pieces for topic in piece.split(" ")} == topics

    def test_nothing_to_tell_is_no_payload(self) -> None:
        assert signals.payloads(set()) == []
