"""BudgetLedger over PostgreSQL: windows are locked before they are looked at, so what is decided is exact."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.literals import BETWEEN, Member, written
from adapters.postgres.rows import Row, actor_of, packed, positive
from adapters.postgres.statements import load
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
    UsageEvent,
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
from ports.context import AuthContext
from ports.errors import Conflict, NotFound
from ports.ids import HoldId, TenantId, minted, uuid_of

_SQL: Final = load("budget")


class BudgetCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class _DatabaseTime:
    """What the database takes for now, as far as this process can tell."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def told(self, now: datetime) -> None:
        self._ahead = now - datetime.now(UTC)


class PostgresBudget:
    """Satisfies `BudgetLedger`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = _DatabaseTime()

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
        positive(lease)
        async with self._database.transaction(auth.tenant) as transaction:
            # Who asks for no more than it needs may well be near a limit, with many others. Refused by what everybody can
            # see, it need not wait for those who are served; else the look was one too many.
            if spare == NOTHING and (full := refusal(await self._seen(transaction, auth, on), amount)):
                raise full
            ledger = _Locked(transaction, auth.tenant)
            standings = await ledger.windows(on, self._clock)
            refused = refusal(standings, amount)
            held = with_spare(standings, amount, spare)
            asked = {"tokens": held.tokens, "nanousd": held.nanousd, "lease": lease, "windows": ledger.asked}
            row = None if refused else await transaction.row(_SQL["hold"], {"tenant": auth.tenant, **asked})
        # Outside: the transaction of a refusal is committed too, with the leases that were seen to have ended.
        if refused is not None:
            raise refused
        assert row is not None, "the statement always answers"
        return Hold(
            id=HoldId(minted("hld", row["id"])),
            amount=held.tokens,
            nanousd=held.nanousd,
            expires_at=row["expires_at"],
            usable_until=usable_until(standings),
            over=beyond(standings, amount),
            left=left_of(standings),
        )

    async def extend(
        self, auth: AuthContext, hold: HoldId, more: Amount, *, on: Sequence[Account], lease: timedelta
    ) -> Hold:
        check_more(more)
        asked = {"tenant": auth.tenant, "hold": _uuid(hold), "lease": positive(lease)}
        async with self._database.transaction(auth.tenant) as transaction:
            ledger = _Locked(transaction, auth.tenant)
            rows = await ledger.holds([hold])
            standings = ledger.standings_of(rows, on)
            over = Conflict(f"the hold {hold!r} is over; hold again") if rows[0]["ended"] is not None else None
            refused = over or refusal(standings, more)
            amount = {"tokens": more.tokens, "nanousd": more.nanousd}
            row = None if refused else await transaction.row(_SQL["extend"], {**asked, **amount})
        if refused is not None:
            raise refused
        assert row is not None, "its windows are locked, so nobody has ended it"
        before = Hold(id=hold, amount=rows[0]["tokens"], nanousd=rows[0]["nanousd"], expires_at=rows[0]["expires_at"])
        found = msgspec.structs.replace(before, usable_until=usable_until(standings))
        return grown(found, more, row["expires_at"], standings)

    async def renew(self, auth: AuthContext, holds: Sequence[HoldId], *, lease: timedelta) -> frozenset[HoldId]:
        asked = {"tenant": auth.tenant, "holds": _ids(holds), "lease": positive(lease)}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["renew"], asked)
        return frozenset(HoldId(minted("hld", row["id"])) for row in rows)

    async def checkpoint(self, auth: AuthContext, hold: HoldId, amount: Amount) -> None:
        check_more(amount)
        asked = {"tenant": auth.tenant, "hold": _uuid(hold), "tokens": amount.tokens, "nanousd": amount.nanousd}
        async with self._database.transaction(auth.tenant) as transaction:
            await _Locked(transaction, auth.tenant).holds([hold])
            await transaction.row(_SQL["checkpoint"], asked)

    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        check_bookings(bookings)
        # Hundreds at a time, from every request.
        events = [await written(one.events, partial(_given, str(_uuid(one.hold)))) for one in bookings if one.events]
        asked = {
            "tenant": auth.tenant,
            "events": BETWEEN.join(events),
            "between": BETWEEN,
            "bookings": packed([_booking(one) for one in bookings]),
        }
        async with self._database.transaction(auth.tenant) as transaction:
            holds = [booking.hold for booking in bookings]
            await _Locked(transaction, auth.tenant).windows_of(holds)
            _check_there(holds, await transaction.rows(_SQL["book"], asked))

    async def standing(self, auth: AuthContext, on: Sequence[Account]) -> tuple[Balance, ...]:
        async with self._database.transaction(auth.tenant) as transaction:
            starts = _starts(on, await _look(transaction, auth.tenant))
            rows = await transaction.rows(_SQL["standing"], {"tenant": auth.tenant, "windows": _windows(on, starts)})
        found = _standings(on, starts, _by_window(rows))
        return tuple(balance_of(one, starts[one.account.key]) for one in found)

    async def _seen(self, transaction: Transaction, auth: AuthContext, on: Sequence[Account]) -> list[Standing]:
        """How the accounts stand for whoever locks nothing; none where that isn't sure."""
        starts = _starts(on, self._clock.now())
        rows = await transaction.rows(_SQL["standing"], {"tenant": auth.tenant, "windows": _windows(on, starts)})
        if not rows or _starts(on, rows[0]["now"]) != starts:
            return []
        return _standings(on, starts, _by_window(rows))

    async def usage(self, auth: AuthContext, request: str) -> tuple[UsageEvent, ...]:
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["usage"], {"tenant": auth.tenant, "request": request})
        fields = [field for field in UsageEvent.__struct_fields__ if field != "request"]
        return tuple(UsageEvent(request=row["request_id"], **{field: row[field] for field in fields}) for row in rows)

    async def spent(self, auth: AuthContext, *, since: datetime, by_agent: bool = False) -> tuple[Spent, ...]:
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["spent"], {"tenant": auth.tenant, "since": since, "by_agent": by_agent})
        return tuple(Spent(**dict(row)) for row in rows)

    async def deviations(self, auth: AuthContext) -> tuple[Deviation, ...]:
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["deviations"], {"tenant": auth.tenant})
        return tuple(Deviation(**dict(row)) for row in rows)

    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["budgets"], {"tenant": auth.tenant})
        return tuple(
            Budget(
                id=row["id"],
                limit=row["amount_limit"],
                scope=row["scope"],
                scope_id=row["scope_id"],
                unit=row["unit"],
                period=row["period"],
                tz=row["tz"],
                mode=row["mode"],
            )
            for row in rows
        )

    async def set_budget(self, auth: AuthContext, tenant: TenantId, budget: Budget) -> None:
        require_platform(auth)
        check_budget(budget)
        async with self._database.transaction(tenant) as transaction:
            told = {"tenant": tenant, **actor_of(auth), **msgspec.structs.asdict(budget)}
            await transaction.rows(_SQL["set_budget"], told)

    async def remove_budget(self, auth: AuthContext, tenant: TenantId, budget: str) -> None:
        require_platform(auth)
        async with self._database.transaction(tenant) as transaction:
            if await transaction.row(_SQL["remove_budget"], {"tenant": tenant, **actor_of(auth), "id": budget}) is None:
                raise NotFound(f"there is no budget {budget!r}")


