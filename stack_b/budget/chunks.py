"""A chunk: what this process holds of a tenant's budgets, and what its requests make of it. No call is made here.

    held at the ledger = free + out + used and not booked yet

All of it is held at the ledger before any of it is used, and stays held until its usage is booked. So a process that is
killed leaves more held than it spent, never less; what it held counts as spent when its lease ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from ports.budget import NOTHING, Account, Amount, Booking, Hold, Left, UsageEvent
from ports.context import AuthContext
from ports.ids import HoldId, TenantId

REQUESTS: Final = 128
"""A chunk is leased for so many more requests like the one at hand, where the ledger has room for that."""
MOST_REQUESTS: Final = 4_096
"""What two seconds take, where a chunk did not last one; up to so many."""
MOST_TIMES: Final = 16
"""As many as before, at once: a moment's burst is no measure."""
SOON_S: Final = 1.0
IDLE_S: Final = 1.25
"""A chunk that nobody used for so long goes back."""
MAX_AGE_S: Final = 5.0
"""So does what is left of one that is as old as this, however busy: the next one is cut to the room there is then."""
AHEAD: Final = 3
"""The next one is leased when no more than the third part of this one is free, or only a third of its time left."""
LEAD_S: Final = 0.5
"""And where a half is used, and by the pace so far the rest will last no longer: a busy process waits longest."""
PACE_S: Final = 60.0
"""A process remembers for so long for how many requests it leased, after nobody used them any more."""
MARGIN_S: Final = 5.0
"""Nothing more is taken of a chunk whose lease ends within this time: its process could not prolong it."""

PoolKey: TypeAlias = tuple[TenantId, tuple[Account, ...]]


def pool_key(auth: AuthContext, on: tuple[Account, ...]) -> PoolKey:
    """Limits are part of an account: a change of them takes a new pool, and the old one goes back by itself."""
    return (auth.tenant, on)


def spare_for(amount: Amount, requests: int) -> Amount:
    return Amount(tokens=amount.tokens * requests, nanousd=amount.nanousd * requests)


