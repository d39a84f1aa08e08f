"""The blocks around a request of the pipeline: what refuses it is told, and what it spent is settled.

Classes, not generators with a decorator: each request passes through several, and a generator costs six times as much.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from ports.budget import Balance
from ports.errors import AgentOSError, InvalidArgument
from ports.messages import Usage
from stack_b.budget.meter import Spending
from stack_b.interrupt import Deadlines, Interrupt
from stack_b.receipt import Trail
from stack_b.tell import Tell


class Refusing:
    """What refuses the request says what is known of it by then, and is counted. With `within`, so does running late."""

    __slots__ = ("_interrupt", "_tell", "_trail", "_within")

    def __init__(self, trail: Trail, tell: Tell, within: Deadlines | None) -> None:
        self._trail = trail
        self._tell = tell
        self._within = within
        self._interrupt: Interrupt | None = None

    def __enter__(self) -> None:
        if self._within is not None:
            self._interrupt = self._within.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._within is not None and self._interrupt is not None:
                self._within.end(self._interrupt, kind, error, at)
        except AgentOSError as late:
            self._refused(late)
            raise
        if isinstance(error, AgentOSError):
            self._refused(error)

    def _refused(self, error: AgentOSError) -> None:
        self._trail.tell(error)
        self._tell.refused(error)


class Reserved:
    """A reservation that the trail knows of. Whatever was spent is counted and settled on the way out."""

    __slots__ = ("_fits", "_reservation", "_settled", "_spending", "_standing", "_trail")

    def __init__(
        self,
        reservation: AbstractAsyncContextManager[Spending],
        trail: Trail,
        *,
        standing: Callable[[], Awaitable[Balance]],
        fits: Callable[[], int],
        settled: Callable[[Usage], None],
    ) -> None:
        """`standing`: the balance before; `fits`: how long an answer the budget has room for."""
        self._reservation = reservation
        self._trail = trail
        self._standing = standing
        self._fits = fits
        self._settled = settled

    async def __aenter__(self) -> Spending:
        self._trail.balance = await self._standing()
        try:
            self._spending = await self._reservation.__aenter__()
        except InvalidArgument as error:
            if error.code == "request_exceeds_budget":
                # The ledger knows amounts; what a client can change is the answer's length.
                error.details["max_tokens_that_fits"] = self._fits()
            raise
        self._trail.spending = self._spending
        return self._spending

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._trail.over = self._spending.over
        self._settled(self._spending.total)
        await self._reservation.__aexit__(kind, error, at)
