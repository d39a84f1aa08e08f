"""What is remembered of a tenant: read by one for all, ahead of time, and never used beyond its time."""

import asyncio
from datetime import timedelta

import pytest

from conformance.clock import ManualClock
from conformance.people import ACME, GLOBEX
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.fresh import AHEAD, STALE, Fresh

pytestmark = [pytest.mark.anyio]

MOMENT = timedelta(milliseconds=1)
NOTHING = timedelta(0)


class Source:
    """Answers with how often it was asked, when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()
        self.away = False
        self.waiting = 0

    async def read(self, _: AuthContext) -> int:
        self.asked += 1
        answer = self.asked
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        if self.away:
            raise Unavailable("the source is away")
        return answer


async def test_many_who_ask_at_once_are_one_question() -> None:
    source, clock = Source(), ManualClock()
    fresh = Fresh(source.read, clock)
    source.open.clear()
    asking = [asyncio.create_task(fresh.of(ACME)) for _ in range(20)]
    await asyncio.sleep(0)
    source.open.set()

    assert await asyncio.gather(*asking) == [1] * 20
    assert await fresh.of(GLOBEX) == 2


async def test_a_value_is_renewed_before_it_is_stale_and_nobody_waits_for_that() -> None:
    source, clock = Source(), ManualClock()
    fresh = Fresh(source.read, clock)
    await fresh.of(ACME)
    await clock.advance(AHEAD)
    source.open.clear()

    assert [await fresh.of(ACME), await fresh.of(ACME)] == [1, 1]
    source.open.set()
    await clock.advance(NOTHING)

    assert await fresh.of(ACME) == 2
    assert source.asked == 2


async def test_a_stale_value_is_not_used_and_the_failure_to_renew_it_is_told_to_each() -> None:
    source, clock = Source(), ManualClock()
    fresh = Fresh(source.read, clock)
    await fresh.of(ACME)
    source.away = True
    await clock.advance(STALE - MOMENT)
    assert await fresh.of(ACME) == 1
    await clock.advance(NOTHING)
    await clock.advance(MOMENT)
    source.open.clear()
    asking = [asyncio.create_task(fresh.of(ACME)) for _ in range(3)]
    await asyncio.sleep(0)
    source.open.set()

    errors = await asyncio.gather(*asking, return_exceptions=True)

    assert [type(error) for error in errors] == [Unavailable] * 3
    assert len({id(error) for error in errors}) == 3
    assert source.asked == 3


async def test_when_the_one_who_asked_first_leaves_the_others_have_the_answer() -> None:
    source, clock = Source(), ManualClock()
    fresh = Fresh(source.read, clock)
    source.open.clear()
    first, second = (asyncio.create_task(fresh.of(ACME)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    source.open.set()

    assert (await second, source.asked) == (1, 1)


async def test_closing_ends_what_is_read_ahead() -> None:
    source, clock = Source(), ManualClock()
    fresh = Fresh(source.read, clock)
    await fresh.of(ACME)
    await clock.advance(AHEAD)
    source.open.clear()
    await fresh.of(ACME)
    await asyncio.sleep(0)
    before = source.waiting

    await fresh.close()

    assert (before, source.waiting) == (1, 0)


async def test_what_is_asked_for_ahead_is_what_the_next_one_waits_for() -> None:
    source, clock = Source(), ManualClock()
    fresh = Fresh(source.read, clock)
    source.open.clear()
    fresh.ahead(ACME)
    await clock.advance(NOTHING)
    begun = source.waiting
    asking = asyncio.create_task(fresh.of(ACME))
    await clock.advance(NOTHING)
    source.open.set()

    assert (begun, await asking) == (1, 1)
    fresh.ahead(ACME)
    await clock.advance(NOTHING)
    assert source.asked == 1
