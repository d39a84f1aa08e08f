"""When the API refuses new runs whoever asks: more queued than it wants to promise, or a database that is slow."""

from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from conformance.clock import ManualClock
from conformance.people import NODE
from observability.metrics import Metrics
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.queue import Depth
from stack_a.deps import Shedding
from stack_a.runs.shed import LOOK_EVERY, Shedder

pytestmark = pytest.mark.anyio


class Counting:
    """A queue that can only be counted, as slowly as told."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.depth_now = Depth(ready=0, leased=0)
        self.takes = timedelta(0)
        self.away = False
        self.looks = 0

    async def depth(self, _auth: AuthContext) -> Depth:
        self.looks += 1
        if self.away:
            raise Unavailable("away")
        if self.takes:
            await self._clock.sleep(self.takes)
        return self.depth_now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def queue(clock: ManualClock) -> Any:  # stands in for a port, of which it has one method
    return Counting(clock)


@pytest.fixture
def shedder(clock: ManualClock, queue: Any) -> Shedder:
    return Shedder(queue, clock, Shedding(max_queue_depth=10, slow_after=timedelta(seconds=1)), NODE, Metrics())


async def refusal(shedder: Shedder) -> Unavailable | None:
    try:
        await shedder.check_database()
        shedder.check_backlog()
    except Unavailable as error:
        return error
    return None


async def test_runs_are_accepted_up_to_the_depth_and_refused_beyond_it(
    shedder: Shedder, queue: Counting, clock: ManualClock
) -> None:
    queue.depth_now = Depth(ready=8, leased=2)
    accepted = await refusal(shedder)
    queue.depth_now = Depth(ready=9, leased=2)
    await clock.advance(LOOK_EVERY)
    refused = await refusal(shedder)
    queue.depth_now = Depth(ready=0, leased=0)
    await clock.advance(LOOK_EVERY)

    assert accepted is None
    assert refused is not None
    assert refused.retry_after is not None
    assert await refusal(shedder) is None


async def test_the_queue_is_looked_at_once_a_second_however_many_ask(
    shedder: Shedder, queue: Counting, clock: ManualClock
) -> None:
    for _ in range(50):
        await refusal(shedder)
    at_first = queue.looks
    await clock.advance(LOOK_EVERY)
    await refusal(shedder)

    assert (at_first, queue.looks) == (1, 2)


async def test_a_slow_look_refuses_runs_until_a_quick_one(
    shedder: Shedder, queue: Counting, clock: ManualClock
) -> None:
    queue.takes = timedelta(seconds=2)
    outcomes: list[Unavailable | None] = []

    async def first() -> None:
        outcomes.append(await refusal(shedder))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.lowlevel.checkpoint()
            soon = await refusal(shedder)
            await clock.advance(timedelta(seconds=1.5))
            overdue = await refusal(shedder)
            await clock.advance(timedelta(seconds=1))
    queue.takes = timedelta(0)
    await clock.advance(LOOK_EVERY)

    assert soon is None
    assert overdue is not None
    assert outcomes[0] is not None
    assert outcomes[0].retry_after is not None
    assert await refusal(shedder) is None


async def test_a_database_that_is_away_refuses_runs(shedder: Shedder, queue: Counting) -> None:
    queue.away = True

    assert await refusal(shedder) is not None
