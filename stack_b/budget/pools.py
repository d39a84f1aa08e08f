"""The chunks of this process by what they are for: which one is taken of, and which have something to book."""

import asyncio
from collections.abc import Iterable
from typing import Final

from ports.budget import NOTHING
from stack_b.budget.chunks import REQUESTS, Chunk

FLUSH_EVENTS: Final = 512
"""Of one tenant, that don't wait any longer; and of one chunk, at most in one call."""
EXACT_AT_ONCE: Final = 4
"""Exact holds of one pool under way: they wait for the same row, and should do so here, not on a connection each."""


class Turn:
    """Of whoever leases. When it is over all who waited are told at once: told one after the other, as by a lock, each
    would wait for a turn of the event loop more than the one before."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._over.set()

    def taken(self) -> bool:
        return not self._over.is_set()

    async def over(self) -> None:
        await self._over.wait()

    def __enter__(self) -> None:
        assert not self.taken(), "looked at in the same step"
        self._over.clear()

    def __exit__(self, *_: object) -> None:
        self._over.set()


class Pool:
    """The chunks for one tenant's requests on the same accounts."""

    def __init__(self) -> None:
        self.leasing = Turn()
        self.exact = asyncio.Semaphore(EXACT_AT_ONCE)
        self.current: Chunk | None = None
        self.tight_until = 0.0
        self.waiting = 0
        self.requests = REQUESTS
        self.leased_at = 0.0
        self.ahead: asyncio.Task[None] | None = None
        """Leases the next chunk."""


class Books:
    """One tenant's chunks, and their way to the ledger: one call at a time."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.booking = asyncio.Lock()
        self.due: asyncio.TimerHandle | None = None
        self.full = False
        """There is so much that it is booked at once."""
        self.refused = 0
        """Bookings in a row, each for good."""


def retire(chunks: Iterable[Chunk]) -> None:
    for chunk in chunks:
        chunk.retired = True


def ripe(chunks: Iterable[Chunk], *, least: int = 1) -> dict[Chunk, int]:
    """Those of which there is something to book, with how many events of each. What is over, or can be given back, is so
    in any case; else there are `least` events."""
    return {
        chunk: min(len(chunk.events), FLUSH_EVENTS)
        for chunk in chunks
        if len(chunk.events) >= least or (chunk.retired and (not chunk.requests or chunk.free != NOTHING))
    }
