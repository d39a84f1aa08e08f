"""Upkeep: as often as it says, to the end of a backlog, and whatever goes wrong."""

from datetime import timedelta

import anyio
import pytest

from conformance.clock import ManualClock
from ports.context import RUNS_ANY_TENANT, AuthContext
from ports.errors import Unavailable
from ports.maintenance import Upkeep as Done
from stack_a.upkeep import BREATH, EVERY, Upkeep

pytestmark = pytest.mark.anyio

RETENTION = timedelta(days=90)


class Maintenance:
    """Says what a test tells it to, and remembers how it was asked."""

    def __init__(self, *answers: Done | Unavailable) -> None:
        self._answers = list(answers)
        self.asked: list[timedelta] = []

    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Done:
        auth.require(RUNS_ANY_TENANT)
        self.asked.append(retention)
        answer = self._answers.pop(0) if self._answers else Done(runs_removed=0, more=False)
        if isinstance(answer, Unavailable):
            raise answer
        return answer


async def after(maintenance: Maintenance, *moments: timedelta) -> int:
    """How often it was asked once `moments` have passed."""
    clock = ManualClock()
    async with anyio.create_task_group() as group:
        group.start_soon(Upkeep(maintenance, clock, retention=RETENTION).serve)
        await clock.advance(timedelta(0))
        for moment in moments:
            await clock.advance(moment)
        group.cancel_scope.cancel()
    return len(maintenance.asked)


async def test_it_is_done_at_once_and_then_every_hour_or_so() -> None:
    assert await after(Maintenance()) == 1
    assert await after(Maintenance(), EVERY / 2) == 1
    assert await after(Maintenance(), EVERY * 1.3, EVERY * 1.3) == 3


async def test_a_backlog_is_worked_off_with_pauses() -> None:
    backlog = [Done(runs_removed=200, more=True), Done(runs_removed=200, more=True), Done(runs_removed=3, more=False)]

    assert await after(Maintenance(*backlog)) == 1
    assert await after(Maintenance(*backlog), BREATH, BREATH) == 3
    assert await after(Maintenance(*backlog), BREATH, BREATH, BREATH) == 3


async def test_a_storage_that_is_away_is_asked_again_in_the_next_round() -> None:
    maintenance = Maintenance(Unavailable("the database restarts"))

    assert await after(maintenance, EVERY * 1.3) == 2
    assert set(maintenance.asked) == {RETENTION}
