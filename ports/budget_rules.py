"""What budgets are of, what they refuse, and in which words: the rules of BudgetLedger that need no store, shared by its
adapters and those who call them.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Struct

from ports.budget import (
    TOKENS_PER_DAY,
    Account,
    Amount,
    Balance,
    Booking,
    Budget,
    Hold,
    Left,
    Period,
    Scope,
    Unit,
    UsageEvent,
)
from ports.context import AuthContext
from ports.errors import InvalidArgument, ResourceExhausted
from ports.ids import HoldId

WINDOW: Final = timedelta(days=1)
RETRY_AFTER: Final = timedelta(seconds=2)
"""Room held by others is given back when their calls end, which takes seconds."""
SPARE_SHARE: Final = 32
"""Of the room that is left, a hold takes at most one part in so many beyond what was asked for."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ENDLESS: Final = datetime.max.replace(tzinfo=UTC)

_WORDS: Final[dict[Unit, str]] = {"tokens": "tokens", "nanousd": "nano-US-dollars"}


class Standing(Struct, frozen=True, kw_only=True):
    """How an account's window stands."""

    account: Account
    settled: int
    held: int
    window_end: datetime

    @property
    def room(self) -> int:
        return self.account.budget.limit - self.settled - self.held


def account_of(budget: Budget, scope_id: str = "") -> Account:
    """`scope_id` is that of the request, where the budget is for each of its scope."""
    own = not budget.scope_id and scope_id
    return Account(budget=budget, key=f"{budget.id} {scope_id}" if own else budget.id)


@lru_cache(maxsize=1_024)
def tokens_per_day(limit: int) -> Account:
    # Not through the constructor's checks: an entitlement may be anything.
    return Account(budget=Budget(id=TOKENS_PER_DAY, limit=limit), key=TOKENS_PER_DAY)


def accounts(
    limit: int, budgets: Sequence[Budget], scopes: dict[Scope, str], *, alias: str = ""
) -> tuple[Account, ...]:
    """The accounts of a request, given the tenant's entitlement and budgets and what the request is of.

    A budget of a scope that the request has nothing of (a call without an agent) does not apply to it. `alias` is another
    name of its tier: a budget for each tier goes by what it leads to, one for a name by either.
    """
    found = [tokens_per_day(limit)]
    for budget in budgets:
        mine = scopes.get(budget.scope, "")
        names = {"", mine, alias} if budget.scope == "tier" else {"", mine}
        if budget.scope == "tenant" or (mine and budget.scope_id in names):
            found.append(account_of(budget, "" if budget.scope == "tenant" else mine))
    return tuple(found)


def check_budget(budget: Budget) -> None:
    """Raise `InvalidArgument` for a budget that can't be."""
    try:
        msgspec.convert(msgspec.to_builtins(budget), Budget)
        ZoneInfo(budget.tz)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the budget is not valid: {error}") from None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidArgument(f"there is no time zone {budget.tz!r}; write one such as 'Europe/Berlin'") from None
    if budget.id == TOKENS_PER_DAY:
        raise InvalidArgument(f"{TOKENS_PER_DAY!r} comes from the tenant's entitlements; set it there")
    if budget.scope == "tenant" and budget.scope_id:
        raise InvalidArgument("a budget of the tenant has no scope_id")


def require_platform(auth: AuthContext) -> None:
    auth.require("admin:platform")


def window_start(period: Period, tz: str, now: datetime) -> datetime:
    """Where the window that `now` is in starts, in UTC."""
    local = now.astimezone(ZoneInfo(tz))
    if period == "total":
        return EPOCH
    if period == "minute":
        local = local.replace(second=0, microsecond=0)
    elif period == "hour":
        local = local.replace(minute=0, second=0, microsecond=0)
    else:
        # The first of two midnights, where the clocks go back over one.
        day = local.day if period == "day" else 1
        local = local.replace(day=day, hour=0, minute=0, second=0, microsecond=0, fold=0)
    return local.astimezone(UTC)


def window_end(period: Period, tz: str, start: datetime) -> datetime:
    """Where the next one starts."""
    match period:
        case "total":
            return ENDLESS
        case "minute":
            return start + timedelta(minutes=1)
        case "hour":
            return start + timedelta(hours=1)
        case "day":
            # Past the longest day there is, and before the end of the next one.
            return window_start("day", tz, start + timedelta(hours=26))
        case "month":
            return window_start("month", tz, start + timedelta(days=32))


def check_amount(amount: Amount) -> None:
    if amount.tokens < 1:
        raise InvalidArgument(f"at least 1 token must be reserved, not {amount.tokens}")
    if amount.nanousd < 0:
        raise InvalidArgument(f"{amount.nanousd} nano-US-dollars can't be reserved")