class _Locked:
    """What one transaction has locked, and how it stands now that nobody else can change it."""

    def __init__(self, transaction: Transaction, tenant: TenantId) -> None:
        self._transaction = transaction
        self._tenant = tenant
        self.asked = "[]"
        self._rows: dict[tuple[str, datetime], Row] = {}

    async def windows(self, on: Sequence[Account], clock: _DatabaseTime) -> list[Standing]:
        """Lock the current windows of these accounts; made where they aren't there yet."""
        # They are known by the database's time, which is asked for together with them: guessed before, and seldom wrong.
        starts = _starts(on, clock.now())
        now = await self._lock(_windows(on, starts))
        if now is None:
            now = await _look(self._transaction, self._tenant)
        clock.told(now)
        starts = _starts(on, now)
        if any((account.key, starts[account.key]) not in self._rows for account in on):
            windows = _windows(on, starts)
            await self._transaction.rows(_SQL["open"], {"tenant": self._tenant, "windows": windows})
            await self._lock(windows)
        return _standings(on, starts, self._rows)

    async def windows_of(self, holds: Sequence[HoldId]) -> None:
        """Lock the windows that these holds are on."""
        await self._lock("[]", _ids(holds))

    async def holds(self, holds: Sequence[HoldId]) -> Sequence[Row]:
        """Lock the windows that these are on; the holds, a row for each of their windows.

        Raises:
            NotFound: one of them isn't there.
        """
        await self.windows_of(holds)
        rows = await self._transaction.rows(_SQL["holds"], {"tenant": self._tenant, "holds": _ids(holds)})
        _check_there(holds, rows)
        return rows

    def standings_of(self, rows: Sequence[Row], on: Sequence[Account]) -> list[Standing]:
        """How the windows of a hold stand, with the limits that `on` says."""
        starts = {row["account"]: row["window_start"] for row in rows}
        return _standings([account for account in on if account.key in starts], starts, self._rows)

    async def _lock(self, windows: str, holds: str = "[]") -> datetime | None:
        """Now, where anything was locked."""
        self.asked = windows
        asked = {"tenant": self._tenant, "windows": windows, "holds": holds}
        rows = await self._transaction.rows(_SQL["lock"], asked)
        if any(row["due"] for row in rows):
            await self._transaction.rows(_SQL["lapse"], {"tenant": self._tenant, "now": rows[0]["now"]})
            rows = await self._transaction.rows(_SQL["lock"], asked)
        self._rows = _by_window(rows)
        now: datetime | None = rows[0]["now"] if rows else None
        return now


