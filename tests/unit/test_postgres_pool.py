"""The pool of connections, down to the turn of the loop in which one is given back."""

import asyncio
from typing import cast

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from adapters.postgres import pool as module
from adapters.postgres.pool import Pool

pytestmark = pytest.mark.anyio


class Line:
    """A connection as far as a pool is concerned."""

    def __init__(self) -> None:
        self.closed = False
        self.in_transaction = False

    def is_closed(self) -> bool:
        return self.closed

    def is_in_transaction(self) -> bool:
        return self.in_transaction

    def terminate(self) -> None:
        self.closed = True

    async def close(self) -> None:
        self.closed = True


class Server:
    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.refuses = False

    async def connect(self) -> asyncpg.Connection:
        await anyio.lowlevel.checkpoint()
        if self.refuses:
            raise ConnectionRefusedError
        self.lines.append(Line())
        return cast("asyncpg.Connection", self.lines[-1])

    @property
    def open(self) -> int:
        return sum(not line.closed for line in self.lines)


def pool_of(server: Server, size: int = 2, *, patience_s: float = 5.0) -> Pool:
    return Pool(server.connect, size=size, patience_s=patience_s)


async def turns(many: int = 10) -> None:
    for _ in range(many):
        await anyio.lowlevel.checkpoint()


async def test_a_free_connection_is_taken_and_given_back_in_one_turn() -> None:
    server = Server()
    pool = pool_of(server)
    async with pool.acquire():
        pass
    passed: list[int] = []
    asyncio.get_running_loop().call_soon(passed.append, 1)

    async with pool.acquire() as again:
        assert again is cast("asyncpg.Connection", server.lines[0])

    assert passed == []
    assert len(server.lines) == 1


@pytest.mark.parametrize("broken_every", [0, 3])
async def test_never_more_are_open_than_there_may_be_and_everybody_is_served_in_turn(broken_every: int) -> None:
    server = Server()
    pool = pool_of(server)
    served: list[int] = []
    most = 0

    async def use(number: int) -> None:
        nonlocal most
        async with pool.acquire() as line:
            served.append(number)
            most = max(most, server.open)
            await turns(3)
            if broken_every and number % broken_every == 0:
                line.terminate()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(use, number)
        async with pool.acquire(), pool.acquire():
            assert pool.size == 2

    assert most == 2
    # To open one takes its time.
    assert sorted(served) == list(range(20))
    assert broken_every or served == list(range(20))


@pytest.mark.parametrize("broken", [False, True])
async def test_who_leaves_in_the_turn_in_which_it_is_served_takes_nothing_along(broken: bool) -> None:
    server = Server()
    pool = pool_of(server, 1)

    with anyio.fail_after(5):
        async with pool.acquire() as line:
            waiting = asyncio.create_task(pool.take())
            await turns()
            if broken:
                line.terminate()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with pool.acquire():
            assert server.open == 1


async def test_room_that_was_promised_to_one_is_not_taken_by_another() -> None:
    server = Server()
    pool = pool_of(server, 1)
    most = 0

    async def use() -> None:
        nonlocal most
        async with pool.acquire():
            most = max(most, server.open)
            await turns(3)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            async with pool.acquire() as line:
                group.start_soon(use)
                await turns()
                line.terminate()
            # Without a turn in between.
            await use()

    assert most == 1


async def test_who_waits_too_long_is_told_and_the_connection_stays_in_use() -> None:
    pool = pool_of(Server(), 1, patience_s=0.01)

    async with pool.acquire():
        with pytest.raises(TimeoutError):
            await pool.take()

    with anyio.fail_after(5):
        async with pool.acquire():
            assert pool.size == 1


async def test_a_server_that_refuses_leaves_the_room_to_the_next() -> None:
    server = Server()
    server.refuses = True
    pool = pool_of(server, 1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await pool.take()
    server.refuses = False

    with anyio.fail_after(5):
        async with pool.acquire():
            assert pool.size == 1


async def test_a_connection_that_is_closed_in_a_transaction_or_used_often_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    pool = pool_of(server, 1)
    async with pool.acquire():
        pass
    server.lines[0].closed = True
    async with pool.acquire():
        assert len(server.lines) == 2
        server.lines[1].in_transaction = True
    assert server.lines[1].closed
    monkeypatch.setattr(module, "MOST_USES", 1)
    async with pool.acquire():
        assert len(server.lines) == 3

    assert server.lines[2].closed
    assert pool.size == 0


async def test_what_nobody_used_for_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    server = Server()
    pool = pool_of(server)
    async with pool.acquire(), pool.acquire():
        pass

    with anyio.fail_after(5):
        while server.open:
            await anyio.lowlevel.checkpoint()

    assert pool.size == 0


async def test_a_pool_closes_when_all_are_back_and_then_gives_none() -> None:
    server = Server()
    pool = pool_of(server)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, pool.acquire():
            group.start_soon(pool.close)
            await turns()
            assert server.open == 1
    assert server.open == 0
    with pytest.raises(asyncpg.InterfaceError):
        await pool.take()
