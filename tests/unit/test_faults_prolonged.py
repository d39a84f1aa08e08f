"""The fault driver goes on until it has seen enough, and not for ever."""

from datetime import timedelta
from typing import Final

import pytest
from msgspec.structs import replace

from conformance.clock import ManualClock
from tests.faults.driver import LONGEST, Plan, long, until_enough
from tests.faults.ledger import RECONNECTS, Ledger

pytestmark = pytest.mark.anyio

MINUTES: Final = 5
PLAN: Final = replace(long(MINUTES), followed=4)


class Driven:
    """Faults that take their time, in which so many runs are followed each time."""

    def __init__(self, runs: int) -> None:
        self.ledger = Ledger()
        self.clock = ManualClock()
        self.said: list[str] = []
        self._runs = runs

    async def more_faults(self, until: float) -> None:
        for _ in range(self._runs):
            self.follow(RECONNECTS)
        self.follow(RECONNECTS - 1)
        await self.clock.advance(timedelta(seconds=until - self.clock.monotonic()))

    def follow(self, reconnects: int) -> None:
        self.ledger.reconnects[f"run_{len(self.ledger.reconnects)}"] = reconnects

    async def until_enough(self, plan: Plan = PLAN) -> float:
        return await until_enough(self.ledger, plan, self.more_faults, self.said.append, now=self.clock.monotonic)


async def test_it_goes_on_until_enough_runs_were_followed_and_says_so() -> None:
    driven = Driven(runs=3)
    driven.follow(RECONNECTS)

    took = await driven.until_enough()

    assert (driven.ledger.followed, took) == (4, 2 * PLAN.gap_s[1])
    assert "lacks 3" in driven.said[0]
    assert f"{MINUTES * 60} s at most" in driven.said[0]
    assert "after 16 s more" in driven.said[1]


async def test_where_it_has_seen_enough_it_does_not() -> None:
    driven = Driven(runs=1)

    took = await driven.until_enough(replace(PLAN, followed=0))

    assert (took, driven.said) == (0, [])


async def test_it_ends_at_twice_what_was_asked_for_whatever_it_has_seen() -> None:
    driven = Driven(runs=0)

    took = await driven.until_enough()

    assert LONGEST == 2
    assert (driven.ledger.followed, took) == (0, MINUTES * 60)
    assert "has 0" in driven.said[1]