def check_more(more: Amount) -> None:
    if more.tokens < 0 or more.nanousd < 0:
        raise InvalidArgument("a hold can be extended by nothing or more")


def check_accounts(amount: Amount, on: Sequence[Account]) -> None:
    """Raise `InvalidArgument` for an amount that a window of these could never hold."""
    if not on or len({account.key for account in on}) != len(on):
        raise InvalidArgument("a hold is on one or more accounts, each named once")
    for account in on:
        budget = account.budget
        asked = amount.of(budget.unit)
        if budget.mode == "hard" and asked > budget.limit:
            fits = {"max_tokens_that_fits": budget.limit} if budget.unit == "tokens" else {}
            raise InvalidArgument(
                f"{asked} {_WORDS[budget.unit]} can never fit into a budget of {budget.limit}; ask for fewer",
                code="request_exceeds_budget",
                details={**fits, "budget": account.key},
            )


def check_bookings(bookings: Sequence[Booking]) -> None:
    if len({booking.hold for booking in bookings}) != len(bookings):
        raise InvalidArgument("each hold is booked once in a call")


def check_spent(spent: int) -> None:
    if spent < 0:
        raise InvalidArgument(f"{spent} tokens can't have been spent")


def refusal(standings: Sequence[Standing], amount: Amount) -> ResourceExhausted | None:
    """Why `amount` does not fit into all of them; None when it does. Spent budgets are told before busy ones."""
    full = [
        one for one in standings if one.account.budget.mode == "hard" and one.room < amount.of(one.account.budget.unit)
    ]
    for one in full:
        budget, asked = one.account.budget, amount.of(one.account.budget.unit)
        if one.settled + asked > budget.limit:
            return ResourceExhausted(
                f"{one.settled} of {budget.limit} {_WORDS[budget.unit]} are spent, {asked} more do not fit before "
                f"{one.window_end}",
                code="budget_exceeded",
                details={"budget": one.account.key},
            )
    for one in full:
        return ResourceExhausted(
            f"{one.held} of {one.account.budget.limit} {_WORDS[one.account.budget.unit]} are held by calls at work; "
            "try again in a moment",
            code="budget_in_flight",
            details={"budget": one.account.key},
            retry_after=RETRY_AFTER,
        )
    return None


def with_spare(standings: Sequence[Standing], amount: Amount, spare: Amount) -> Amount:
    """What to hold where `amount` fits and up to `spare` more would be welcome."""
    return Amount(
        tokens=amount.tokens + _spare(standings, "tokens", amount.tokens, spare.tokens),
        nanousd=amount.nanousd + _spare(standings, "nanousd", amount.nanousd, spare.nanousd),
    )


def _spare(standings: Sequence[Standing], unit: Unit, asked: int, spare: int) -> int:
    rooms = [
        one.room - asked for one in standings if one.account.budget.mode == "hard" and one.account.budget.unit == unit
    ]
    return max(0, min([spare, *(room // SPARE_SHARE for room in rooms)]))


def beyond(standings: Sequence[Standing], amount: Amount) -> tuple[str, ...]:
    """The soft budgets that are beyond their limits with `amount`."""
    return tuple(
        one.account.budget.id
        for one in standings
        if one.account.budget.mode == "soft" and one.room < amount.of(one.account.budget.unit)
    )


def left_of(standings: Sequence[Standing]) -> tuple[Left, ...]:
    """What is left of the soft budgets by what is settled."""
    return tuple(
        Left(budget=one.account.budget.id, unit=one.account.budget.unit, amount=one.account.budget.limit - one.settled)
        for one in standings
        if one.account.budget.mode == "soft"
    )


def usable_until(standings: Sequence[Standing]) -> datetime | None:
    end = min(one.window_end for one in standings)
    return None if end == ENDLESS else end


def balance_of(standing: Standing, start: datetime) -> Balance:
    return Balance(
        limit=standing.account.budget.limit,
        settled=standing.settled,
        held=standing.held,
        window_start=start,
        window_end=standing.window_end,
    )


def grown(hold: Hold, more: Amount, expires_at: datetime, standings: Sequence[Standing]) -> Hold:
    return msgspec.structs.replace(
        hold,
        amount=hold.amount + more.tokens,
        nanousd=hold.nanousd + more.nanousd,
        expires_at=expires_at,
        over=beyond(standings, more),
    )


def settlement(hold: HoldId, spent: int) -> Booking:
    """What `settle` books: a sum without particulars, of which there is one per hold."""
    event = UsageEvent(request=f"settled {hold}", attempt=0, kind="settlement", fresh_tokens=spent)
    return Booking(hold=hold, events=(event,), end=True)
