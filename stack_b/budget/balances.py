"""What this process last knew of each tenant's window, for the `x-ratelimit-*-tokens` headers.

The headers are a courtesy, not a decision: for them a balance is read at most once a second per tenant, and what this
process holds and settles in between is reckoned in.
"""

from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ports.budget import Balance, BudgetLedger
from ports.clock import Clock
from ports.context import AuthContext
from ports.ids import TenantId
from stack_b.shared_reads import SharedReads

FRESH: Final = timedelta(seconds=1)
MAX_TENANTS: Final = 10_000


class _Known(Struct, frozen=True, kw_only=True):
    balance: Balance
    read_at: datetime


class Balances:
    def __init__(self, ledger: BudgetLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._known: OrderedDict[TenantId, _Known] = OrderedDict()
        self._reads: SharedReads[tuple[TenantId, int], Balance] = SharedReads()

    async def current(self, auth: AuthContext, *, limit: int) -> Balance:
        """The tenant's balance, at most a second old. Raises `Unavailable` when it must be read and can't."""
        known = self._known.get(auth.tenant)
        if known is None or known.balance.limit != limit or self._clock.now() - known.read_at >= FRESH:
            return await self._reads.of((auth.tenant, limit), lambda: self.read(auth, limit=limit))
        return known.balance

    async def read(self, auth: AuthContext, *, limit: int) -> Balance:
        """The tenant's balance as the ledger has it now, for an answer that is about it. Raises `Unavailable`."""
        known = _Known(balance=await self._ledger.balance(auth, limit=limit), read_at=self._clock.now())
        self._known[auth.tenant] = known
        if len(self._known) > MAX_TENANTS:
            self._known.popitem(last=False)
        return known.balance

    def held(self, tenant: TenantId, amount: int) -> None:
        self._reckon(tenant, held=amount, settled=0)

    def settled(self, tenant: TenantId, amount: int, spent: int) -> None:
        self._reckon(tenant, held=-amount, settled=spent)

    def headers(self, tenant: TenantId) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-{limit,remaining,reset}-tokens`; none for a tenant that nothing is known of."""
        known = self._known.get(tenant)
        if known is None:
            return []
        balance = known.balance
        left = max(timedelta(0), balance.window_end - self._clock.now())
        return [
            (b"x-ratelimit-limit-tokens", str(balance.limit).encode()),
            (b"x-ratelimit-remaining-tokens", str(balance.free).encode()),
            (b"x-ratelimit-reset-tokens", duration(left).encode()),
        ]

    def _reckon(self, tenant: TenantId, *, held: int, settled: int) -> None:
        known = self._known.get(tenant)
        if known is not None:
            balance = known.balance
            reckoned = replace(balance, held=max(0, balance.held + held), settled=balance.settled + settled)
            self._known[tenant] = replace(known, balance=reckoned)


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
