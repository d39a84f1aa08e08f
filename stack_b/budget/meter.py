"""`reserved(...)`: hold a request's budget, and settle it exactly once on every way out."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ports.budget import TOKENS_PER_DAY, Account, Amount, BudgetLedger, Unit, UsageEvent
from ports.budget_rules import tokens_per_day
from ports.clock import Clock
from ports.context import AuthContext
from ports.ids import TenantId
from ports.messages import Usage
from stack_b.budget.balances import Balances
from stack_b.budget.held import Held
from stack_b.budget.over import over
from stack_b.budget.purse import Purse
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


class Spending:
    """What a request has consumed so far. Whatever it is on the way out is settled."""

    def __init__(self, held: Held | None = None) -> None:
        self.held = held
        self._known: list[tuple[Usage, Served]] = []
        self._assumed = Usage()
        self._assumed_of = _NOBODY

    @property
    def total(self) -> Usage:
        total = Usage()
        for usage, _ in self._known:
            total = total.plus(usage)
        return total.plus(self._assumed)

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

    def add(self, usage: Usage, of: Served = _NOBODY) -> None:
        """The call's own count, in place of what was assumed."""
        self._known.append((usage, of))
        self._assumed, self._assumed_of = Usage(), _NOBODY

    def attempts(self) -> list[tuple[Usage, Served]]:
        """In their order; those that were free as well."""
        return [*self._known, *([(self._assumed, self._assumed_of)] if self._assumed != Usage() else [])]


class Meter:
    """Measures the requests of this process against its tenants' budgets.

    `in_chunks`: most requests are held and settled in memory, see `purse`. Without, each is a hold of its own.
    """

    def __init__(self, ledger: BudgetLedger, clock: Clock, balances: Balances, *, in_chunks: bool = False) -> None:
        self._balances = balances
        self._purse = Purse(ledger, clock, in_chunks=in_chunks)

    @asynccontextmanager
    async def reserved(
        self,
        auth: AuthContext,
        amount: int,
        *,
        limit: int,
        lease: timedelta,
        also: tuple[Account, ...] = (),
        nanousd: int = 0,
        about: About = NOBODY_KNOWN,
    ) -> AsyncIterator[Spending]:
        """Hold `amount` tokens of the tenant's `limit` a day, and `nanousd` too where `also` has such budgets; on the way
        out settle what was added to the `Spending`.

        The settlement is a task of its own: a client that hangs up, a deadline or a shutdown can cancel the wait for
        it, and never the settlement. While this process lives it prolongs the lease; when that ends, what is held counts as
        spent in full.

        Raises:
            ResourceExhausted, InvalidArgument, Unavailable: the ledger's refusals; nothing is held then.
        """
        on = (tokens_per_day(limit), *also)
        taken = await self._purse.take(auth, Amount(tokens=amount, nanousd=nanousd), on, lease)
        self._balances.held(auth.tenant, amount)
        held = Held(auth, taken, on=on, lease=lease, purse=self._purse, balances=self._balances)
        spending = Spending(held)
        try:
            yield spending
        finally:
            self._balances.settled(auth.tenant, held.amount.tokens, spending.total.total_tokens)
            await self._purse.put(held.taken, events_of(auth, about, spending), wait_s=SETTLE_BOUND_S)

    def idle(self, tenant: TenantId, account: str = TOKENS_PER_DAY, unit: Unit = "tokens") -> int:
        """What the ledger counts as held of an account, and this process has for requests to come."""
        return self._purse.idle(tenant, account, unit)

    async def drain(self) -> None:
        """Wait for settlements still under way, and give back what is held for nobody; once, before the ledger closes."""
        await self._purse.drain()


def events_of(auth: AuthContext, about: About, spending: Spending) -> tuple[UsageEvent, ...]:
    """An event for each attempt that consumed something, under an id of ours for the request."""
    request = f"req_{uuid.uuid4().hex}"
    common = UsageEvent(
        request=request,
        attempt=0,
        correlation_id=auth.trace.correlation_id,
        principal=auth.principal,
        agent=about.agent,
        session=about.session,
    )
    return tuple(
        _event(common, number, usage, served)
        for number, (usage, served) in enumerate(spending.attempts(), start=1)
        if usage.total_tokens or usage.cost_nanousd
    )


def _event(common: UsageEvent, attempt: int, usage: Usage, served: Served) -> UsageEvent:
    # The kinds sum up to the totals, whatever a backend says of its caches.
    read = min(served.cache_read, usage.prompt_tokens)
    written = min(served.cache_write, usage.prompt_tokens - read)
    reasoning = min(served.reasoning, usage.completion_tokens)
    return replace(
        common,
        attempt=attempt,
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
