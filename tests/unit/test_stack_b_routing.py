"""Who is asked, in which order, and who is left alone: names, canaries, breakers, and the router over them."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.clock import ManualClock
from conformance.people import ACME, ACME_BEN, GLOBEX
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.tenant import Entitlements
from stack_b.backends.catalog import Candidate, Catalog
from stack_b.backends.protocol import Backend, ModelCard, Price
from stack_b.canonical import Preference
from stack_b.configuration import Configuration, parse_configuration
from stack_b.routing.breaker import LAST_CALLS, MAX_PAUSE_S, MIN_FAILURES, PAUSE_S, TRIAL_S, Breaker
from stack_b.routing.canary import LEAST_CALLS, Watch, drawn
from stack_b.routing.router import Asked, Router, agent_of, conversation_of
from stack_b.routing.rules import Canary, RoutingRules

ALL = Entitlements()
DOWN = Unavailable("it is down", code="upstream_error")

pytestmark = pytest.mark.anyio


class Named:
    """A backend that is only talked about."""

    def __init__(self, name: str) -> None:
        self.name = name


class Served:
    def __init__(self, *served: tuple[str, str, int | None]) -> None:
        """Backend, model and price each."""
        backends = {name: Named(name) for name, _, _ in served}
        self._served = tuple(
            Candidate(
                cast("Backend", backends[name]),
                ModelCard(id=model, upstream=model, price=None if price is None else Price(prompt=price)),
            )
            for name, model, price in served
        )

    def served(self) -> tuple[Candidate, ...]:
        return self._served


def router(clock: ManualClock, *served: tuple[str, str, int | None], **rules: Any) -> Router:
    return Router(cast("Catalog", Served(*served)), RoutingRules(**rules), clock)


def asked(name: str, **more: Any) -> Asked:
    return Asked(name=name, kind="chat", **more)


def told(found: Sequence[Candidate]) -> list[str]:
    return [f"{one.backend.name}/{one.card.id}" for one in found]


def call(over: Router, candidate: Candidate, error: AgentOSError | None = None, *, what: Asked | None = None) -> None:
    with suppress(AgentOSError), over.attempt(ACME, what or asked(candidate.card.id), candidate):
        if error is not None:
            raise error


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class TestNames:
    def test_a_name_leads_to_itself_an_alias_to_its_tier_and_a_tier_to_its_models(self, clock: ManualClock) -> None:
        served = (("b", "small", 1), ("a", "large", 9), ("c", "large", 9))
        over = router(clock, *served, aliases={"best": "top"}, tiers={"top": ("large", "small")})

        assert told(over.candidates(ACME, asked("small"), ALL)) == ["b/small"]
        assert told(over.candidates(ACME, asked("best"), ALL)) == ["a/large", "c/large", "b/small"]
        assert over.candidates(ACME, asked("nobody's"), ALL) == ()

    def test_no_name_leads_to_a_model_the_tenant_may_not_use(self, clock: ManualClock) -> None:
        over = router(
            clock,
            ("a", "large", 9),
            ("a", "small", 1),
            ("a", "new", 1),
            aliases={"best": "top"},
            tiers={"top": ("large", "small")},
            canaries=(Canary(experiment="x", name="best", model="new", percent=100),),
        )
        small = Entitlements(models=("small",))

        assert told(over.candidates(ACME, asked("best"), small)) == ["a/small"]
        assert over.candidates(ACME, asked("best"), Entitlements(models=("best", "top"))) == ()
        assert [one.card.id for one in over.named(ACME, small)] == ["best", "small", "top"]

    @pytest.mark.parametrize(
        "wrong",
        [
            '{"aliases": {"a": "b", "b": "c"}}',
            '{"aliases": {"a": "m"}, "tiers": {"a": ["m"]}}',
            '{"tiers": {"a": ["b"], "b": ["m"]}}',
            '{"tiers": {"a": []}}',
            '{"canaries": [{"experiment": "x", "name": "m", "model": "t", "percent": 1}], "tiers": {"t": ["m"]}}',
            '{"canaries": [{"experiment": "x", "name": "m", "model": "n", "percent": 101}]}',
            json.dumps({"canaries": [{"experiment": "x", "name": n, "model": "x", "percent": 1} for n in "mn"]}),
            '{"canary": []}',
            "[]",
            "{",
        ],
    )
    def test_rules_that_mean_nothing_are_refused(self, wrong: str) -> None:
        with pytest.raises(InvalidArgument, match="not usable"):
            parse_configuration(f'{{"routing": {wrong}}}')

    def test_nothing_said_is_no_rules(self) -> None:
        assert parse_configuration("{}") == Configuration(routing=RoutingRules())


class TestPreference:
    @pytest.mark.parametrize(
        ("preference", "order"),
        [
            ("quality", ["dear/m", "cheap/m", "free/m"]),
            ("cost", ["cheap/m", "dear/m", "free/m"]),
            ("latency", ["free/m", "cheap/m", "dear/m"]),
        ],
    )
    async def test_candidates_come_in_the_order_that_was_asked_for(
        self, clock: ManualClock, preference: Preference, order: list[str]
    ) -> None:
        over = router(clock, ("dear", "m", 9), ("cheap", "m", 1), ("free", "m", None))
        dear, cheap, _ = over.candidates(ACME, asked("m"), ALL)
        for one, seconds in ((dear, 3), (cheap, 1)):
            with over.attempt(ACME, asked("m"), one):
                await clock.advance(timedelta(seconds=seconds))

        assert told(over.candidates(ACME, asked("m", preference=preference), ALL)) == order

    def test_a_conversation_stays_with_one_backend_and_conversations_are_spread(self, clock: ManualClock) -> None:
        backends = [(name, "m", 1) for name in "abcd"]
        over, fewer = router(clock, *backends, spread=("m",)), router(clock, *backends[:3], spread=("m",))
        turns = [conversation_of({"messages": [{"role": "user", "content": f"question {n}"}]}) for n in range(40)]

        def first(who: Router, turn: str) -> str:
            return who.candidates(ACME, asked("m", conversation=turn), ALL)[0].backend.name

        chosen = {turn: first(over, turn) for turn in turns}
        assert set(chosen.values()) == set("abcd")
        assert all(first(over, turn) == backend for turn, backend in chosen.items())
        # When one leaves, only its own conversations move.
        assert all(first(fewer, turn) == backend for turn, backend in chosen.items() if backend != "d")

    async def test_a_conversation_goes_elsewhere_while_its_backend_fails_and_comes_back(
        self, clock: ManualClock
    ) -> None:
        over = router(clock, *[(name, "m", 1) for name in "abc"], spread=("m",))
        turn = conversation_of({"messages": [{"role": "user", "content": "question"}]})
        candidates = over.candidates(ACME, asked("m", conversation=turn), ALL)
        usual, next_one, _ = told(list(over.tries(candidates)))
        for _ in range(MIN_FAILURES):
            call(over, candidates[0], DOWN)

        meanwhile = told(list(over.tries(over.candidates(ACME, asked("m", conversation=turn), ALL))))
        await clock.advance(timedelta(seconds=PAUSE_S))

        assert meanwhile[0] == next_one
        assert told(list(over.tries(over.candidates(ACME, asked("m", conversation=turn), ALL))))[0] == usual

    def test_a_conversation_is_known_by_how_it_begins(self) -> None:
        begun = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]

        assert conversation_of({"messages": begun}) == conversation_of({"messages": [*begun, {"role": "user"}]})
        assert conversation_of({"messages": begun}) != conversation_of({"messages": begun[1:]})
        assert conversation_of({}) == conversation_of({"messages": []}) == ""


class TestCanary:
    @given(caller=st.tuples(st.text(), st.text()), percents=st.tuples(st.floats(0, 100), st.floats(0, 100)))
    def test_whoever_is_in_stays_in_when_the_share_grows(
        self, caller: tuple[str, str], percents: tuple[float, float]
    ) -> None:
        least, most = sorted(percents)

        assert drawn("x", caller, most) or not drawn("x", caller, least)
        assert drawn("x", caller, 100)
        assert not drawn("x", caller, 0)

    def test_the_share_is_about_what_was_asked_for_and_differs_by_experiment(self) -> None:
        callers = [(f"tnt_{n}", "usr") for n in range(2_000)]

        one, other = ({caller for caller in callers if drawn(name, caller, 20)} for name in ("one", "other"))

        assert 300 < len(one) < 500
        assert len(one & other) < 150

    def test_a_canary_comes_first_and_who_was_usual_is_what_it_falls_back_to(self, clock: ManualClock) -> None:
        canary = Canary(experiment="x", name="m", model="new", percent=100)
        over = router(clock, ("a", "m", 1), ("b", "new", 9), canaries=(canary,))

        assert told(over.candidates(ACME, asked("m", preference="cost"), ALL)) == ["b/new", "a/m"]
        assert told(over.candidates(ACME, asked("new"), ALL)) == ["b/new"]

    def test_an_agent_is_drawn_whoever_calls_for_it(self, clock: ManualClock) -> None:
        canary = Canary(experiment="e", name="m", model="new", percent=50)
        over = router(clock, ("a", "m", 1), ("b", "new", 1), canaries=(canary,))

        def gets(agent: str, who: AuthContext) -> str:
            return over.candidates(who, asked("m", agent=agent), ALL)[0].card.id

        agents = [f"agt_{number}" for number in range(40)]
        by_ann, by_ben = ([gets(agent, who) for agent in agents] for who in (ACME, ACME_BEN))

        assert by_ann == by_ben
        assert set(by_ann) == {"m", "new"}
        # Another tenant's agent of the same name is another agent.
        assert by_ann != [gets(agent, GLOBEX) for agent in agents]

    def test_the_agent_is_what_the_request_says_it_is(self) -> None:
        assert agent_of({"metadata": {"agent_id": "agt_1"}}) == "agt_1"
        for nobody in ({}, {"metadata": None}, {"metadata": {"agent_id": 7}}, {"metadata": "agt_1"}):
            assert agent_of(nobody) == ""

    def test_one_that_fails_too_often_is_rolled_back_until_it_is_changed(self, clock: ManualClock) -> None:
        canary = Canary(experiment="x", name="m", model="new", percent=100, max_error_rate=0.1)
        over = router(clock, ("a", "m", 1), ("b", "new", 9), canaries=(canary,))
        for number in range(LEAST_CALLS):
            [first, *_] = over.candidates(ACME, asked("m"), ALL)
            assert first.card.id == "new"
            call(over, first, DOWN if number % 5 == 0 else None, what=asked("m"))

        assert told(over.candidates(ACME, asked("m"), ALL)) == ["a/m"]

        over.follow(RoutingRules(canaries=(canary,), aliases={"other": "m"}), reaches={})
        assert told(over.candidates(ACME, asked("m"), ALL)) == ["a/m"]
        over.follow(RoutingRules(canaries=(Canary(experiment="x", name="m", model="new", percent=50.5),)), reaches={})
        assert "b/new" in told(over.candidates(ACME, asked("new"), ALL))
        over.follow(RoutingRules(canaries=(Canary(experiment="x", name="m", model="new", percent=100),)), reaches={})
        assert told(over.candidates(ACME, asked("m"), ALL)) == ["b/new", "a/m"]

    def test_few_calls_say_nothing(self) -> None:
        watch = Watch(0.5)

        assert [watch.ended(failed=True) for _ in range(LEAST_CALLS)] == [False] * (LEAST_CALLS - 1) + [True]


class TestBreaker:
    def test_it_opens_when_half_of_the_last_calls_failed_and_not_before(self, clock: ManualClock) -> None:
        breaker = Breaker(clock.monotonic)
        for _ in range(MIN_FAILURES):
            breaker.succeeded()
        states = []
        for _ in range(MIN_FAILURES):
            states.append(breaker.state)
            breaker.failed()

        assert states == ["closed"] * MIN_FAILURES
        assert (breaker.state, breaker.admits(), breaker.retry_after_s) == ("open", False, PAUSE_S)

    def test_old_failures_are_forgotten(self, clock: ManualClock) -> None:
        breaker = Breaker(clock.monotonic)
        for _ in range(3):
            for _ in range(MIN_FAILURES - 1):
                breaker.failed()
            for _ in range(LAST_CALLS):
                breaker.succeeded()

        assert breaker.state == "closed"

    async def test_after_a_pause_one_call_decides(self, clock: ManualClock) -> None:
        breaker = opened(clock)
        await clock.advance(timedelta(seconds=PAUSE_S))

        assert (breaker.state, breaker.admits(), breaker.admits()) == ("half_open", True, False)
        breaker.succeeded()
        assert (breaker.state, breaker.admits(), breaker.admits()) == ("closed", True, True)

    async def test_a_trial_that_fails_doubles_the_pause_up_to_its_most(self, clock: ManualClock) -> None:
        breaker = opened(clock)
        pauses = []
        for _ in range(6):
            pauses.append(breaker.retry_after_s)
            await clock.advance(timedelta(seconds=breaker.retry_after_s))
            assert breaker.admits()
            breaker.failed()

        assert pauses == [5, 10, 20, 40, 60, 60]
        assert breaker.retry_after_s == MAX_PAUSE_S

    async def test_a_trial_whose_caller_left_is_somebody_elses(self, clock: ManualClock) -> None:
        breaker = opened(clock)
        await clock.advance(timedelta(seconds=PAUSE_S))
        assert breaker.admits()

        breaker.left()

        assert breaker.admits()

    async def test_a_trial_that_answers_opens_the_way_before_its_answer_ends(self, clock: ManualClock) -> None:
        over = router(clock, ("a", "m", 1))
        [only] = over.candidates(ACME, asked("m"), ALL)
        for _ in range(MIN_FAILURES):
            call(over, only, DOWN)
        await clock.advance(timedelta(seconds=PAUSE_S))

        with over.attempt(ACME, asked("m"), only) as attempt:
            before = over.states()
            attempt.answered()

            assert (before, over.states()) == ({"a": "half_open"}, {"a": "closed"})

    async def test_a_trial_nobody_tells_of_blocks_for_a_while_only(self, clock: ManualClock) -> None:
        breaker = opened(clock)
        await clock.advance(timedelta(seconds=PAUSE_S))
        assert breaker.admits()
        await clock.advance(timedelta(seconds=TRIAL_S))

        assert breaker.admits()


def opened(clock: ManualClock) -> Breaker:
    breaker = Breaker(clock.monotonic)
    for _ in range(MIN_FAILURES):
        breaker.failed()
    assert breaker.state == "open"
    return breaker


class TestTries:
    async def test_who_keeps_failing_is_left_alone_and_comes_back(self, clock: ManualClock) -> None:
        over = router(clock, ("a", "m", 1), ("b", "m", 1))
        candidates = over.candidates(ACME, asked("m"), ALL)
        for _ in range(MIN_FAILURES):
            call(over, candidates[0], DOWN)

        assert told(list(over.tries(candidates))) == ["b/m"]
        await clock.advance(timedelta(seconds=PAUSE_S))
        assert told(list(over.tries(candidates))) == ["a/m", "b/m"]

    def test_with_all_of_them_open_the_refusal_says_when_to_come_back(self, clock: ManualClock) -> None:
        over = router(clock, ("a", "m", 1))
        candidates = over.candidates(ACME, asked("m"), ALL)
        for _ in range(MIN_FAILURES):
            call(over, candidates[0], DOWN)

        refused = over.all_failing(candidates)

        assert list(over.tries(candidates)) == []
        assert (refused.code, refused.retry_after) == ("upstream_error", timedelta(seconds=PAUSE_S))

    def test_neither_a_client_that_leaves_nor_a_refusal_of_its_request_opens_a_breaker(
        self, clock: ManualClock
    ) -> None:
        over = router(clock, ("a", "m", 1))
        [only] = over.candidates(ACME, asked("m"), ALL)
        for _ in range(MIN_FAILURES):
            call(over, only, InvalidArgument("too long", code="context_length_exceeded"))
            # A client's own deadline, its leaving, and that of a stream's reader.
            for left in (TimeoutError, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
                with pytest.raises(left), over.attempt(ACME, asked("m"), only):
                    raise left

        assert over.states() == {"a": "closed"}

    def test_a_backend_that_refuses_the_nodes_credentials_is_left_alone_too(self, clock: ManualClock) -> None:
        over = router(clock, ("a", "m", 1))
        [only] = over.candidates(ACME, asked("m"), ALL)
        for _ in range(MIN_FAILURES):
            call(over, only, Unavailable("who are you", code="upstream_auth_error"))

        assert over.states() == {"a": "open"}
