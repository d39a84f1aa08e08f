"""What somebody else decides about a tenant, remembered for a few seconds."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final, Generic, TypeVar

from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.ids import TenantId
from stack_b.replay import again

AHEAD: Final = timedelta(seconds=2)
"""What is older is read anew, and nobody waits for it."""
STALE: Final = timedelta(seconds=4)
"""What is older is not used any more. Changes take effect within 5 s everywhere; the rest of that is for the reading."""
MAX_TENANTS: Final = 10_000

ValueT = TypeVar("ValueT")


class Fresh(Generic[ValueT]):
    """One value for each tenant. It is read by one for all who ask, mostly before it is needed: however many requests a
    tenant has under way, they don't all wait for the same row every few seconds.
    """

    def __init__(self, read: Callable[[AuthContext], Awaitable[ValueT]], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._known: OrderedDict[TenantId, tuple[ValueT, float]] = OrderedDict()
        self._reading: dict[TenantId, asyncio.Future[AgentOSError | None]] = {}
        self._ahead: set[asyncio.Task[None]] = set()

    async def of(self, auth: AuthContext) -> ValueT:
        """Raises what reading it raises, where nothing recent enough is known (fail closed)."""
        while True:
            known = self._known.get(auth.tenant)
            age = math.inf if known is None else self._clock.monotonic() - known[1]
            reading = self._reading.get(auth.tenant)
            if known is not None and age < STALE.total_seconds():
                if reading is None and age >= AHEAD.total_seconds():
                    self._renew_ahead(auth)
                return known[0]
            if reading is None:
                return await self._renewed(auth, self._begun(auth))
            error = await asyncio.shield(reading)
            if error is not None:
                raise again(error)

    async def close(self) -> None:
        """Whatever is being read ahead is nobody's any more."""
        for task in self._ahead:
            task.cancel()
        if self._ahead:
            await asyncio.wait(self._ahead)

    def _renew_ahead(self, auth: AuthContext) -> None:
        told = self._begun(auth)

        async def renew() -> None:
            # Who needs it tries again, and is told.
            with suppress(AgentOSError):
                await self._renewed(auth, told)

        task = asyncio.create_task(renew())
        self._ahead.add(task)
        task.add_done_callback(self._ahead.discard)
        # Also where it was cancelled before its first step.
        task.add_done_callback(lambda _: self._over(auth, told, None))

    def _begun(self, auth: AuthContext) -> asyncio.Future[AgentOSError | None]:
        told = self._reading[auth.tenant] = asyncio.get_running_loop().create_future()
        return told

    async def _renewed(self, auth: AuthContext, told: asyncio.Future[AgentOSError | None]) -> ValueT:
        asked_at = self._clock.monotonic()
        failure: AgentOSError | None = None
        try:
            value = await self._read(auth)
        except AgentOSError as error:
            failure = error
            raise
        else:
            self._known[auth.tenant] = (value, asked_at)
            self._known.move_to_end(auth.tenant)
            if len(self._known) > MAX_TENANTS:
                self._known.popitem(last=False)
            return value
        finally:
            self._over(auth, told, failure)

    def _over(self, auth: AuthContext, told: asyncio.Future[AgentOSError | None], failure: AgentOSError | None) -> None:
        """Tell who waits: where nothing was read because the reader left, the next one reads."""
        if not told.done():
            del self._reading[auth.tenant]
            told.set_result(failure)
