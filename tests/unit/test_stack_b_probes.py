"""Backends are asked how they are: who is away is not called, who is back is tried, and who was heard from is not asked."""

from datetime import timedelta
from typing import Any, cast

import pytest

from conformance.clock import ManualClock
from conformance.people import ACME
from ports.errors import Unavailable
from ports.tenant import Entitlements
from stack_b.backends.catalog import Candidate, Catalog
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import Backend, ModelCard
from stack_b.routing.breaker import MIN_FAILURES, PAUSE_S
from stack_b.routing.probes import EVERY, IN_A_ROW, Prober
from stack_b.routing.probes import PAUSE_S as PROBED_PAUSE_S
from stack_b.routing.router import Asked, Router
from stack_b.routing.rules import RoutingRules
from tests.support.rough_backend import Cut, rough_backend, whole

pytestmark = pytest.mark.anyio

ASKED = Asked(name="m", kind="chat")
DOWN = Unavailable("it is down", code="upstream_error")


class Honest:
    """A backend that says how it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.well = True
        self.probes = 0

    async def probe(self) -> None:
        self.probes += 1
        if not self.well:
            raise DOWN


class Silent:
    """One that can't be asked."""

    name = "silent"


class Served:
    def __init__(self, *backends: Any) -> None:
        self.candidates = tuple(
            Candidate(cast("Backend", backend), ModelCard(id="m", upstream="m")) for backend in backends
        )

    def served(self) -> tuple[Candidate, ...]:
        return self.candidates


class Rig:
    def __init__(self, *backends: Any) -> None:
        self.clock = ManualClock()
        catalog = cast("Catalog", Served(*backends))
        self.router = Router(catalog, RoutingRules(), self.clock)
        self.prober = Prober(catalog, self.router, self.clock)

    def tried(self) -> list[str]:
        candidates = self.router.candidates(ACME, ASKED, Entitlements())
        return [one.backend.name for one in self.router.tries(candidates)]

    def call(self, error: Unavailable | None = None) -> None:
        candidate = self.router.candidates(ACME, ASKED, Entitlements())[0]
        try:
            with self.router.attempt(ACME, ASKED, candidate):
                if error is not None:
                    raise error
        except Unavailable:
            pass


async def test_one_that_does_not_answer_is_not_called_although_no_call_has_failed() -> None:
    away, well = Honest("away"), Honest("well")
    away.well = False
    rig = Rig(away, well)
    for _ in range(IN_A_ROW - 1):
        await rig.prober.probe()
    assert rig.tried() == ["away", "well"]

    await rig.prober.probe()

    assert rig.tried() == ["well"]
    assert rig.router.states() == {"away": "open", "well": "closed"}


async def test_as_long_as_it_does_not_answer_nobody_tries_it() -> None:
    away, well = Honest("away"), Honest("well")
    away.well = False
    rig = Rig(away, well)
    for _ in range(IN_A_ROW + 20):
        await rig.prober.probe()
        if rig.prober._unanswered["away"] >= IN_A_ROW:
            assert rig.tried() == ["well"]
        await rig.clock.advance(EVERY)
        if rig.prober._unanswered["away"] >= IN_A_ROW:
            assert rig.tried() == ["well"]

    # And when nobody probes any more, it is not forgotten for ever.
    await rig.clock.advance(timedelta(seconds=PROBED_PAUSE_S))
    assert rig.tried() == ["away", "well"]


async def test_one_that_answers_again_is_tried_with_one_call_without_waiting_for_its_pause() -> None:
    only = Honest("only")
    rig = Rig(only)
    for _ in range(MIN_FAILURES):
        rig.call(DOWN)
    assert rig.router.states() == {"only": "open"}

    await rig.prober.probe()

    assert rig.router.states() == {"only": "half_open"}
    assert rig.tried() == ["only"]
    # The trial is under way: nobody else is let through until it has ended.
    assert rig.tried() == []
    rig.call()
    assert rig.router.states() == {"only": "closed"}


async def test_an_answer_to_a_probe_is_no_proof_that_calls_work() -> None:
    only = Honest("only")
    rig = Rig(only)
    for _ in range(MIN_FAILURES):
        rig.call(DOWN)
    await rig.prober.probe()
    assert rig.tried() == ["only"]
    rig.call(DOWN)

    assert rig.router.states() == {"only": "open"}
    await rig.clock.advance(timedelta(seconds=PAUSE_S))
    assert rig.router.states() == {"only": "open"}


async def test_who_was_heard_from_is_not_asked() -> None:
    busy = Honest("busy")
    rig = Rig(busy)
    rig.call()
    await rig.prober.probe()
    assert busy.probes == 0

    await rig.clock.advance(EVERY)
    await rig.prober.probe()

    assert busy.probes == 1


async def test_one_that_can_not_be_asked_is_left_to_its_calls() -> None:
    rig = Rig(Silent())

    for _ in range(IN_A_ROW + 1):
        await rig.prober.probe()

    assert rig.tried() == ["silent"]


@pytest.mark.parametrize(
    ("status", "well"), [(200, True), (401, True), (404, True), (429, True), (500, False), (503, False)]
)
async def test_any_answer_but_a_failure_of_its_own_is_one(status: int, well: bool) -> None:
    async with rough_backend([whole(b"{}", status=f"{status} X")]) as rough:
        backend = OpenAiCompatible(name="up", base_url=rough.url)
        try:
            await backend.probe()
            answered = True
        except Unavailable:
            answered = False
        finally:
            await backend.aclose()

    assert answered is well


async def test_one_that_hangs_up_does_not_answer() -> None:
    async with rough_backend([Cut()]) as rough:
        backend = OpenAiCompatible(name="up", base_url=rough.url)
        with pytest.raises(Unavailable):
            await backend.probe()
        await backend.aclose()
