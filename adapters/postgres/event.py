"""EventPort over PostgreSQL: the store is read beyond the cursor, a wake-up says when to look again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final

from adapters.postgres.blobs import leading, whole
from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.errors import Moved
from adapters.postgres.homes import Routed, at_homes
from adapters.postgres.rows import event_of, page_size, position, scope_of
from adapters.postgres.shared_pages import Page, SharedPages
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound
from ports.event import MAX_READ, TERMINAL_EVENTS, Event, EventCapabilities, EventPort
from ports.ids import RunId, uuid_of

_SQL: Final = load("event")
_CAPABILITIES: Final = EventCapabilities(durable=True)
# What a follower has in memory at most.
_FOLLOW_PAGE: Final = 100
_PAGE_BYTES: Final = 4 * 1024 * 1024
"""Of large bodies in what one read gives; a single event may be larger."""


class PostgresEvents:
    """Satisfies `EventPort`."""

    def __init__(self, database: Database, stream_epoch: str) -> None:
        self._database = database
        self._stream_epoch = stream_epoch
        self._pages = SharedPages(lambda auth, run_id, after: self._page(auth, run_id, after, _FOLLOW_PAGE))

    @property
    def capabilities(self) -> EventCapabilities:
        return _CAPABILITIES

    @property
    def stream_epoch(self) -> str:
        return self._stream_epoch

    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        return (await self._page(auth, run_id, after, page_size(limit, MAX_READ))).events

    async def _page(self, auth: AuthContext, run_id: RunId, after: int, limit: int) -> Page:
        found = uuid_of("run", run_id)
        if found is None:
            raise _absent(run_id)
        asked = {**scope_of(auth), "run": found, "after": position(after), "limit": limit}
        async with self._database.transaction(auth.tenant) as transaction:
            found_rows = await transaction.rows(_SQL["read"], asked)
            bounded = leading(found_rows, "data", most=_PAGE_BYTES)
            rows = await whole(transaction, auth.tenant, bounded, ("data",))
        if not rows:
            raise _absent(run_id)
        last: int = rows[0]["last_sequence"]
        if not 0 <= after <= last:
            raise InvalidArgument(f"sequence {after} is not one of this run's; it has 1 to {last}")
        return Page(
            events=tuple(event_of(row) for row in rows if row["event_id"] is not None),
            more=len(rows) == limit or len(rows) < len(found_rows),
        )

    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        with self._database.signals.waiting(run_id, patient=True) as waiter:
            if after > 0:
                reached = await self.read(auth, run_id, after=after - 1, limit=1)
                if reached and reached[0].type in TERMINAL_EVENTS:
                    return
            cursor = after
            while True:
                turn = await self._pages.read(auth, run_id, cursor)
                for event in turn.page.events:
                    yield event
                    if event.type in TERMINAL_EVENTS:
                        return
                    cursor = event.sequence
                # What somebody else began to read may be older than what woke us. A page that is fresh and not full was all
                # there was; what came since has woken the waiter.
                if turn.fresh and not turn.page.more:
                    await waiter.wait()


class RoutedEvents(Routed):
    """Follows a run from home to home. `stream_epoch` is the shared database's: what a client resumes from stays good."""

    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        cursor = after
        while True:
            port = await self.at_home(auth.tenant, _itself)
            try:
                async with aclosing(port.follow(auth, run_id, after=cursor)) as events:
                    async for event in events:
                        yield event
                        cursor = event.sequence
            except Moved:
                # On to where it lives now. That it reads there says `at_home` as well, which waits for that.
                await self.at_home(auth.tenant, _reads(auth, run_id, cursor))
            else:
                return


async def _itself(port: EventPort) -> EventPort:
    return port


def _reads(auth: AuthContext, run_id: RunId, after: int) -> Callable[[EventPort], Awaitable[None]]:
    async def read(port: EventPort) -> None:
        await port.read(auth, run_id, after=after, limit=1)

    return read


def _absent(run_id: RunId) -> NotFound:
    return NotFound(f"there is no run {run_id!r}")


@asynccontextmanager
async def open_event(config: PostgresConfig, _given: Given) -> AsyncIterator[EventPort]:
    async with open_database(config) as database:
        async with database.transaction() as transaction:
            node = await transaction.row(_SQL["stream_epoch"], {})
        assert node is not None, "the first migration makes the row"
        yield PostgresEvents(database, node["stream_epoch"])


SPEC: Final[AdapterSpec[PostgresConfig, EventPort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: _CAPABILITIES, open=at_homes(open_event, RoutedEvents)
)
