"""What somebody else decides about a tenant, remembered for a few seconds."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Final, Generic, TypeVar

from ports.clock import Clock
from ports.context import AuthContext
from ports.ids import TenantId
from ports.shared_reads import SharedReads

AHEAD: Final = timedelta(seconds=2)
"""What is older is read anew, and nobody waits for it."""
STALE: Final = timedelta(seconds=4)
"""What is older is not used any more. Changes take effect within 5 s everywhere; the rest of that is for the reading."""
MAX_TENANTS: Final = 10_000
_AHEAD_S: Final = AHEAD.total_seconds()
_STALE_S: Final = STALE.total_seconds()

ValueT = TypeVar("ValueT")


class Fresh(Generic[ValueT]):
    """One value for each tenant. It is read by one for all who ask, mostly before it is needed: however many requests a
    tenant has under way, they don't all wait for the same row every few seconds.
    """

    def __init__(self, read: Callable[[AuthContext], Awaitable[ValueT]], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._known: OrderedDict[TenantId, tuple[ValueT, float]] = OrderedDict()
        self._reads: SharedReads[TenantId, ValueT] = SharedReads()

    async def of(self, auth: AuthContext) -> ValueT:
        """Raises what reading it raises, where nothing recent enough is known (fail closed)."""
        known = self.at_hand(auth)
        return await self._reads.of(auth.tenant, partial(self._renewed, auth)) if known is None else known[0]

    def at_hand(self, auth: AuthContext) -> tuple[ValueT, float] | None:
        """The value, in a tuple, where nothing has to be waited for: mostly."""
        known = self._known.get(auth.tenant)
        if known is None:
            return None
        age = self._clock.monotonic() - known[1]
        if age >= _AHEAD_S:
            if age >= _STALE_S:
                return None
            self._reads.ahead(auth.tenant, partial(self._renewed, auth))
        return known

    def ahead(self, auth: AuthContext) -> None:
        """Begin to read it where nothing recent enough is known: who will ask for it is waiting for something else."""
        if self.at_hand(auth) is None:
            self._reads.ahead(auth.tenant, partial(self._renewed, auth))

    async def close(self) -> None:
        """Whatever is being read is nobody's any more."""
        await self._reads.close()

    async def _renewed(self, auth: AuthContext) -> ValueT:
        asked_at = self._clock.monotonic()
        value = await self._read(auth)
        self._known[auth.tenant] = (value, asked_at)
        self._known.move_to_end(auth.tenant)
        if len(self._known) > MAX_TENANTS:
            self._known.popitem(last=False)
        return value
