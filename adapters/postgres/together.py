"""Calls of one kind that come while others are on their way are committed together.

A transaction costs three round trips and a wait for the disk, whatever is in it. A call goes at once while a lane is free,
and what comes in the meantime goes together with the next. A lane is free again once it has rested for a few times as long
as its last batch took: so a batch is as large as the load makes it, and a busy machine is asked for fewer and larger ones
while it could still manage many small ones, which is what keeps them short. What nobody waits for is gathered for longer
(`gather_s`). The transaction of a batch is bound to the tenants of its calls.

That is made for a crowd, and a tenant that has a call now and then would pay for another's: it waits for neither batch nor
rest of a crowd that it doesn't belong to (`adapters.postgres.crowd`), but goes at once in a lane kept for such calls. While
that lane takes long, as for a lock that one of them waits for, the others are among the crowd again, which has two.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeAlias, TypeVar, cast

from msgspec import Struct

from adapters.postgres.crowd import Crowd
from adapters.postgres.engine import CALL_SECONDS, Database, Transaction
from adapters.postgres.errors import rolled_back
from ports.errors import Unavailable
from ports.ids import TenantId

AskT = TypeVar("AskT")
AnswerT = TypeVar("AnswerT")

Act: TypeAlias = Callable[[Transaction, Sequence[AskT]], Awaitable[Sequence[AnswerT | Exception]]]

MOST: Final = 32
"""Calls in one batch: the locks of all are held until its commit."""
LANES: Final = 2
"""Batches of one kind under way at once in this process at most, but for one of calls beside a crowd. A second one only
where the first takes long, as one does that waits for a lock: two would be smaller, and cost more."""
LONG_S: Final = 0.05
"""After this a batch takes long."""
REST: Final = 3
"""Times as long as a batch took, its kind begins no other one: at half of its capacity this process and the server spent a
third less on a run, and a call was answered in half the time (`tests.bench.engine`)."""
MOST_REST_S: Final = 0.02
"""But no longer than this, unless a kind says less."""


class Apart(Exception):
    """Raised by an `act`: make these asks, by their places, each by itself, and all others together without them."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(places)
        self.places = frozenset(places)


class _Call(Struct, Generic[AskT, AnswerT], frozen=True, eq=False):
    tenant: TenantId
    ask: AskT
    order: str
    answer: asyncio.Future[AnswerT]


