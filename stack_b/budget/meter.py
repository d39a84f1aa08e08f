"""`reserved(...)`: hold a request's budget, and settle it exactly once on every way out."""

import os
from collections.abc import Awaitable
from datetime import timedelta
from types import TracebackType
from typing import Final

from msgspec import Struct

from ports.budget import TOKENS_PER_DAY, Account, Amount, BudgetLedger, Unit, UsageEvent
from ports.budget_rules import tokens_per_day
from ports.clock import Clock
from ports.context import AuthContext
from ports.ids import TenantId
from ports.messages import Usage
from stack_b.budget.balances import Balances
from stack_b.budget.held import Held
from stack_b.budget.over import over
from stack_b.budget.purse import Purse, Taken
from stack_b.canonical import NOBODY_KNOWN, About

SETTLE_BOUND_S: Final = 10.0
"""How long a way out waits for its settlement; after that it goes on in the background."""


class Served(Struct, frozen=True, kw_only=True):
    """Who served an attempt, and which of its tokens were of a kind of their own."""

    model: str = ""
    backend: str = ""
    price: str = ""
    """The version of the price."""
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0


_NOBODY: Final = Served()
_NOTHING_USED: Final = Usage()


class Spending:
    """What a request has consumed so far. Whatever it is on the way out is settled."""

    __slots__ = ("_assumed", "_assumed_of", "_known", "held", "total")

    def __init__(self, held: Held | None = None) -> None:
        self.held = held
        self._known: list[tuple[Usage, Served]] = []
        self._assumed = _NOTHING_USED
        self._assumed_of = _NOBODY
        self.total = _NOTHING_USED
        """What is known of and what is assumed."""

    @property
    def over(self) -> tuple[str, ...]:
        """Soft budgets that are beyond their limits with this."""
        if self.held is None:
            return ()
        chunk = self.held.taken.chunk
        return over(chunk.left, chunk.spent.plus(self.amount)) if chunk.left else ()

    @property
    def amount(self) -> Amount:
        total = self.total
        return Amount(tokens=total.total_tokens, nanousd=total.cost_nanousd)

    def assume(self, usage: Usage, of: Served = _NOBODY) -> None:
        """A call is about to be made; should nobody learn what became of it, it is taken to have cost this."""
        self._assumed, self._assumed_of = usage, of
        self.total = self._sum() if self._known else usage

    def add(self, usage: Usage, of: Served = _NOBODY) -> None:
        """The call's own count, in place of what was assumed."""
        self._known.append((usage, of))
        self._assumed, self._assumed_of = _NOTHING_USED, _NOBODY
        self.total = self._sum() if len(self._known) > 1 else usage

    @property
    def only(self) -> tuple[Usage, Served] | None:
        """The one attempt there was, as mostly, once it is over."""
        known = self._known
        return known[0] if len(known) == 1 and self._assumed is _NOTHING_USED else None

    def attempts(self) -> list[tuple[Usage, Served]]:
        """In their order; those that were free as well."""
        return [*self._known, *([(self._assumed, self._assumed_of)] if self._assumed != _NOTHING_USED else [])]

    def _sum(self) -> Usage:
        total = self._known[0][0]
        for usage, _ in self._known[1:]:
            total = total.plus(usage)
        return total if self._assumed is _NOTHING_USED else total.plus(self._assumed)


class Meter:
    """Measures the requests of this process against its tenants' budgets.

    `in_chunks`: most requests are held and settled in memory, see `purse`. Without, each is a hold of its own.
    """

    def __init__(self, ledger: BudgetLedger, clock: Clock, balances: Balances, *, in_chunks: bool = False) -> None:
        self._balances = balances
        self._purse = Purse(ledger, clock, in_chunks=in_chunks)

    def reserved(
        self,
        auth: AuthContext,
        amount: int,
        *,
        limit: int,
        lease: timedelta,
        also: tuple[Account, ...] = (),
        nanousd: int = 0,
        about: About = NOBODY_KNOWN,
        request: str = "",
    ) -> "Reservation":
        """A block: hold `amount` tokens of the tenant's `limit` a day, and `nanousd` too where `also` has such budgets; on
        the way out settle what was added to the `Spending`.

        The settlement is a task of its own: a client that hangs up, a deadline or a shutdown can cancel the wait for
        it, and never the settlement. While this process lives it prolongs the lease; when that ends, what is held counts as
        spent in full.

        Raises:
            ResourceExhausted, InvalidArgument, Unavailable: the ledger's refusals; nothing is held then.
        """
        on = (tokens_per_day(limit), *also)
        wanted = Amount(tokens=amount, nanousd=nanousd)
        return Reservation(self._purse, self._balances, auth, wanted, on=on, lease=lease, about=about, request=request)

    def idle(self, tenant: TenantId, account: str = TOKENS_PER_DAY, unit: Unit = "tokens") -> int:
        """What the ledger counts as held of an account, and this process has for requests to come."""
        return self._purse.idle(tenant, account, unit)

    async def drain(self) -> None:
        """Wait for settlements still under way, and give back what is held for nobody; once, before the ledger closes."""
        await self._purse.drain()


