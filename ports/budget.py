"""BudgetLedger: hard budgets that hold under concurrency. Integers only; a window is a row keyed by its start.

A budget limits tokens (prompt plus completion) or nano-US-dollars in each minute, hour, day or month of a time zone, or in
total; for the tenant, or for each key, agent, session or tier of it, or one of them. Every tenant has `tokens_per_day` from
its entitlements; `reserve`, `settle` and `balance` are about that one. Others are rows.

Clauses (each has a test in `conformance.budget` or `conformance.budget_accounts`):

* BUD-1  `reserve` succeeds only if settled plus held plus the amount stays within the limit, whatever else happens at the
         same time; a hundred callers at the limit get exactly what fits.
* BUD-2  `settle` replaces the hold by what was spent, exactly once: settling again changes nothing. Spending more than was
         held is recorded in full.
* BUD-3  Refusals are three: `budget_exceeded` (settled spend leaves no room), `budget_in_flight` (room is held by others;
         `retry_after` set), `request_exceeds_budget` (the amount alone can never fit; `max_tokens_that_fits` in details).
* BUD-4  A hold that was neither settled nor extended when its lease ended counts as spent: in full, or at its checkpoint
         where it has one.
* BUD-5  A tenant's holds and spending never touch another's; another's hold raises `NotFound`.
* BUD-6  A new window starts empty without anybody resetting it.
* BUD-7  What was settled and held is there for a ledger opened anew on the same storage.
* BUD-8  `hold` takes room of every account it names, or of none; a refusal names the budget in its details. Each account
         counts its own unit.
* BUD-9  A soft budget refuses nothing and is named in `Hold.over` when it is beyond its limit with what is held;
         `Hold.left` says what is left of it by what is settled. A shadow budget is counted, and no more.
* BUD-10 Windows start where the minute, hour, day or month starts in the budget's time zone; `total` has one.
* BUD-11 `extend` adds to a hold by the rule of `hold`, in the windows that it is on, and prolongs its lease; refused, it
         changes nothing. `renew` prolongs leases and says which holds are alive.
* BUD-12 `book` adds usage events, each (request, attempt) once, and moves what they sum up to from held to settled; what
         it does not keep, and at the end of a hold the rest, is free again. Usage beyond what is held is recorded in full.
* BUD-13 Usage booked after the lease ended is added, and what the end of the lease has counted is not counted again. Booked
         after it, the end of the hold takes back what was counted and not used.
* BUD-14 What is settled in a window is the sum of its holds' usage events, at any time (`deviations` is empty).
* BUD-15 With `spare`, a hold may be larger than what was asked for, by at most the spare and at most a 32nd of the room
         that is left in each hard window; never is it refused for the spare's sake.
* BUD-16 Budgets are the platform's to set and remove (scope `admin:platform`), the tenant's to read; setting one again
         replaces it, and its windows stay.
* BUD-17 `spent` sums up all usage events since a moment, by day (UTC) and model, with what the end of a lease has counted
         and what was taken back of it: whatever was settled since then is in it, once. Asked to, it tells agents apart.
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Final, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from ports.context import AuthContext
from ports.ids import HoldId, TenantId

Scope: TypeAlias = Literal["tenant", "key", "agent", "session", "tier"]
Unit: TypeAlias = Literal["tokens", "nanousd"]
Period: TypeAlias = Literal["minute", "hour", "day", "month", "total"]
Mode: TypeAlias = Literal["hard", "soft", "shadow"]
UsageKind: TypeAlias = Literal["call", "settlement", "lapse", "adjustment"]

TOKENS_PER_DAY: Final = "tokens_per_day"
"""The budget that every tenant's entitlements make."""


MAX_SCOPE_ID_CHARS: Final = 256


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z")]
    limit: Annotated[int, Meta(ge=0, le=2**62)]
    scope: Scope = "tenant"
    scope_id: Annotated[str, Meta(max_length=MAX_SCOPE_ID_CHARS)] = ""
    """Which key, agent, session or tier; empty: each of them has this much for itself."""
    unit: Unit = "tokens"
    period: Period = "day"
    tz: str = "UTC"
    mode: Mode = "hard"


class Account(Struct, frozen=True, kw_only=True, cache_hash=True):
    """A budget, of the one key, agent, session or tier that a request is of. `key` is that of its windows."""

    budget: Budget
    key: str


class Amount(Struct, frozen=True, kw_only=True, gc=False):
    tokens: int = 0
    nanousd: int = 0

    def of(self, unit: Unit) -> int:
        return self.tokens if unit == "tokens" else self.nanousd

    def plus(self, other: "Amount") -> "Amount":
        return Amount(tokens=self.tokens + other.tokens, nanousd=self.nanousd + other.nanousd)

    def minus(self, other: "Amount") -> "Amount":
        return Amount(tokens=self.tokens - other.tokens, nanousd=self.nanousd - other.nanousd)

    def holds(self, other: "Amount") -> bool:
        return self.tokens >= other.tokens and self.nanousd >= other.nanousd


NOTHING: Final = Amount()


class Left(Struct, frozen=True, kw_only=True):
    """What is left of a soft budget by what is settled; below nothing, it is beyond its limit by so much."""

    budget: str
    unit: Unit
    amount: int