class Together(Generic[AskT, AnswerT]):
    """Commits what `act` does for one or more asks, which may be of several tenants.

    `act` gives each ask its answer, or the exception that is for it alone, in the order of the asks. When it raises,
    nothing of the whole batch is kept, and each call, or those that `Apart` names, is made again by itself; only that the
    database does not answer is told to all.
    """

    def __init__(
        self,
        database: Database,
        act: Act[AskT, AnswerT],
        *,
        most: int = MOST,
        gather_s: float = 0.0,
        most_rest_s: float = MOST_REST_S,
    ) -> None:
        """With `gather_s` the first call waits so long for others: for what nobody waits for."""
        self._gather_s = gather_s
        self._most_rest_s = most_rest_s
        self._gathering: asyncio.TimerHandle | None = None
        self._database = database
        self._act = act
        self._most = most
        self._waiting: deque[_Call[AskT, AnswerT]] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._crowd = Crowd()
        self._beside: deque[_Call[AskT, AnswerT]] = deque()
        """What waits and should not wait for a crowd."""
        self._beside_lane: asyncio.Task[None] | None = None
        self._beside_is_late = False
        """Its batch takes long."""
        self._relief: asyncio.TimerHandle | None = None
        self._rested_at = 0.0

    async def __call__(self, tenant: TenantId, ask: AskT, *, order: str) -> AnswerT:
        """`order` is that of the calls in a batch, and with it of their locks: two batches never wait in a circle.

        Raises what is for this call, and `Unavailable` when it had to wait too long; then it may or may not have been made.
        """
        loop = asyncio.get_running_loop()
        call = _Call(tenant, ask, order, loop.create_future())
        self._crowd.note(tenant)
        if self._is_held_up(loop.time()) and self._may_go_beside() and self._crowd.is_beside(tenant):
            self._beside.append(call)
            if self._beside_lane is None:
                self._beside_lane = asyncio.create_task(self._serve_beside())
        else:
            self._line_up(call, loop)
        return await self._answer(call)

    def _line_up(self, call: _Call[AskT, AnswerT], loop: asyncio.AbstractEventLoop) -> None:
        self._waiting.append(call)
        if not self._lanes and self._gather_s and len(self._waiting) < self._most:
            if self._gathering is None:
                self._gathering = loop.call_later(self._gather_s, self._gathered)
        elif not self._lanes:
            self._open_lane()
        elif self._relief is None and len(self._lanes) < LANES:
            self._relief = loop.call_later(LONG_S, self._relieve)

    async def _answer(self, call: _Call[AskT, AnswerT]) -> AnswerT:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer: AnswerT = await call.answer
                return answer
        except TimeoutError as error:
            raise _unanswered() from error

    def _is_held_up(self, now: float) -> bool:
        """Whether a call would wait for a batch, or for the rest after one."""
        return bool(self._lanes) or self._rested_at > now

    def _may_go_beside(self) -> bool:
        return not self._gather_s and not self._beside_is_late

    def _open_lane(self) -> None:
        self._lanes.add(asyncio.create_task(self._serve()))

    def _gathered(self) -> None:
        self._gathering = None
        if self._waiting and not self._lanes:
            self._open_lane()

    def _relieve(self) -> None:
        self._relief = None
        if self._waiting and len(self._lanes) < LANES:
            self._open_lane()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if (left := self._rested_at - loop.time()) > 0:
                    await asyncio.sleep(left)
                began_at = loop.time()
                calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
                await self._make(calls)
                ended_at = loop.time()
                self._rested_at = ended_at + min(self._most_rest_s, REST * (ended_at - began_at))
        finally:
            # In the same turn of the loop: the next call must not take us for a lane that will serve it.
            self._lanes.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _serve_beside(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._beside:
                calls = [self._beside.popleft() for _ in range(min(len(self._beside), self._most))]
                late = loop.call_later(LONG_S, self._leave_beside, loop)
                try:
                    await self._make(calls)
                finally:
                    late.cancel()
                    self._beside_is_late = False
        finally:
            self._beside_lane = None  # in the same turn, as above

    def _leave_beside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody waits for that lane any more."""
        self._beside_is_late = True
        while self._beside:
            self._line_up(self._beside.popleft(), loop)

    async def _make(self, calls: list[_Call[AskT, AnswerT]]) -> None:
        # Whoever left, or waited long enough, while others were served does not want it any more.
        calls = [call for call in calls if not call.answer.done()]
        if not calls:
            return
        found: Sequence[AnswerT | Exception] | BaseException
        try:
            found = await self._committed(calls)
        except (Exception, asyncio.CancelledError) as error:
            if _leaves():
                raise
            found = error
        if isinstance(found, BaseException):
            if len(calls) > 1 and isinstance(found, Exception) and _may_be_made_again(found):
                apart = found.places if isinstance(found, Apart) else range(len(calls))
                await self._make([call for place, call in enumerate(calls) if place not in apart])
                for place in sorted(apart):
                    await self._make([calls[place]])
                return
            ours = found if isinstance(found, Exception) else _unanswered()
            found = [ours] * len(calls)
        for call, answer in zip(calls, found, strict=True):
            if call.answer.done():
                continue  # left meanwhile
            if isinstance(answer, BaseException):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)

    async def _committed(self, calls: list[_Call[AskT, AnswerT]]) -> Sequence[AnswerT | Exception]:
        calls.sort(key=lambda call: (call.tenant, call.order))
        tenants = dict.fromkeys(call.tenant for call in calls)
        async with self._database.transaction(*tenants) as transaction:
            return await self._act(transaction, [call.ask for call in calls])


def _leaves() -> bool:
    """Whether somebody cancels this task, and not something in it that ended as if cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _may_be_made_again(error: Exception) -> bool:
    """Whether nothing of the batch was done, and it may be one call only that was in the way."""
    return not isinstance(error, Unavailable) or rolled_back(error)


def _unanswered() -> Unavailable:
    return Unavailable("the database did not answer in time; whether it acted is unknown")
