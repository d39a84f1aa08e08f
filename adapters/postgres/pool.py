"""Connections that are kept: a pool that gives and takes back one without a turn of the event loop.

The driver's own pool starts a task to take a connection and another to give it back. Each is a turn of the loop more, and
where the loop is busy with one tenant's work, each turn is a wait for everybody else.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg
from msgspec import Struct

IDLE_S: Final = 300.0
"""Unused for so long, or twice that, a connection is closed."""
MOST_USES: Final = 20_000
"""After so many it is closed as well: a session of the server only ever grows."""


class _Kept(Struct, eq=False):
    connection: asyncpg.Connection
    uses: int = 0
    used_at: float = 0.0


class Pool:
    """At most `size` connections, opened where none is free; the one used last is used first.

    `async with pool.acquire() as connection`; who waits is served in the order of coming. Of one event loop.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], *, size: int, patience_s: float) -> None:
        """Who waits `patience_s` for a connection gets a `TimeoutError`."""
        self._connect = connect
        self._size = size
        self._patience_s = patience_s
        self._free: list[_Kept] = []
        self._kept: set[_Kept] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[_Kept | None]] = deque()
        """Those who wait; None says that there is room to open one."""
        self._sweep: asyncio.TimerHandle | None = None
        self._returned = asyncio.Event()
        self._closed = False

    @property
    def size(self) -> int:
        """Connections that are open."""
        return sum(not kept.connection.is_closed() for kept in self._kept)

    def acquire(self) -> "_Acquired":
        return _Acquired(self)

    async def close(self) -> None:
        """When all are back, or at once where this is cancelled."""
        self._closed = True
        try:
            while len(self._free) < len(self._kept) or self._opening:
                self._returned.clear()
                await self._returned.wait()
            for kept in self._free:
                await kept.connection.close()
        finally:
            self.terminate()

    def terminate(self) -> None:
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for kept in self._kept:
            kept.connection.terminate()
        self._kept.clear()
        self._free.clear()

    async def take(self) -> _Kept:
        if self._closed:
            raise asyncpg.InterfaceError("the pool is closed")
        while self._free:
            if not (kept := self._free.pop()).connection.is_closed():
                return kept
            self._kept.discard(kept)
        async with asyncio.timeout(self._patience_s):
            if len(self._kept) + self._opening < self._size:
                self._opening += 1
            elif (handed := await self._handed()) is not None:
                return handed
            return await self._opened()

    def give_back(self, kept: _Kept) -> None:
        kept.uses += 1
        connection = kept.connection
        # A transaction left open is nobody else's; a statement that may still be on its way has closed it already.
        if self._closed or kept.uses >= MOST_USES or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
            self._kept.discard(kept)
            self._make_room()
        elif (waiting := self._next()) is not None:
            waiting.set_result(kept)
        else:
            loop = asyncio.get_running_loop()
            kept.used_at = loop.time()
            self._free.append(kept)
            if self._sweep is None:
                self._sweep = loop.call_later(IDLE_S, self._close_unused)
        self._returned.set()

    async def _handed(self) -> _Kept | None:
        """One that somebody gave back; None: there is room to open one, and it is ours."""
        waiting: asyncio.Future[_Kept | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            handed = await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                # It became ours in the same turn.
                if (unwanted := waiting.result()) is not None:
                    self.give_back(unwanted)
                else:
                    self._opening -= 1
                    self._make_room()
            raise
        if handed is not None and handed.connection.is_closed():
            self._kept.discard(handed)
            self._opening += 1
            return None
        return handed

    async def _opened(self) -> _Kept:
        """In the room that was made for it."""
        try:
            kept = _Kept(await self._connect())
        except BaseException:
            self._opening -= 1
            self._make_room()
            raise
        self._opening -= 1
        self._kept.add(kept)
        return kept

    def _make_room(self) -> None:
        """For whoever waits longest."""
        if (waiting := self._next()) is not None:
            self._opening += 1
            waiting.set_result(None)
        self._returned.set()

    def _next(self) -> asyncio.Future[_Kept | None] | None:
        while self._waiting:
            if not (waiting := self._waiting.popleft()).done():
                return waiting
        return None

    def _close_unused(self) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time() - IDLE_S
        for kept in [kept for kept in self._free if kept.used_at <= since]:
            self._free.remove(kept)
            self._kept.discard(kept)
            kept.connection.terminate()
        self._sweep = loop.call_later(IDLE_S, self._close_unused) if self._free else None


class _Acquired:
    __slots__ = ("_kept", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: _Kept | None = None

    async def __aenter__(self) -> asyncpg.Connection:
        self._kept = await self._pool.take()
        return self._kept.connection

    async def __aexit__(self, *_: object) -> None:
        assert self._kept is not None, "it was entered"
        self._pool.give_back(self._kept)
