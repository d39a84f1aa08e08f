"""The blocks around a request of the pipeline: what refuses it is told, and what it spent is settled.

Classes, not generators with a decorator: each request passes through several, and a generator costs six times as much.
"""

from collections.abc import Awaitable
from datetime import timedelta
from types import TracebackType

from ports.budget import Amount
from ports.errors import AgentOSError, InvalidArgument
from stack_b.budget.held import Held
from stack_b.budget.meter import Meter, Reservation, measured
from stack_b.budget.plan import tokens_that_fit
from stack_b.caller import Caller
from stack_b.interrupt import Deadlines, Interrupt
from stack_b.prepare import Ready
from stack_b.receipt import Trail
from stack_b.tell import Tell


class Refusing:
    """What refuses the request says what is known of it by then, and is counted. With `within`, so does running late; and
    a caller who leaves ends it with `Gone`."""

    __slots__ = ("_caller", "_interrupt", "_tell", "_trail", "_within")

    def __init__(
        self,
        trail: Trail,
        tell: Tell,
        within: Deadlines | None = None,
        caller: Caller | None = None,
        interrupt: Interrupt | None = None,
    ) -> None:
        """`interrupt`: of what was done without a task until now."""
        self._trail = trail
        self._tell = tell
        self._within = within
        self._caller = caller
        self._interrupt = interrupt

    def __enter__(self) -> None:
        if self._within is None:
            return
        if self._interrupt is None:
            self._interrupt = self._within.begin()
        else:
            self._interrupt.taken_over()
        if self._caller is not None:
            self._caller.ends_by(self._interrupt)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._within is not None and self._interrupt is not None:
            # A caller who leaves from now on ends nothing: the interrupt is over.
            try:
                self._within.end(self._interrupt, kind, error, at)
            except AgentOSError as late:
                self._refused(late)
                raise
        if error is not None and isinstance(error, AgentOSError):
            self._refused(error)

    def _refused(self, error: AgentOSError) -> None:
        self._trail.tell(error)
        self._tell.refused(error)


class Reserved(Reservation):
    """A reservation that the trail knows of. Whatever was spent is counted and settled on the way out."""

    def __init__(self, meter: Meter, ready: Ready, trail: Trail, lease: timedelta, tell: Tell) -> None:
        plan = ready.plan
        self.amount = Amount(tokens=ready.ask.amount, nanousd=plan.nanousd)
        self._auth = ready.auth
        self._purse = meter.purse
        self._balances = meter.balances
        self._on = measured(ready.limit, plan.also)
        self._lease = lease
        self._about = plan.about
        self._request = trail.request
        self._tell = tell
        self._trail = trail
        self._ready = ready

    def at_hand(self) -> Held | None:
        """The block, entered, where nothing has to be waited for; entering it again changes nothing."""
        ready, trail = self._ready, self._trail
        standing = self._balances.at_hand(ready.auth, limit=ready.limit)
        spending = None if standing is None else self._at_hand()
        if spending is not None:
            trail.standing, trail.spending = standing, spending
        return spending

    async def __aenter__(self) -> Held:
        if self.entered:
            return self
        ready, trail, balances = self._ready, self._trail, self._balances
        # Mostly nothing has to be waited for.
        standing = balances.at_hand(ready.auth, limit=ready.limit)
        trail.standing = standing or await balances.standing(ready.auth, limit=ready.limit)
        try:
            spending = trail.spending = self._at_hand() or await super().__aenter__()
        except InvalidArgument as error:
            if error.code == "request_exceeds_budget":
                # The ledger knows amounts; what a client can change is the answer's length.
                error.details["max_tokens_that_fits"] = tokens_that_fit(ready.plan, ready.ask, limit=ready.limit)
            raise
        return spending

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if (booking := self.left()) is not None:
            await booking

    def left(self) -> Awaitable[object] | None:
        """The way out; what there is to wait for, if anything."""
        trail = self._trail
        if self.chunk.left:
            trail.over = self.over
        self._tell.settled(model=self._ready.asked.name, tenant=self._auth.tenant, usage=self.total)
        booking = self.ended()
        # It has this one: nothing of a request is left to the collector.
        del self._trail
        return booking
