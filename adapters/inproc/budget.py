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
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, ResourceExhausted
from ports.ids import HoldId, TenantId

WINDOW: Final = timedelta(days=1)
_RETRY_AFTER: Final = timedelta(seconds=2)
"""Room held by others is given back when their calls end, which takes seconds."""


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
        if amount < 1:
            raise InvalidArgument(f"at least 1 token must be reserved, not {amount}")
        if amount > limit:
            raise InvalidArgument(
                f"{amount} tokens can never fit into a budget of {limit}; ask for fewer",
                code="request_exceeds_budget",
                details={"max_tokens_that_fits": limit},
            )
        balance = await self.balance(auth, limit=limit)
        if balance.settled + amount > limit:
            raise ResourceExhausted(
                f"{balance.settled} of {limit} tokens are spent, {amount} more do not fit before {balance.window_end}",
                code="budget_exceeded",
            )
        if balance.settled + balance.held + amount > limit:
            raise ResourceExhausted(
                f"{balance.held} of {limit} tokens are held by calls at work; try again in a moment",
                code="budget_in_flight",
                retry_after=_RETRY_AFTER,
            )
        now = self._clock.now()
        hold = Hold(id=HoldId(self._store.mint("hld", now)), amount=amount, expires_at=now + lease)
        self._rows[hold.id] = HoldRow(hold=hold, tenant=auth.tenant, window=balance.window_start)
        return hold

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        if spent < 0:
            raise InvalidArgument(f"{spent} tokens can't have been spent")
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