class Reservation:
    """See `Meter.reserved`."""

    __slots__ = (
        "_about",
        "_amount",
        "_auth",
        "_balances",
        "_held",
        "_lease",
        "_on",
        "_purse",
        "_request",
        "_spending",
    )

    def __init__(
        self,
        purse: Purse,
        balances: Balances,
        auth: AuthContext,
        amount: Amount,
        *,
        on: tuple[Account, ...],
        lease: timedelta,
        about: About,
        request: str,
    ) -> None:
        self._request = request
        self._purse = purse
        self._balances = balances
        self._auth = auth
        self._amount = amount
        self._on = on
        self._lease = lease
        self._about = about

    async def __aenter__(self) -> Spending:
        return self._begun(await self._purse.take(self._auth, self._amount, self._on, self._lease))

    def at_hand(self) -> Spending | None:
        """The block, entered, where nothing has to be waited for, as mostly."""
        taken = self._purse.at_hand(self._auth, self._amount, self._on, self._lease)
        return None if taken is None else self._begun(taken)

    def _begun(self, taken: Taken) -> Spending:
        self._balances.held(self._auth.tenant, self._amount.tokens)
        self._held = Held(self._auth, taken, on=self._on, lease=self._lease, purse=self._purse, balances=self._balances)
        self._spending = Spending(self._held)
        return self._spending

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if (booking := self.ended()) is not None:
            await booking

    def ended(self) -> Awaitable[object] | None:
        """The block is over; what there is to wait for, if anything."""
        spending = self._spending
        self._balances.settled(self._auth.tenant, self._held.amount.tokens, spending.total.total_tokens)
        events = events_of(self._auth, self._about, spending, self._request)
        return self._purse.over(self._held.taken, events, wait_s=SETTLE_BOUND_S)


def events_of(auth: AuthContext, about: About, spending: Spending, request: str = "") -> tuple[UsageEvent, ...]:
    """An event for each attempt that consumed something, under an id of ours for the request; a new one if need be."""
    request = request or f"req_{os.urandom(16).hex()}"
    if (only := spending.only) is not None and only[0].total_tokens:
        return (_event(auth, about, (request, 1), *only),)
    events: list[UsageEvent] = []
    for number, (usage, served) in enumerate(spending.attempts(), start=1):
        if usage.prompt_tokens or usage.completion_tokens or usage.cost_nanousd:
            events.append(_event(auth, about, (request, number), usage, served))
    return tuple(events)


def _event(auth: AuthContext, about: About, key: tuple[str, int], usage: Usage, served: Served) -> UsageEvent:
    read = written = reasoning = 0
    if served.cache_read or served.cache_write or served.reasoning:
        # The kinds sum up to the totals, whatever a backend says of its caches.
        read = min(served.cache_read, usage.prompt_tokens)
        written = min(served.cache_write, usage.prompt_tokens - read)
        reasoning = min(served.reasoning, usage.completion_tokens)
    return UsageEvent(
        request=key[0],
        attempt=key[1],
        correlation_id=auth.trace.correlation_id,
        principal=auth.principal,
        agent=about.agent,
        session=about.session,
        model=served.model,
        backend=served.backend,
        fresh_tokens=usage.prompt_tokens - read - written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=usage.completion_tokens - reasoning,
        reasoning_tokens=reasoning,
        cost_nanousd=usage.cost_nanousd,
        price=served.price,
        estimated=usage.estimated,
    )