class Hold(Struct, frozen=True, kw_only=True):
    id: HoldId
    amount: int
    """In tokens."""
    nanousd: int = 0
    expires_at: datetime
    usable_until: datetime | None = None
    """When the first of its windows ends: what is held is for calls that begin before. None: its windows have no end."""
    over: tuple[str, ...] = ()
    """Ids of soft budgets that are beyond their limits."""
    left: tuple[Left, ...] = ()

    @property
    def held(self) -> Amount:
        return Amount(tokens=self.amount, nanousd=self.nanousd)


class Balance(Struct, frozen=True, kw_only=True):
    limit: int
    settled: int
    held: int
    window_start: datetime
    window_end: datetime
    """The last moment there is, for a window without end."""

    @property
    def free(self) -> int:
        return max(0, self.limit - self.settled - self.held)


class UsageEvent(Struct, frozen=True, kw_only=True, gc=False):
    """What one attempt of a request has consumed. The kinds of tokens are apart: their sum is what budgets count."""

    request: str
    """Of the gateway's own making: a correlation id is the client's to choose."""
    attempt: int
    kind: UsageKind = "call"
    correlation_id: str = ""
    principal: str = ""
    """Whose key or token."""
    agent: str = ""
    session: str = ""
    model: str = ""
    backend: str = ""
    fresh_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    """Apart from `output_tokens`."""
    cost_nanousd: int = 0
    price: str = ""
    """The version of the price that the cost was reckoned with."""
    estimated: bool = False

    @property
    def amount(self) -> Amount:
        tokens = self.fresh_tokens + self.cache_read_tokens + self.cache_write_tokens
        return Amount(tokens=tokens + self.output_tokens + self.reasoning_tokens, nanousd=self.cost_nanousd)


class Spent(Struct, frozen=True, kw_only=True):
    """Of one day and model, as it was booked. Without a model: what was counted of calls of which no usage was told."""

    day: date
    model: str
    agent: str = ""
    """Where agents are told apart; empty for calls of none."""
    calls: int
    """Attempts."""
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int


class Booking(Struct, frozen=True, kw_only=True):
    hold: HoldId
    events: tuple[UsageEvent, ...] = ()
    end: bool = False
    """The hold is over: what is still held of it is free."""
    keep: Amount | None = None
    """After the events, no more than this is held; the rest is free. None: what the events leave."""


class Deviation(Struct, frozen=True, kw_only=True):
    """A window whose books do not balance. There are none; who finds one has found a fault of the ledger."""

    account: str
    window_start: datetime
    settled: int
    events: int
    held: int
    holds: int


class BudgetLedger(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes."""

    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        """Hold `amount` of the tenant's current `tokens_per_day`, whose limit is `limit`, for at most `lease`.

        Raises:
            InvalidArgument: `request_exceeds_budget`, or an amount below 1.
            ResourceExhausted: `budget_exceeded`, `budget_in_flight`.
        """
        ...

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        """Book `spent` tokens without particulars, and end the hold."""
        ...

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance: ...

    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        """Hold `amount` on the current window of every account.

        Raises:
            InvalidArgument: `request_exceeds_budget`, an amount below 1 token or 0 nano-dollars, or no account.
            ResourceExhausted: `budget_exceeded`, `budget_in_flight`.
        """
        ...

    async def extend(
        self, auth: AuthContext, hold: HoldId, more: Amount, *, on: Sequence[Account], lease: timedelta
    ) -> Hold:
        """Hold `more`; `on` says the limits.

        Raises:
            NotFound: there is no such hold.
            Conflict: it is over.
            InvalidArgument, ResourceExhausted: as for `hold`.
        """
        ...

    async def renew(self, auth: AuthContext, holds: Sequence[HoldId], *, lease: timedelta) -> frozenset[HoldId]:
        """Prolong leases that have not ended; which they are."""
        ...

    async def checkpoint(self, auth: AuthContext, hold: HoldId, amount: Amount) -> None:
        """Should the lease end, `amount` of what is held now is what it counts as. A hold that is over stays as it is.

        Raises:
            NotFound: there is no such hold.
        """
        ...

    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        """All or nothing. Each hold is named once.

        Raises:
            NotFound: there is no such hold.
            InvalidArgument: a hold is named twice.
        """
        ...

    async def standing(self, auth: AuthContext, on: Sequence[Account]) -> tuple[Balance, ...]:
        """Of the current windows, in the order of `on`. Reads only."""
        ...

    async def usage(self, auth: AuthContext, request: str) -> tuple[UsageEvent, ...]:
        """The events of one request, by attempt."""
        ...

    async def spent(self, auth: AuthContext, *, since: datetime, by_agent: bool = False) -> tuple[Spent, ...]:
        """By day, then by model, then by agent where asked to. Adds up what was booked since: for people
        who ask, not for requests."""
        ...

    async def deviations(self, auth: AuthContext) -> tuple[Deviation, ...]:
        """Windows in which settled is not what events sum up to, or held not what open holds do."""
        ...

    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        """The tenant's own, beside `tokens_per_day`, by id."""
        ...

    async def set_budget(self, auth: AuthContext, tenant: TenantId, budget: Budget) -> None: ...

    async def remove_budget(self, auth: AuthContext, tenant: TenantId, budget: str) -> None:
        """Raises `NotFound` when there is no such budget."""
        ...
