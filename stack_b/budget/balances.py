"""What this process last knew of each tenant's window, for the `x-ratelimit-*-tokens` headers.

The headers are a courtesy, not a decision: for them a balance is read at most once a second per tenant, and what this
process holds and settles in between is reckoned in.
"""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import inf
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ports.budget import Balance, BudgetLedger
from ports.clock import Clock
from ports.context import AuthContext
from ports.http.extensions import NO_FIELDS, Fields
from ports.ids import TenantId
from ports.shared_reads import SharedReads

FRESH_S: Final = 1.0
MAX_TENANTS: Final = 10_000
_NAMES: Final = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")
_SECOND: Final = timedelta(seconds=1)


class Standing(Struct, frozen=True, gc=False):
    """A balance as it was read, and what is held and settled by now."""

    balance: Balance
    held: int
    settled: int

    def told(self) -> Balance:
        return replace(self.balance, held=self.held, settled=self.settled)


@dataclass(slots=True)
class _Known:
    """A balance as it was read, and what has come to it since."""

    balance: Balance
    read_at: float
    held: int
    settled: int
    told_until: float = -inf
    """By the monotonic clock: until then these two say the same."""
    told_limit: bytes = b""
    told_reset: bytes = b""

    def free(self) -> int:
        free = self.balance.limit - self.settled - self.held
        return free if free > 0 else 0


class Balances:
    def __init__(self, ledger: BudgetLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._known: OrderedDict[TenantId, _Known] = OrderedDict()
        self._reads: SharedReads[tuple[TenantId, int], Balance] = SharedReads()

    async def current(self, auth: AuthContext, *, limit: int) -> Balance:
        """The tenant's balance as far as it is known; one that is older than a second is read anew meanwhile.

        Raises `Unavailable` when nothing is known and it can't be read.
        """
        return (await self.standing(auth, limit=limit)).told()

    async def standing(self, auth: AuthContext, *, limit: int) -> "Standing":
        """The same, for whoever mostly has nothing to tell of it."""
        known = self.at_hand(auth, limit=limit)
        if known is None:
            read = await self._reads.of((auth.tenant, limit), partial(self.read, auth, limit=limit))
            return Standing(read, read.held, read.settled)
        return known

    def at_hand(self, auth: AuthContext, *, limit: int) -> "Standing | None":
        """The same where nothing has to be waited for, as mostly."""
        known = self._known.get(auth.tenant)
        if known is None or known.balance.limit != limit:
            return None
        if self._clock.monotonic() - known.read_at >= FRESH_S:
            # Where that fails the next request tries again; what decides is the ledger's own refusal.
            self._reads.ahead((auth.tenant, limit), partial(self.read, auth, limit=limit))
        return Standing(known.balance, known.held, known.settled)

    async def close(self) -> None:
        """Whatever is being read is nobody's any more."""
        await self._reads.close()

    async def read(self, auth: AuthContext, *, limit: int) -> Balance:
        """The tenant's balance as the ledger has it now, for an answer that is about it. Raises `Unavailable`."""
        balance = await self._ledger.balance(auth, limit=limit)
        self._known[auth.tenant] = _Known(balance, self._clock.monotonic(), balance.held, balance.settled)
        if len(self._known) > MAX_TENANTS:
            self._known.popitem(last=False)
        return balance

    def held(self, tenant: TenantId, amount: int) -> None:
        known = self._known.get(tenant)
        if known is not None:
            known.held += amount

    def settled(self, tenant: TenantId, amount: int, spent: int) -> None:
        known = self._known.get(tenant)
        if known is not None:
            held = known.held - amount
            known.held = held if held > 0 else 0
            known.settled += spent

    def headers(self, tenant: TenantId) -> Fields:
        """`x-ratelimit-{limit,remaining,reset}-tokens`; none for a tenant that nothing is known of."""
        known = self._known.get(tenant)
        if known is None:
            return NO_FIELDS
        now = self._clock.monotonic()
        if now >= known.told_until:
            self._tell(known, now)
        return _NAMES, (known.told_limit, b"%d" % known.free(), known.told_reset)

    def _tell(self, known: _Known, now: float) -> None:
        """Above a second the reset is told in seconds, and most of a tenant's requests come in the same one."""
        left = max(timedelta(0), known.balance.window_end - self._clock.now())
        known.told_until = now + (left.microseconds / 1e6 if left >= _SECOND else 0.0)
        known.told_limit = b"%d" % known.balance.limit
        known.told_reset = duration(left).encode()


def duration(value: timedelta) -> str:
    """As OpenAI writes resets: `12ms`, `6s`, `6m0s`, `1h2m3s`."""
    milliseconds = value // timedelta(milliseconds=1)
    if milliseconds < 1_000:  # noqa: PLR2004 - a second
        return f"{milliseconds}ms"
    minutes, seconds = divmod(milliseconds // 1_000, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
