"""Event port: a run's events, read in append order after a cursor, and followed live.

Events are written by `RunStatePort` in the transaction of the change they tell of; this port reads them.

Clauses (each has a test in `conformance.event`):

* EVE-1  `read` gives the events after the given sequence, ascending, without gaps, at most `limit`; fewer where they are
         large, so that what it gives stays bounded, but one where there is one. An event of a megabyte reads as written.
* EVE-2  An absent run and another tenant's or namespace's raise the same `NotFound`, word for word.
* EVE-3  `follow` yields every event after the cursor exactly once and in order, those already there and those appended
         while it runs, and ends after the terminal event.
* EVE-4  `follow` from the terminal event yields nothing and ends.
* EVE-5  A sequence beyond the last one, or below 0, raises `InvalidArgument`.
* EVE-6  A follower that does not read holds nothing up: writers go on, and memory stays bounded.
* EVE-7  What was read once reads the same ever after, also by a port opened anew on the same storage.
* EVE-8  `stream_epoch` is the same for every port over the same storage, and differs between storages.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final, Protocol

from msgspec import Struct

from ports.context import AuthContext
from ports.ids import EventId, RunId, TenantId
from ports.messages import Json

TERMINAL_EVENTS: Final = frozenset({"run.completed", "run.failed", "run.cancelled"})

MAX_READ: Final = 1_000


class Event(Struct, frozen=True, kw_only=True):
    event_id: EventId
    run_id: RunId
    tenant_id: TenantId
    sequence: int
    type: str
    time: datetime
    data: dict[str, Json]
    correlation_id: str
    traceparent: str


class EventCapabilities(Struct, frozen=True, kw_only=True):
    durable: bool = False


class EventPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many tasks."""

    @property
    def capabilities(self) -> EventCapabilities: ...

    @property
    def stream_epoch(self) -> str:
        """Names this storage's history; changes when it is restored to an earlier state. 1–32 of `[a-z0-9]`."""
        ...

    async def read(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_READ
    ) -> tuple[Event, ...]: ...

    def follow(self, auth: AuthContext, run_id: RunId, *, after: int = 0) -> AsyncIterator[Event]:
        """Everything after `after`, then live. Close the iterator to stop. Errors are raised by the first step.

        The events may be shared with others who follow the run: they are to be read, not changed.
        """
        ...