def _check_there(holds: Sequence[HoldId], rows: Sequence[Row]) -> None:
    found = {minted("hld", row["id"]) for row in rows}
    for hold in holds:
        if hold not in found:
            raise NotFound(f"there is no hold {hold!r}")


async def _look(transaction: Transaction, tenant: TenantId) -> datetime:
    row = await transaction.row(_SQL["look"], {"tenant": tenant})
    assert row is not None, "the statement always answers"
    now: datetime = row["now"]
    return now


def _starts(on: Sequence[Account], now: datetime) -> dict[str, datetime]:
    return {account.key: window_start(account.budget.period, account.budget.tz, now) for account in on}


def _windows(on: Sequence[Account], starts: dict[str, datetime]) -> str:
    return packed([{"account": one.key, "start": starts[one.key], "unit": one.budget.unit} for one in on])


def _standings(
    on: Sequence[Account], starts: dict[str, datetime], rows: dict[tuple[str, datetime], Row]
) -> list[Standing]:
    found: list[Standing] = []
    for account in on:
        start = starts[account.key]
        row: Row | dict[str, Any] = rows.get((account.key, start), {"settled": 0, "held": 0})
        end = window_end(account.budget.period, account.budget.tz, start)
        found.append(Standing(account=account, settled=row["settled"], held=row["held"], window_end=end))
    return found


def _given(hold: str, events: Sequence[UsageEvent]) -> list[tuple[Member, ...]]:
    """In the order of `ao_given_usage`."""
    return [
        (
            hold, one.request, one.attempt, one.correlation_id, one.fresh_tokens, one.cache_read_tokens,
            one.cache_write_tokens, one.output_tokens, one.reasoning_tokens, one.cost_nanousd, one.kind, one.principal,
            one.agent, one.session, one.model, one.backend, one.price, one.estimated,
        )
        for one in events
    ]  # fmt: skip


def _booking(booking: Booking) -> dict[str, Any]:
    keep = NOTHING if booking.end else booking.keep
    return {"hold": str(_uuid(booking.hold)), "end": booking.end, "keep": keep}


def _by_window(rows: Sequence[Row]) -> dict[tuple[str, datetime], Row]:
    return {(row["account"], row["window_start"]): row for row in rows}


def _uuid(hold: HoldId) -> uuid.UUID:
    return uuid_of("hld", hold) or uuid.UUID(int=0)


def _ids(holds: Sequence[HoldId]) -> str:
    return packed([str(_uuid(hold)) for hold in holds])


@asynccontextmanager
async def open_budget(config: PostgresConfig, _given: Given) -> AsyncIterator[BudgetLedger]:
    async with open_database(config) as database:
        yield PostgresBudget(database)


SPEC: Final[AdapterSpec[PostgresConfig, BudgetLedger]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: BudgetCapabilities(), open=open_budget
)
