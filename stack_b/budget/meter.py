"""`reserved(...)`: hold a request's budget, and settle it exactly once on every way out."""

import os
from collections.abc import Awaitable
from functools import lru_cache
from types import TracebackType
from typing import Final

from msgspec.structs import replace

from ports.budget import TOKENS_PER_DAY, Account, BudgetLedger, Unit, UsageEvent
from ports.budget_rules import tokens_per_day
from ports.clock import Clock
from ports.context import AuthContext
from ports.ids import TenantId
from stack_b.budget.balances import Balances
from stack_b.budget.chunks import Chunk
from stack_b.budget.held import Held
from stack_b.budget.purse import Purse
from stack_b.budget.spending import Served, Spending
from stack_b.canonical import About

SETTLE_BOUND_S: Final = 10.0
"""How long a way out waits for its settlement; after that it goes on in the background."""


class Meter:
    """Measures the requests of this process against its tenants' budgets.

    `in_chunks`: most requests are held and settled in memory, see `purse`. Without, each is a hold of its own.
    """

    def __init__(self, ledger: BudgetLedger, clock: Clock, balances: Balances, *, in_chunks: bool = False) -> None:
        self.balances = balances
        self.purse = Purse(ledger, clock, in_chunks=in_chunks)

    def idle(self, tenant: TenantId, account: str = TOKENS_PER_DAY, unit: Unit = "tokens") -> int:
        """What the ledger counts as held of an account, and this process has for requests to come."""
        return self.purse.idle(tenant, account, unit)

    async def drain(self) -> None:
        """Wait for settlements still under way, and give back what is held for nobody; once, before the ledger closes."""
        await self.purse.drain()


class Reservation(Held):
    """A block: hold `amount` of all accounts; on the way out settle what was added to what it gives, which is this very
    object. Whose and of what, its subclass says.

    The settlement is a task of its own: a client that hangs up, a deadline or a shutdown can cancel the wait for it, and
    never the settlement. While this process lives it prolongs the lease; when that ends, what is held counts as spent in
    full.

    Entering raises the ledger's refusals (ResourceExhausted, InvalidArgument, Unavailable); nothing is held then.
    """

    entered = False
    """Something is held, and not settled yet."""

    _about: About
    _request: str

    async def __aenter__(self) -> Held:
        return self._begun((await self._purse.take(self._auth, self.amount, self._on, self._lease)).chunk)

    def _at_hand(self) -> Held | None:
        """The block, entered, where nothing has to be waited for, as mostly."""
        chunk = self._purse.at_hand(self._auth, self.amount, self._on, self._lease)
        return None if chunk is None else self._begun(chunk)

    def _begun(self, chunk: Chunk) -> Held:
        self._balances.held(self._auth.tenant, self.amount.tokens)
        self.entered, self.chunk = True, chunk
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if (booking := self.ended()) is not None:
            await booking

    def ended(self) -> Awaitable[object] | None:
        """The block is over; what there is to wait for, if anything."""
        self.entered = False
        auth, held, total = self._auth, self.amount, self.total
        tokens = total.prompt_tokens + total.completion_tokens
        self._balances.settled(auth.tenant, held.tokens, tokens)
        events = events_of(auth, self._about, self, self._request)
        return self._purse.over(self.chunk, held, events, tokens, total.cost_nanousd, wait_s=SETTLE_BOUND_S)


def events_of(auth: AuthContext, about: About, spending: Spending, request: str = "") -> tuple[UsageEvent, ...]:
    """An event for each attempt that consumed something, under an id of ours for the request; a new one if need be."""
    request = request or f"req_{os.urandom(16).hex()}"
    events: tuple[UsageEvent, ...] = ()
    number = 0
    for usage, served in spending.attempts():
        number += 1
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if not (prompt or completion or usage.cost_nanousd):
            continue
        # With more than 15 keywords a call would make a dictionary of them first: the kinds come afterwards.
        event = UsageEvent(
            request=request,
            attempt=number,
            correlation_id=auth.trace.correlation_id,
            principal=auth.principal,
            agent=about.agent,
            session=about.session,
            model=served.model,
            backend=served.backend,
            fresh_tokens=prompt,
            output_tokens=completion,
            cost_nanousd=usage.cost_nanousd,
            price=served.price,
            estimated=usage.estimated,
        )
        if served.cache_read or served.cache_write or served.reasoning:
            event = _in_kinds(event, served)
        events = (*events, event)
    return events


def _in_kinds(event: UsageEvent, served: Served) -> UsageEvent:
    """The kinds sum up to the totals, whatever a backend says of its caches."""
    read = min(served.cache_read, event.fresh_tokens)
    written = min(served.cache_write, event.fresh_tokens - read)
    reasoning = min(served.reasoning, event.output_tokens)
    return replace(
        event,
        fresh_tokens=event.fresh_tokens - read - written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=event.output_tokens - reasoning,
        reasoning_tokens=reasoning,
    )


def measured(limit: int, also: tuple[Account, ...]) -> tuple[Account, ...]:
    """What a request is measured against: the tenant's `limit` a day, and `also`."""
    return (*_tokens_alone(limit), *also) if also else _tokens_alone(limit)


@lru_cache(maxsize=1_024)
def _tokens_alone(limit: int) -> tuple[Account, ...]:
    """What nearly all requests are measured against: the same object for each."""
    return (tokens_per_day(limit),)
