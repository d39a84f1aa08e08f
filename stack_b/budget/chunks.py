"""A chunk: what this process holds of a tenant's budgets, and what its requests make of it. No call is made here.

    held at the ledger = free + out + used and not booked yet

All of it is held at the ledger before any of it is used, and stays held until its usage is booked. So a process that is
killed leaves more held than it spent, never less; what it held counts as spent when its lease ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeAlias

from ports.budget import Account, Amount, Booking, Hold, Left, UsageEvent
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
"""Limits are part of an account: a change of them takes a new pool, and the old one goes back by itself."""


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
    size: Amount
    """As it was leased."""
    free_tokens: int
    free_nanousd: int
    money: bool
    """Whether it is on budgets of money as well; else what calls cost is no part of it."""
    left: tuple[Left, ...]
    """Of soft budgets, before anything of it was spent."""
    accounts: frozenset[str]
    """Their keys."""
    began: float
    """By this process's clock, as all moments here."""
    window_until: float
    lease_until: float
    """From before the lease was asked for."""
    last_used: float
    # Of all its requests: sums are written out, as each request changes them.
    out_tokens: int = 0
    out_nanousd: int = 0
    spent_tokens: int = 0
    """By all its requests that are over, `spent_nanousd` in any case."""
    spent_nanousd: int = 0
    requests: int = 0
    """That hold `out`."""
    events: list[UsageEvent] = field(default_factory=list)
    exact: bool = False
    """Leased for one request: near a limit."""
    retired: bool = False
    """No request takes of it any more."""
    lost: bool = False
    """Its lease has ended. Usage is booked all the same."""
    old_at: float = field(init=False)
    """From then on it is time for the next one."""
    usable_until: float = field(init=False)
    half: int = field(init=False)
    """Of its tokens: with more free, and of tokens alone, it runs out by its age only."""

    def __post_init__(self) -> None:
        self.old_at = self.began + MAX_AGE_S * (AHEAD - 1) / AHEAD
        self.half = self.size.tokens // 2
        self.renewed(self.lease_until)

    @property
    def free(self) -> Amount:
        return Amount(tokens=self.free_tokens, nanousd=self.free_nanousd)

    @property
    def out(self) -> Amount:
        return Amount(tokens=self.out_tokens, nanousd=self.out_nanousd)

    @property
    def spent(self) -> Amount:
        return Amount(tokens=self.spent_tokens, nanousd=self.spent_nanousd)

    def renewed(self, until: float) -> None:
        """The lease goes on."""
        self.lease_until = until
        self.usable_until = min(self.window_until, until - MARGIN_S)

    def take(self, tokens: int, nanousd: int, monotonic: float) -> bool:
        """Whether the request may have so much."""
        free_tokens, free_nanousd = self.free_tokens - tokens, self.free_nanousd - nanousd
        if self.retired or free_tokens < 0 or free_nanousd < 0 or monotonic >= self.usable_until:
            return False
        self.free_tokens, self.free_nanousd = free_tokens, free_nanousd
        self.out_tokens += tokens
        self.out_nanousd += nanousd
        self.requests += 1
        self.last_used = monotonic
        return True

    def took(self, amount: Amount) -> None:
        """The request has so much in any case."""
        self.free_tokens -= amount.tokens
        self.free_nanousd -= amount.nanousd
        self.out_tokens += amount.tokens
        self.out_nanousd += amount.nanousd
        self.requests += 1

    def runs_out(self, monotonic: float) -> bool:
        """Whether it is time for the next one."""
        lasted = monotonic - self.began
        return (
            monotonic >= self.old_at
            or _short(self.free_tokens, self.size.tokens, lasted)
            or (self.money and _short(self.free_nanousd, self.size.nanousd, lasted))
        )

    def grow(self, more: Amount, monotonic: float) -> bool:
        """Whether a request that has taken of it may have `more`. It began before, so its window may be over."""
        fits = not self.retired and self.free.holds(more) and monotonic < self.lease_until - MARGIN_S
        if fits:
            self.free_tokens -= more.tokens
            self.free_nanousd -= more.nanousd
            self.granted(more, monotonic)
        return fits

    def granted(self, more: Amount, monotonic: float) -> None:
        """The ledger holds `more` for one of its requests."""
        self.out_tokens += more.tokens
        self.out_nanousd += more.nanousd
        self.last_used = monotonic

    def returned(self, more: Amount) -> None:
        """What was granted to a request that was over by then."""
        self.out_tokens -= more.tokens
        self.out_nanousd -= more.nanousd
        self.free_again(more)

    def freed(self) -> Amount:
        """What is free of it, which is given back."""
        free, self.free_tokens, self.free_nanousd = self.free, 0, 0
        return free

    def free_again(self, amount: Amount) -> None:
        self.free_tokens += amount.tokens
        self.free_nanousd += amount.nanousd

    def give_back(
        self, held: Amount, events: tuple[UsageEvent, ...], tokens: int, nanousd: int, monotonic: float
    ) -> None:
        """A request is over that had taken `held`, and has used `tokens` and `nanousd`."""
        self.spent_tokens += tokens
        self.spent_nanousd += nanousd
        self.events += events
        held_tokens, held_nanousd = held.tokens, held.nanousd
        self.out_tokens -= held_tokens
        self.out_nanousd -= held_nanousd
        self.requests -= 1
        self.last_used = monotonic
        # Below nothing, where the backend wrote more than it was allowed to: then nothing more is taken.
        self.free_tokens += held_tokens - tokens
        self.free_nanousd += held_nanousd - nanousd if self.money else held_nanousd

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
        used = used_by(events)
        return used if self.money else Amount(tokens=used.tokens)


def _short(free: int, size: int, lasted: float) -> bool:
    return free * AHEAD <= size or (free * 2 <= size and free * lasted <= LEAD_S * (size - free))


def used_by(events: Iterable[UsageEvent]) -> Amount:
    tokens = nanousd = 0
    for event in events:
        amount = event.amount
        tokens += amount.tokens
        nanousd += amount.nanousd
    return Amount(tokens=tokens, nanousd=nanousd)


def chunk_of(
    auth: AuthContext,
    hold: Hold,
    on: Iterable[Account],
    *,
    monotonic: float,
    lease: timedelta,
    window_until: float,
) -> Chunk:
    """`monotonic`: when the lease was asked for. `window_until`: nothing of it is taken any more from then on."""
    return Chunk(
        auth=auth,
        hold=hold.id,
        size=hold.held,
        free_tokens=hold.amount,
        free_nanousd=hold.nanousd,
        money=any(account.budget.unit == "nanousd" for account in on),
        left=hold.left,
        accounts=frozenset(account.key for account in on),
        began=monotonic,
        window_until=window_until,
        lease_until=monotonic + lease.total_seconds(),
        last_used=monotonic,
    )
