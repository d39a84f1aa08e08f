"""The connections to one backend: kept while they are of use, never more than a limit, the last one used first."""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable
from typing import Final

from stack_b.backends.connection import Answer, Connection, NoRoom, NotConnected, Patience
from stack_b.backends.dial import Dial
from stack_b.backends.known_answer import KnownAnswers

MOST: Final = 1_024
KEPT: Final = 128
"""Idle ones; more than that are closed."""
IDLE_S: Final = 30.0
ROOM_S: Final = 5.0
"""How long a call waits for one of them to be free."""


class Pool:
    """Safe to use from many tasks of one loop. Contacts nobody until it is asked to."""

    def __init__(
        self,
        dial: Dial,
        *,
        connect_s: float,
        most: int = MOST,
        kept: int = KEPT,
        idle_s: float = IDLE_S,
        room_s: float = ROOM_S,
    ) -> None:
        self._dial = dial
        self._connect_s = connect_s
        self._most = most
        self._kept = kept
        self._idle_s = idle_s
        self._room_s = room_s
        self.answers = KnownAnswers()
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._emptied = asyncio.Event()

    def ask(self, request: bytes, patience: Patience) -> Awaitable[Answer]:
        """The answer's head to `request`, on a connection that nobody else uses until the answer is released.

        A connection whose end is known is passed over, before anything is sent. What was sent is never sent again: only
        the backend knows whether it acted.

        Raises:
            ExchangeError: `NotConnected` and `NoRoom` say that nothing was sent.
        """
        connection = self._take()
        return self._asked_anew(request, patience) if connection is None else connection.ask(request, patience)

    def idle(self) -> Connection | None:
        """A connection that is free now, nobody else's until an answer of it is released, or it is `freed`."""
        return None if self._closed else self._take()

    async def _asked_anew(self, request: bytes, patience: Patience) -> Answer:
        return await (await self._opened()).ask(request, patience)

    async def aclose(self) -> None:
        """End all calls under way."""
        self._closed = True
        for connection in tuple(self._open):
            connection.abort()
        while self._waiting:
            self._next_in_line()
        if self._open:
            await self._emptied.wait()

    def freed(self, connection: Connection) -> None:
        if self._closed or len(self._idle) >= self._kept:
            connection.abort()
            return
        self._idle.append(connection)
        if self._waiting:
            self._next_in_line()

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._closed and not self._open:
            self._emptied.set()
        self._next_in_line()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.abort()
        return None

    async def _opened(self) -> Connection:
        """A free connection, or a new one where there is room."""
        try:
            async with asyncio.timeout(self._room_s):
                while len(self._open) + self._opening >= self._most and not self._closed:
                    await self._turn()
                    if connection := self._take():
                        return connection
        except TimeoutError:
            raise NoRoom("all connections are in use") from None
        if self._closed:
            raise NotConnected("it is closed")
        return await self._connected()

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        self._opening += 1
        try:
            async with asyncio.timeout(self._connect_s):
                connection = await self._dial(lambda: Connection(self, idle_s=self._idle_s, loop=loop))
            if connection.ended:
                raise NotConnected("it closes connections at once")
            self._open.add(connection)
        except ssl.SSLCertVerificationError as error:
            raise NotConnected("its certificate is not trusted") from error
        except OSError as error:  # TimeoutError, too
            raise NotConnected("it can't be reached") from error
        finally:
            self._opening -= 1
            if self._opening + len(self._open) < self._most:
                self._next_in_line()
        if self._closed:
            connection.abort()
            raise NotConnected("it is closed")
        return connection

    async def _turn(self) -> None:
        """Until a connection is free or gone."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It was this one's turn: somebody else's now.
                self._next_in_line()
            raise

    def _next_in_line(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
