"""What this process last knew of each tenant's window, for the `x-ratelimit-*-tokens` headers.

The headers are a courtesy, not a decision: for them a balance is read at most once a second per tenant, and what this
process holds and settles in between is reckoned in.
"""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from msgspec.structs import replace

from ports.budget import Balance, BudgetLedger
from ports.clock import Clock
from ports.context import AuthContext
from ports.ids import TenantId
from stack_b.shared_reads import SharedReads

FRESH_S: Final = 1.0
MAX_TENANTS: Final = 10_000


@dataclass(slots=True)
class _Known:
    """A balance as it was read, and what has come to it since."""

    balance: Balance
    read_at: float
    held: int
    settled: int

    @property
    def free(self) -> int:
        return max(0, self.balance.limit - self.settled - self.held)


class Balances:
    def __init__(self, ledger: BudgetLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._known: OrderedDict[TenantId, _Known] = OrderedDict()
        self._reads: SharedReads[tuple[TenantId, int], Balance] = SharedReads()

    async def current(self, auth: AuthContext, *, limit: int) -> Balance:
        """The tenant's balance, at most a second old. Raises `Unavailable` when it must be read and can't."""
        known = self._known.get(auth.tenant)
        if known is None or known.balance.limit != limit or self._clock.monotonic() - known.read_at >= FRESH_S:
            return await self._reads.of((auth.tenant, limit), lambda: self.read(auth, limit=limit))
        if (known.held, known.settled) != (known.balance.held, known.balance.settled):
            known.balance = replace(known.balance, held=known.held, settled=known.settled)
        return known.balance

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
            known.held = max(0, known.held - amount)
            known.settled += spent

    def headers(self, tenant: TenantId) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-{limit,remaining,reset}-tokens`; none for a tenant that nothing is known of."""
        known = self._known.get(tenant)
        if known is None:
            return []
        balance = known.balance
        left = max(timedelta(0), balance.window_end - self._clock.now())
        return [
            (b"x-ratelimit-limit-tokens", str(balance.limit).encode()),
            (b"x-ratelimit-remaining-tokens", str(known.free).encode()),
            (b"x-ratelimit-reset-tokens", duration(left).encode()),
        ]


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
