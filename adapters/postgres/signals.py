"""Wake-ups between processes: hints that something changed, never the change itself.

`NOTIFY` inside a write transaction makes all committers queue for one lock, so it never happens there. After its commit the
writer names what changed with `tell`; a task of this process sends what has gathered in one notification. A hint may be
lost, with the connection or the process: whoever waits also looks by itself every second or so.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import asyncpg

CHANNEL: Final = "agentos_wake"
QUEUE: Final = "queue"
"""The topic of every queue; a run's topic is its id."""

# Notifications are at least this far apart: what is told meanwhile goes together with the next.
APART_SECONDS: Final = 0.010
# The server refuses a payload of 8,000 bytes.
_MAX_PAYLOAD_BYTES: Final = 7_900
# How long a waiter trusts in hints before it looks by itself; jittered, so that waiters don't look all at once.
_POLL_SECONDS: Final = (0.5, 1.0)
# The same for those who are many, while hints can be heard: then only a writer that died before it could tell is missed.
_PATIENT_POLL_SECONDS: Final = (10.0, 15.0)
_RECONNECT_SECONDS: Final = (0.1, 1.0)
_CLOSE_SECONDS: Final = 1.0
# What a lost line may raise. The last one is the driver's word for a connection that ended in the middle of a message.
_LOST: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Waiter:
    """Remembers that its topic changed, until somebody looks."""

    def __init__(self, poll: Callable[[], tuple[float, float]]) -> None:
        self._changed = asyncio.Event()
        self._poll = poll

    def wake(self) -> None:
        self._changed.set()

    async def wait(self, at_most: float | None = None) -> None:
        """Until the topic changed since the last `wait`, or it is time to look anyway."""
        poll = random.uniform(*self._poll())  # noqa: S311 - spreads load, guards nothing
        with suppress(TimeoutError):
            async with asyncio.timeout(poll if at_most is None else min(poll, at_most)):
                await self._changed.wait()
        self._changed.clear()


class Signals:
    """One line of hints: a connection of its own, opened at the first use."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._waiters: dict[str, set[Waiter]] = {}
        self._unsent: set[str] = set()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listening = False

    def tell(self, topic: str) -> None:
        """`topic` changed and the change is committed. Never blocks, never fails."""
        self.wake(topic)
        self._unsent.add(topic)
        self._wanted.set()
        self._run()

    def wake(self, topic: str) -> None:
        """Those who wait in this process: others have been told."""
        for waiter in self._waiters.get(topic, ()):
            waiter.wake()

    @contextmanager
    def waiting(self, topic: str, *, patient: bool = False) -> Iterator[Waiter]:
        """A waiter for `topic`. Look at the truth after entering, not before: then no change is missed.

        A `patient` one looks by itself less often, for as long as hints can be heard.
        """
        waiter = Waiter(lambda: _PATIENT_POLL_SECONDS if patient and self._listening else _POLL_SECONDS)
        self._waiters.setdefault(topic, set()).add(waiter)
        self._run()
        try:
            yield waiter
        finally:
            self._waiters[topic].discard(waiter)
            if not self._waiters[topic]:
                del self._waiters[topic]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def _run(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name="postgres-signals")

    async def _serve(self) -> None:
        while True:
            with suppress(*_LOST):
                await self._serve_one_connection()
            await asyncio.sleep(random.uniform(*_RECONNECT_SECONDS))  # noqa: S311 - spreads load, guards nothing

    async def _serve_one_connection(self) -> None:
        connection = await self._connect()
        try:
            connection.add_termination_listener(lambda _: self._wanted.set())
            # A notification is a write to the server. Nobody has to wait for its disk.
            await connection.execute("SET synchronous_commit = off")
            await connection.add_listener(CHANNEL, self._heard)
            self._listening = True
            # Nobody knows what was told before: everybody looks.
            self._wake_everybody()
            while not connection.is_closed():
                await self._wanted.wait()
                self._wanted.clear()
                taken = self._take_unsent()
                try:
                    for payload in payloads(taken):
                        await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
                except _LOST:
                    # Told over the next connection: once too often does no harm.
                    self._unsent |= taken
                    self._wanted.set()
                    raise
                await asyncio.sleep(APART_SECONDS)
        finally:
            self._listening = False
            # From now on they look more often.
            self._wake_everybody()
            # Bounded, and at once where the server does not answer.
            try:
                await connection.close(timeout=_CLOSE_SECONDS)
            except _LOST:
                connection.terminate()

    def _wake_everybody(self) -> None:
        for topic in list(self._waiters):
            self.wake(topic)

    def _take_unsent(self) -> set[str]:
        taken, self._unsent = self._unsent, set()
        return taken

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        for topic in str(payload).split(" "):
            self.wake(topic)


def payloads(topics: set[str]) -> list[str]:
    """`topics`, separated by spaces, in as few pieces as the server takes."""
    pieces: list[str] = []
    piece = ""
    for topic in sorted(topics):
        longer = f"{piece} {topic}".lstrip()
        if len(longer) > _MAX_PAYLOAD_BYTES:
            pieces.append(piece)
            longer = topic
        piece = longer
    return [*pieces, piece] if piece else []