def next_requests(before: int, lasted_s: float) -> int:
    """For how many requests to lease, given for how many the last chunk was and how long it lasted."""
    if lasted_s >= SOON_S:
        return max(before // 2, REQUESTS)
    times = min(int(2 * SOON_S / lasted_s), MOST_TIMES) if lasted_s > 0 else MOST_TIMES
    return min(before * times, MOST_REQUESTS)


@dataclass(slots=True, eq=False, kw_only=True)
class Chunk:
    auth: AuthContext
    """Of whoever it was leased for: says the tenant."""
    hold: HoldId
    free: Amount
    money: bool
    """Whether it is on budgets of money as well; else what calls cost is no part of it."""
    usable_until: datetime | None
    left: tuple[Left, ...]
    """Of soft budgets, before anything of it was spent."""
    accounts: frozenset[str]
    """Their keys."""
    began: float
    lease_until: float
    """By this process's clock, from before the lease was asked for."""
    last_used: float
    size: Amount = NOTHING
    """As it was leased."""
    out: Amount = NOTHING
    spent: Amount = NOTHING
    """By all its requests that are over, money in any case."""
    requests: int = 0
    """That hold `out`."""
    events: list[UsageEvent] = field(default_factory=list)
    exact: bool = False
    """Leased for one request: near a limit."""
    retired: bool = False
    """No request takes of it any more."""
    lost: bool = False
    """Its lease has ended. Usage is booked all the same."""

    def take(self, amount: Amount, now: datetime, monotonic: float) -> bool:
        """Whether the request may have `amount`."""
        # Of every request: sums are written out.
        free, out = self.free, self.out
        tokens, nanousd = free.tokens - amount.tokens, free.nanousd - amount.nanousd
        if self.retired or tokens < 0 or nanousd < 0 or monotonic >= self.lease_until - MARGIN_S:
            return False
        if self.usable_until is not None and now >= self.usable_until:
            return False
        self.free = Amount(tokens=tokens, nanousd=nanousd)
        self.out = Amount(tokens=out.tokens + amount.tokens, nanousd=out.nanousd + amount.nanousd)
        self.requests += 1
        self.last_used = monotonic
        return True

    def runs_out(self, monotonic: float) -> bool:
        """Whether it is time for the next one."""
        lasted = monotonic - self.began
        return (
            lasted * AHEAD >= MAX_AGE_S * (AHEAD - 1)
            or _short(self.free.tokens, self.size.tokens, lasted)
            or (self.money and _short(self.free.nanousd, self.size.nanousd, lasted))
        )

    def grow(self, more: Amount, monotonic: float) -> bool:
        """Whether a request that has taken of it may have `more`. It began before, so its window may be over."""
        fits = not self.retired and self.free.holds(more) and monotonic < self.lease_until - MARGIN_S
        if fits:
            self.free = self.free.minus(more)
            self.granted(more, monotonic)
        return fits

    def granted(self, more: Amount, monotonic: float) -> None:
        """The ledger holds `more` for one of its requests."""
        self.out = self.out.plus(more)
        self.last_used = monotonic

    def returned(self, more: Amount) -> None:
        """What was granted to a request that was over by then."""
        self.out = self.out.minus(more)
        self.free = self.free.plus(more)

    def give_back(self, amount: Amount, events: tuple[UsageEvent, ...], monotonic: float) -> None:
        """A request is over that had taken `amount`."""
        # Of every request, as `take` is.
        used = events[0].amount if len(events) == 1 else _used(events)
        free, out, spent = self.free, self.out, self.spent
        tokens, nanousd = used.tokens, used.nanousd
        self.spent = Amount(tokens=spent.tokens + tokens, nanousd=spent.nanousd + nanousd)
        self.events += events
        self.out = Amount(tokens=out.tokens - amount.tokens, nanousd=out.nanousd - amount.nanousd)
        self.requests -= 1
        self.last_used = monotonic
        # Below nothing, where the backend wrote more than it was allowed to: then nothing more is taken.
        self.free = Amount(
            tokens=free.tokens + amount.tokens - tokens,
            nanousd=free.nanousd + amount.nanousd - (nanousd if self.money else 0),
        )

    def due_back(self, monotonic: float) -> bool:
        """Whether what is free of it should be there for others."""
        return self.retired or monotonic - self.last_used >= IDLE_S or monotonic - self.began >= MAX_AGE_S

    def booking(self, count: int) -> Booking:
        """The first `count` events; of a retired chunk, also what it needs no longer."""
        events = tuple(self.events[:count])
        if not self.retired:
            return Booking(hold=self.hold, events=events)
        keep = self.out.plus(self._sum(self.events[count:]))
        return Booking(hold=self.hold, events=events, end=self.over_with(count), keep=keep)

    def over_with(self, count: int) -> bool:
        """Whether nothing comes after the first `count` events."""
        return self.retired and self.requests == 0 and count == len(self.events)

    def _sum(self, events: Iterable[UsageEvent]) -> Amount:
        used = _used(events)
        return used if self.money else Amount(tokens=used.tokens)


def _short(free: int, size: int, lasted: float) -> bool:
    return free * AHEAD <= size or (free * 2 <= size and free * lasted <= LEAD_S * (size - free))


def _used(events: Iterable[UsageEvent]) -> Amount:
    tokens = nanousd = 0
    for event in events:
        amount = event.amount
        tokens += amount.tokens
        nanousd += amount.nanousd
    return Amount(tokens=tokens, nanousd=nanousd)


def chunk_of(auth: AuthContext, hold: Hold, on: Iterable[Account], *, monotonic: float, lease: timedelta) -> Chunk:
    """`monotonic`: when the lease was asked for."""
    return Chunk(
        auth=auth,
        hold=hold.id,
        free=hold.held,
        size=hold.held,
        money=any(account.budget.unit == "nanousd" for account in on),
        usable_until=hold.usable_until,
        left=hold.left,
        accounts=frozenset(account.key for account in on),
        began=monotonic,
        lease_until=monotonic + lease.total_seconds(),
        last_used=monotonic,
    )
