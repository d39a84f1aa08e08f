"""EventPort in this process, over the runs of the same storage."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import InprocConfig, Store, own, page_size, store
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.event import MAX_READ, TERMINAL_EVENTS, Event, EventCapabilities, EventPort
from ports.ids import RunId


class InprocEvents:
    """Satisfies `EventPort`. A follower keeps a cursor and nothing else, so a slow one costs nothing."""

    def __init__(self, storage: Store) -> None:
        self._store = storage
        self._runs = storage.table(Runs)

    @property
    def capabilities(self) -> EventCapabilities:
        return EventCapabilities()

    @property
    def stream_epoch(self) -> str:
        return self._store.epoch

    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]:
        row = self._runs.row(auth, run_id)
        check_cursor(row, after)
        return own(tuple(row.events[after : after + page_size(limit, MAX_READ)]))

    async def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        row = self._runs.row(auth, run_id)
        check_cursor(row, after)
        position = after
        while True:
            while position < len(row.events):
                event = row.events[position]
                position += 1
                yield own(event)
            if row.events[-1].type in TERMINAL_EVENTS:
                return
            await row.changed.wait()


def check_cursor(row: RunRow, after: int) -> None:
    if not 0 <= after <= len(row.events):
        raise InvalidArgument(f"sequence {after} is not one of this run's; it has 1 to {len(row.events)}")


@asynccontextmanager
async def open_event(config: InprocConfig, _given: Given) -> AsyncIterator[EventPort]:
    yield InprocEvents(store(config.name))


SPEC: Final[AdapterSpec[InprocConfig, EventPort]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: EventCapabilities(), open=open_event
)
