"""BudgetLedger in this process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Final, Literal

from msgspec import Struct

from adapters.inproc.store import InprocConfig, Store, store
from ports.adapter import AdapterSpec, Given
from ports.budget import (
    NOTHING,
    Account,
    Amount,
    Balance,
    Booking,
    Budget,
    BudgetLedger,
    Deviation,
    Hold,
    Spent,
    Unit,
    UsageEvent,
    UsageKind,
)
from ports.budget_rules import (
    Standing,
    balance_of,
    beyond,
    check_accounts,
    check_amount,
    check_bookings,
    check_budget,
    check_more,
    check_spent,
    grown,
    left_of,
    refusal,
    require_platform,
    settlement,
    tokens_per_day,
    usable_until,
    window_end,
    window_start,
    with_spare,
)
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import Conflict, NotFound
from ports.ids import HoldId, TenantId


class BudgetCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@dataclass(slots=True, eq=False)
class Window:
    account: str
    start: datetime
    unit: Unit
    settled: int = 0
    held: int = 0


@dataclass(slots=True)
class HoldRow:
    id: HoldId
    tenant: TenantId
    held: Amount
    expires_at: datetime
    windows: tuple[Window, ...]
    checkpoint: Amount | None = None
    ended: Literal["settled", "lapsed"] | None = None
    lapsed: Amount = NOTHING
    """What was counted when the lease ended, as far as no usage of it was booked since."""


@dataclass(slots=True)
class Books:
    """A table of a `Store`."""

    windows: dict[tuple[TenantId, str, datetime], Window] = field(default_factory=dict)
    holds: dict[HoldId, HoldRow] = field(default_factory=dict)
    events: dict[tuple[TenantId, str, int], tuple[HoldRow, UsageEvent]] = field(default_factory=dict)
    booked_at: dict[tuple[TenantId, str, int], datetime] = field(default_factory=dict)
    """When each of them was."""
    budgets: dict[tuple[TenantId, str], Budget] = field(default_factory=dict)


class InprocBudget:
    """Satisfies `BudgetLedger`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._store = storage
        self._books = storage.table(Books)
        self._clock = clock

    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        return await self.hold(auth, Amount(tokens=amount), on=(tokens_per_day(limit),), lease=lease)

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        check_spent(spent)
        await self.book(auth, [settlement(hold, spent)])

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        [balance] = await self.standing(auth, (tokens_per_day(limit),))
        return balance

    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        check_amount(amount)
        check_accounts(amount, on)
        self._lapse(auth.tenant)
        windows = self._windows(auth.tenant, on)
        standings = self._standings(on, windows)
        refused = refusal(standings, amount)
        if refused is not None:
            raise refused
        held = with_spare(standings, amount, spare)
        now = self._clock.now()
        row = HoldRow(
            id=HoldId(self._store.mint("hld", now)),
            tenant=auth.tenant,
            held=NOTHING,
            expires_at=now + lease,
            windows=tuple(windows),
        )
        self._books.holds[row.id] = row
        self._move(row, held=held)
        return Hold(
            id=row.id,
            amount=held.tokens,
            nanousd=held.nanousd,
            expires_at=row.expires_at,
            usable_until=usable_until(standings),
            over=beyond(standings, amount),
            left=left_of(standings),
        )

    async def extend(
        self, auth: AuthContext, hold: HoldId, more: Amount, *, on: Sequence[Account], lease: timedelta
    ) -> Hold:
        check_more(more)
        row = self._row(auth, hold)
        own = {window.account: window for window in row.windows}
        on = [account for account in on if account.key in own]
        standings = self._standings(on, [own[account.key] for account in on])
        if row.ended is not None:
            raise Conflict(f"the hold {hold!r} is over; hold again")
        if refused := refusal(standings, more):
            raise refused
        before = Hold(id=hold, amount=row.held.tokens, nanousd=row.held.nanousd, expires_at=row.expires_at)
        row.expires_at = max(row.expires_at, self._clock.now() + lease)
        self._move(row, held=more)
        return grown(before, more, row.expires_at, standings)

    async def renew(self, auth: AuthContext, holds: Sequence[HoldId], *, lease: timedelta) -> frozenset[HoldId]:
        self._lapse(auth.tenant)
        mine = [row for row in map(self._books.holds.get, holds) if row is not None and row.tenant == auth.tenant]
        alive = [row for row in mine if row.ended is None]
        for row in alive:
            row.expires_at = max(row.expires_at, self._clock.now() + lease)
        return frozenset(row.id for row in alive)

    async def checkpoint(self, auth: AuthContext, hold: HoldId, amount: Amount) -> None:
        check_more(amount)
        row = self._row(auth, hold)
        if row.ended is None:
            row.checkpoint = amount

    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        check_bookings(bookings)
        rows = [self._row(auth, booking.hold) for booking in bookings]
        for row, booking in zip(rows, bookings, strict=True):
            spent = NOTHING
            for event in booking.events:
                if self._add(row, event):
                    spent = spent.plus(event.amount)
            # Whoever ends a hold knows of all that was used on it: the rest of what the end of its lease counted was not.
            again = row.lapsed if booking.end else _least(row.lapsed, spent)
            row.lapsed = row.lapsed.minus(again)
            if again != NOTHING:
                self._note(row, f"adjusted {self._store.mint('use', self._clock.now())}", "adjustment", _minus(again))
            if row.checkpoint is not None:
                row.checkpoint = row.checkpoint.minus(_least(row.checkpoint, spent))
            left = row.held.minus(_least(row.held, spent))
            kept = NOTHING if booking.end else left if booking.keep is None else _least(left, booking.keep)
            freed = row.held.minus(kept)
            self._move(row, held=_minus(freed), settled=spent.minus(again))
            if booking.end and row.ended is None:
                row.ended = "settled"

    async def standing(self, auth: AuthContext, on: Sequence[Account]) -> tuple[Balance, ...]:
        self._lapse(auth.tenant)
        windows = self._windows(auth.tenant, on)
        found = zip(self._standings(on, windows), windows, strict=True)
        return tuple(balance_of(standing, window.start) for standing, window in found)

    async def usage(self, auth: AuthContext, request: str) -> tuple[UsageEvent, ...]:
        found = [
            event
            for (tenant, _, _), (_, event) in self._books.events.items()
            if (tenant, event.request) == (auth.tenant, request)
        ]
        return tuple(sorted(found, key=lambda event: event.attempt))

    async def spent(self, auth: AuthContext, *, since: datetime, by_agent: bool = False) -> tuple[Spent, ...]:
        sums: dict[tuple[date, str, str], list[UsageEvent]] = {}
        for where, (_, event) in self._books.events.items():
            at = self._books.booked_at[where]
            if where[0] == auth.tenant and at >= since:
                sums.setdefault((at.date(), event.model, event.agent if by_agent else ""), []).append(event)
        return tuple(
            Spent(
                day=day,
                model=model,
                agent=agent,
                calls=sum(one.kind == "call" for one in events),
                prompt_tokens=sum(one.fresh_tokens + one.cache_read_tokens + one.cache_write_tokens for one in events),
                completion_tokens=sum(one.output_tokens + one.reasoning_tokens for one in events),
                cost_nanousd=sum(one.cost_nanousd for one in events),
            )
            for (day, model, agent), events in sorted(sums.items())
        )

    async def deviations(self, auth: AuthContext) -> tuple[Deviation, ...]:
        found: list[Deviation] = []
        for (tenant, key, start), window in self._books.windows.items():
            if tenant != auth.tenant:
                continue
            holds = sum(row.held.of(window.unit) for row in self._books.holds.values() if window in row.windows)
            events = sum(
                event.amount.of(window.unit) for row, event in self._books.events.values() if window in row.windows
            )
            if (events, holds) != (window.settled, window.held):
                found.append(
                    Deviation(
                        account=key,
                        window_start=start,
                        settled=window.settled,
                        events=events,
                        held=window.held,
                        holds=holds,
                    )
                )
        return tuple(found)

    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        found = [budget for (tenant, _), budget in self._books.budgets.items() if tenant == auth.tenant]
        return tuple(sorted(found, key=lambda budget: budget.id))

    async def set_budget(self, auth: AuthContext, tenant: TenantId, budget: Budget) -> None:
        require_platform(auth)
        check_budget(budget)
        self._books.budgets[tenant, budget.id] = budget

    async def remove_budget(self, auth: AuthContext, tenant: TenantId, budget: str) -> None:
        require_platform(auth)
        if self._books.budgets.pop((tenant, budget), None) is None:
            raise NotFound(f"there is no budget {budget!r}")

    def _row(self, auth: AuthContext, hold: HoldId) -> HoldRow:
        self._lapse(auth.tenant)
        row = self._books.holds.get(hold)
        if row is None or row.tenant != auth.tenant:
            raise NotFound(f"there is no hold {hold!r}")
        return row

    def _windows(self, tenant: TenantId, on: Sequence[Account]) -> list[Window]:
        """The current windows of these accounts."""
        found: list[Window] = []
        for account in on:
            budget = account.budget
            start = window_start(budget.period, budget.tz, self._clock.now())
            made = Window(account=account.key, start=start, unit=budget.unit)
            found.append(self._books.windows.setdefault((tenant, account.key, start), made))
        return found

    def _standings(self, on: Sequence[Account], windows: Sequence[Window]) -> list[Standing]:
        return [
            Standing(
                account=account,
                settled=window.settled,
                held=window.held,
                window_end=window_end(account.budget.period, account.budget.tz, window.start),
            )
            for account, window in zip(on, windows, strict=True)
        ]

    def _move(self, row: HoldRow, *, held: Amount, settled: Amount = NOTHING) -> None:
        """Change what is held and settled, in the hold and in all of its windows."""
        row.held = row.held.plus(held)
        for window in row.windows:
            window.held += held.of(window.unit)
            window.settled += settled.of(window.unit)

    def _add(self, row: HoldRow, event: UsageEvent) -> bool:
        """Whether it was not there yet."""
        where = (row.tenant, event.request, event.attempt)
        if where in self._books.events:
            return False
        self._books.events[where] = (row, event)
        self._books.booked_at[where] = self._clock.now()
        return True

    def _note(self, row: HoldRow, request: str, kind: UsageKind, amount: Amount) -> None:
        self._add(
            row,
            UsageEvent(
                request=request,
                attempt=0,
                kind=kind,
                fresh_tokens=amount.tokens,
                cost_nanousd=amount.nanousd,
                estimated=True,
            ),
        )

    def _lapse(self, tenant: TenantId) -> None:
        """Count holds whose lease has ended as spent: in full, or at their checkpoint."""
        now = self._clock.now()
        for row in self._books.holds.values():
            if row.tenant == tenant and row.ended is None and row.expires_at <= now:
                row.ended = "lapsed"
                row.lapsed = row.held if row.checkpoint is None else row.checkpoint
                self._note(row, f"lapsed {row.id}", "lapse", row.lapsed)
                self._move(row, held=_minus(row.held), settled=row.lapsed)


def _least(one: Amount, other: Amount) -> Amount:
    return Amount(tokens=min(one.tokens, other.tokens), nanousd=min(one.nanousd, other.nanousd))


def _minus(amount: Amount) -> Amount:
    return NOTHING.minus(amount)


@asynccontextmanager
async def open_budget(config: InprocConfig, given: Given) -> AsyncIterator[BudgetLedger]:
    yield InprocBudget(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, BudgetLedger]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: BudgetCapabilities(), open=open_budget
)
