"""`reserved(...)`: hold a request's budget, and settle it exactly once on every way out."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, TypeVar

from ports.budget import BudgetLedger, Hold
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.messages import Usage
from stack_b.budget.balances import Balances

SETTLE_TRIES: Final = 3
SETTLE_RETRY: Final = timedelta(milliseconds=200)
SETTLE_BOUND_S: Final = 10.0
"""How long a way out waits for its settlement; after that it goes on in the background."""

ResultT = TypeVar("ResultT")

logger = logging.getLogger("agentos.gateway")


class Spending:
    """What a request has consumed so far. Whatever it is on the way out is settled."""

    def __init__(self) -> None:
        self._known = Usage()
        self._assumed = Usage()

    @property
    def total(self) -> Usage:
        return self._known.plus(self._assumed)

    def assume(self, usage: Usage) -> None:
        """A call is about to be made; should nobody learn what became of it, it is taken to have cost this."""
        self._assumed = usage

    def add(self, usage: Usage) -> None:
        """The call's own count, in place of what was assumed."""
        self._known = self._known.plus(usage)
        self._assumed = Usage()


class Meter:
    """Owns the holds of this process."""

    def __init__(self, ledger: BudgetLedger, clock: Clock, balances: Balances) -> None:
        self._ledger = ledger
        self._clock = clock
        self._balances = balances
        self._tasks: set[asyncio.Task[object]] = set()

    @asynccontextmanager
    async def reserved(
        self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta
    ) -> AsyncIterator[Spending]:
        """Hold `amount`; on the way out settle what was added to the `Spending`.

        The settlement is a task of its own: a client that hangs up, a deadline or a shutdown can cancel the wait for it,
        and never the settlement. If the ledger can't be reached, the hold's lease runs out and counts as spent in full.

        Raises:
            ResourceExhausted, InvalidArgument, Unavailable: the ledger's refusals; nothing is held then.
        """
        hold = await self._hold(auth, amount, limit=limit, lease=lease)
        self._balances.held(auth.tenant, amount)
        spending = Spending()
        try:
            yield spending
        finally:
            self._balances.settled(auth.tenant, amount, spending.total.total_tokens)
            task = self._kept(asyncio.create_task(self._settle(auth, hold, spending.total.total_tokens)))
            await asyncio.wait({task}, timeout=SETTLE_BOUND_S)

    async def drain(self) -> None:
        """Wait for settlements still under way; called once, before the ledger closes."""
        # Twice at most: a grant that comes late adds its own settlement.
        for _ in range(2):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=SETTLE_BOUND_S)

    async def _hold(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        """Reserve. A caller cancelled meanwhile leaves no hold behind: one that was still granted is given back."""
        task = self._kept(asyncio.create_task(self._reserve(auth, amount, limit=limit, lease=lease)))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda granted: self._give_back(auth, granted))
            raise

    def _give_back(self, auth: AuthContext, granted: asyncio.Task[Hold]) -> None:
        if not granted.cancelled() and granted.exception() is None:
            self._kept(asyncio.create_task(self._settle(auth, granted.result(), 0)))

    def _kept(self, task: asyncio.Task[ResultT]) -> asyncio.Task[ResultT]:
        """Hold on to `task`: the event loop itself only keeps weak references."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        return await self._ledger.reserve(auth, amount, limit=limit, lease=lease)

    async def _settle(self, auth: AuthContext, hold: Hold, spent: int) -> None:
        for attempt in range(1, SETTLE_TRIES + 1):
            try:
                await self._ledger.settle(auth, hold.id, spent)
            except AgentOSError as error:
                # Settling twice changes nothing (BUD-2), so an unknown outcome may be tried again.
                if not error.retryable or attempt == SETTLE_TRIES:
                    logger.error(  # noqa: TRY400 - the code says it; a stack would not
                        "budget.settle_failed",
                        extra={"tenant_id": auth.tenant, "hold_id": hold.id, "tokens": spent, "code": error.code},
                    )
                    return
                await self._clock.sleep(SETTLE_RETRY * attempt)
            else:
                return
