"""The places of those who follow a streamed call under a key: as many as follow it, and one while it is at work.

The call itself takes a place before anybody joins it: that is the one of whoever follows it alone, so that a retry finds
room whose client has left. Everybody else takes another, and who still reads when the call is over goes on to hold one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from ports.context import AuthContext
from stack_b.entitlement import TenantCache


class Seat:
    """One listener's place."""

    def __init__(self, tenants: TenantCache, auth: AuthContext) -> None:
        self._tenants = tenants
        self._auth = auth
        self._give_back: Callable[[], None] | None = None
        self.reading = False
        """It was given some of the answer, and may take its time over it."""

    async def take(self) -> None:
        """At most one. Raises `ResourceExhausted` (`concurrency_limited`) where there is none."""
        if self._give_back is None:
            self._give_back = await self._tenants.place(self._auth)

    def keep(self, _: "asyncio.Task[Any]") -> None:
        """The call is over, and its place with it."""
        if self.reading and self._give_back is None:
            self._give_back = self._tenants.place_anyway(self._auth)

    def leave(self) -> None:
        self.reading = False
        if self._give_back is not None:
            self._give_back()


class Seats:
    def __init__(self, tenants: TenantCache) -> None:
        self._tenants = tenants
        self.of_call = tenants.place_in

    @asynccontextmanager
    async def seated(self, auth: AuthContext, call: "asyncio.Task[Any]", *, alone: bool) -> AsyncIterator[Seat]:
        """A block around a listener of `call`. `alone`: nobody else follows it. Raises like `Seat.take`."""
        seat = Seat(self._tenants, auth)
        try:
            if not alone:
                await seat.take()
            call.add_done_callback(seat.keep)
            yield seat
        finally:
            call.remove_done_callback(seat.keep)
            seat.leave()
