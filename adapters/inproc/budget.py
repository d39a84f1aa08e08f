"""BudgetLedger in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from adapters.inproc.store import InprocConfig, Store, store
from ports.adapter import AdapterSpec, Given
from ports.budget import Balance, BudgetLedger, Hold
from ports.budget_rules import WINDOW, check_amount, check_spent, fits, refusal
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import NotFound
from ports.ids import HoldId, TenantId


class BudgetCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@dataclass(slots=True)
class HoldRow:
    hold: Hold
    tenant: TenantId
    window: datetime
    spent: int | None = None
    """None as long as it is held."""


@dataclass(slots=True)
class Holds:
    """A table of a `Store`. A hold keeps what was spent of it: balances are sums, nothing is counted twice."""

    rows: dict[HoldId, HoldRow] = field(default_factory=dict)


class InprocBudget:
    """Satisfies `BudgetLedger`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._rows = storage.table(Holds).rows
        self._clock = clock

    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        check_amount(amount, limit)
        balance = await self.balance(auth, limit=limit)
        if not fits(balance, amount):
            raise refusal(balance, amount)
        now = self._clock.now()
        hold = Hold(id=HoldId(self._store.mint("hld", now)), amount=amount, expires_at=now + lease)
        self._rows[hold.id] = HoldRow(hold=hold, tenant=auth.tenant, window=balance.window_start)
        return hold

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        check_spent(spent)
        row = self._rows.get(hold)
        if row is None or row.tenant != auth.tenant:
            raise NotFound(f"there is no hold {hold!r}")
        self._lapse(auth.tenant)
        if row.spent is None:
            row.spent = spent

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        start = window_start(self._clock.now())
        self._lapse(auth.tenant)
        mine = [row for row in self._rows.values() if (row.tenant, row.window) == (auth.tenant, start)]
        return Balance(
            limit=limit,
            settled=sum(row.spent for row in mine if row.spent is not None),
            held=sum(row.hold.amount for row in mine if row.spent is None),
            window_start=start,
            window_end=start + WINDOW,
        )

    def _lapse(self, tenant: TenantId) -> None:
        """Count holds whose lease has ended as spent in full."""
        now = self._clock.now()
        for row in self._rows.values():
            if row.tenant == tenant and row.spent is None and row.hold.expires_at <= now:
                row.spent = row.hold.amount


def window_start(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@asynccontextmanager
async def open_budget(config: InprocConfig, given: Given) -> AsyncIterator[BudgetLedger]:
    yield InprocBudget(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, BudgetLedger]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: BudgetCapabilities(), open=open_budget
)
