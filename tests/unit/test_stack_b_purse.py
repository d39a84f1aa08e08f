"""Chunks of budgets: spent in memory, booked in batches, given back, and never more than was held before."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapters.inproc.budget import InprocBudget
from adapters.inproc.store import Store
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.budget import NOTHING, Account, Amount, Balance, Booking, Budget, Hold, UsageEvent
from ports.budget_rules import account_of, tokens_per_day
from ports.context import AuthContext
from ports.errors import InvalidArgument, ResourceExhausted, Unavailable
from ports.ids import HoldId
from stack_b.budget.chunks import IDLE_S, PACE_S, REQUESTS, next_requests
from stack_b.budget.purse import FLUSH_AFTER, LOOK_EVERY, PATIENCE_S, Purse, Taken

LEASE: Final = timedelta(seconds=30)
IDLE: Final = timedelta(seconds=3)
LIMIT: Final = 100_000
ValueT = TypeVar("ValueT")


class Counted(InprocBudget):
    """The in-process ledger, with its calls counted, and a number of failures to come."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(Store(uuid.uuid4().hex), clock)
        self.calls: Counter[str] = Counter()
        self.failures = 0
        self.never: set[str] = set()
        """Requests whose usage is refused for good."""
        self.away = False
        self.gate = asyncio.Event()
        """A booking waits for it."""
        self.booking = asyncio.Event()
        """There was one since this was cleared."""
        self.gate.set()
        self.lease_gate = asyncio.Event()
        """So does a hold."""
        self.lease_gate.set()

    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        self.calls["hold"] += 1
        await self.lease_gate.wait()
        return await super().hold(auth, amount, on=on, lease=lease, spare=spare)

    async def renew(self, auth: AuthContext, holds: Sequence[HoldId], *, lease: timedelta) -> frozenset[HoldId]:
        if self.away:
            raise Unavailable("the ledger is away")
        return await super().renew(auth, holds, lease=lease)

    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        self.calls["book"] += 1
        self.booking.set()
        if self.failures or self.away:
            self.failures = max(0, self.failures - 1)
            raise Unavailable("the ledger is away")
        await self.gate.wait()
        if any(event.request in self.never for booking in bookings for event in booking.events):
            raise InvalidArgument("never")
        await super().book(auth, bookings)


class Process:
    """A gateway's purse, over a ledger that it shares with others."""

    def __init__(
        self, ledger: Counted, clock: ManualClock, limit: int = LIMIT, *, also: tuple[Account, ...] = ()
    ) -> None:
        self.purse = Purse(ledger, clock, in_chunks=True)
        self._on = (tokens_per_day(limit), *also)

    async def take(self, tokens: int, nanousd: int = 0) -> Taken:
        return await self.purse.take(ACME, Amount(tokens=tokens, nanousd=nanousd), self._on, LEASE)

    async def grow(self, taken: Taken, tokens: int) -> Taken:
        return await self.purse.grow(taken, Amount(tokens=tokens), self._on, LEASE)

    async def put(self, taken: Taken, tokens: int, nanousd: int = 0, *, request: str = "") -> None:
        event = UsageEvent(request=request or uuid.uuid4().hex, attempt=1, output_tokens=tokens, cost_nanousd=nanousd)
        await self.purse.put(taken, (event,) if tokens else (), wait_s=0)
        await turns()


async def turns() -> None:
    """Let what is under way in this process come to its end."""
    for _ in range(20):
        await asyncio.sleep(0)


async def pass_time(clock: ManualClock, by: timedelta) -> None:
    """Second by second, as keepers see it."""
    for _ in range(int(by.total_seconds())):
        await clock.advance(timedelta(seconds=1))
        await turns()


async def standing(ledger: InprocBudget, limit: int = LIMIT) -> Balance:
    return await ledger.balance(ACME, limit=limit)


@pytest.mark.anyio
class TestPurse:
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def ledger(self, clock: ManualClock) -> Counted:
        return Counted(clock)

    async def test_most_requests_make_no_call(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock)

        for _ in range(30):
            await process.put(await process.take(10), 7)
        await process.purse.drain()

        assert ledger.calls["hold"] == 1
        assert ledger.calls["book"] <= 2
        balance = await standing(ledger)
        assert (balance.settled, balance.held) == (210, 0)
        assert await ledger.deviations(ACME) == ()

    async def test_the_next_chunk_is_leased_before_this_one_is_used_up_and_nobody_waits(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        first = await process.take(10)
        await process.put(first, 10)
        ledger.lease_gate.clear()

        with anyio.fail_after(5):
            while ledger.calls["hold"] < 2:
                await process.put(await process.take(10), 10)
            left = first.chunk.free.tokens
            # Still the first chunk, while the ledger thinks about the next one.
            assert (await process.take(10)).chunk is first.chunk
            ledger.lease_gate.set()
            await turns()
            second = await process.take(10)

        # Half of it went in no time at all.
        assert first.chunk.size.tokens / 3 < left <= first.chunk.size.tokens / 2
        assert second.chunk is not first.chunk
        assert ledger.calls["hold"] == 2

    async def test_where_the_rest_will_last_the_next_chunk_is_leased_late(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        first = await process.take(10)
        await process.put(first, 10)
        await clock.advance(timedelta(seconds=2))

        with anyio.fail_after(5):
            while ledger.calls["hold"] < 2:
                left = first.chunk.free.tokens
                await process.put(await process.take(10), 10)

        # It took two seconds to use this much, so that half as much would have lasted one.
        assert left - 10 <= first.chunk.size.tokens / 3

    async def test_how_busy_a_process_was_is_known_after_a_pause(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock, limit=10**9)
        first = await process.take(10)
        while (taken := await process.take(10)).chunk is first.chunk:
            await process.put(taken, 10)
        await process.put(taken, 10)
        await process.put(first, 10)
        await pass_time(clock, IDLE)
        assert (await standing(ledger, 10**9)).held == 0

        again = await process.take(10)
        await process.put(again, 10)
        await pass_time(clock, timedelta(seconds=PACE_S))
        later = await process.take(10)

        assert again.chunk.size.tokens > 2 * first.chunk.size.tokens
        assert later.chunk.size.tokens == first.chunk.size.tokens == 10 * (REQUESTS + 1)

    async def test_a_chunk_that_grows_old_is_replaced_before_its_time(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        first = await process.take(10)
        ledger.lease_gate.clear()

        with anyio.fail_after(5):
            for _ in range(8):
                await clock.advance(timedelta(seconds=0.5))
                assert (await process.take(10)).chunk is first.chunk
        await turns()

        assert ledger.calls["hold"] == 2
        ledger.lease_gate.set()

    async def test_near_the_limit_nothing_is_leased_ahead_at_the_cost_of_others(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock, limit=400)
        for _ in range(39):
            await process.put(await process.take(10), 10)

        balance = await standing(ledger, 400)
        await process.purse.drain()
        after = await standing(ledger, 400)

        assert balance.settled + balance.held <= 400
        assert (after.settled, after.held) == (390, 0)

    async def test_a_chunk_that_comes_while_the_process_ends_goes_back(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        await process.put(await process.take(10), 10)
        ledger.lease_gate.clear()
        with anyio.fail_after(5):
            while ledger.calls["hold"] < 2:
                await process.put(await process.take(10), 10)

        drained = asyncio.create_task(process.purse.drain())
        await turns()
        ledger.lease_gate.set()
        with anyio.fail_after(5):
            await drained

        assert (await standing(ledger)).held == 0

    async def test_requests_that_come_together_wait_for_one_chunk(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock)

        with anyio.fail_after(5):
            taken = await asyncio.gather(*(process.take(10) for _ in range(30)))

        assert ledger.calls["hold"] == 1
        assert len({one.chunk.hold for one in taken}) == 1

    async def test_those_who_waited_for_a_chunk_have_of_it_at_once(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock)
        ledger.lease_gate.clear()
        waiting = [asyncio.create_task(process.take(10)) for _ in range(100)]
        await turns()
        ledger.lease_gate.set()

        # Under load a turn of the loop takes tens of milliseconds.
        for _ in range(10):
            await asyncio.sleep(0)

        assert all(one.done() for one in waiting)
        assert len({one.result().chunk for one in waiting}) == ledger.calls["hold"] == 1

    async def test_requests_still_at_work_on_a_chunk_that_was_replaced_are_booked_together(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        first = await process.take(10)
        taken = [await process.take(10) for _ in range(int(first.chunk.size.tokens / 10 / 2))]
        await turns()
        assert first.chunk.retired
        assert {one.chunk for one in taken} == {first.chunk}

        for one in taken:
            await process.put(one, 10)
        booked = ledger.calls["book"]
        await process.put(first, 10)

        assert booked <= 1
        assert (await standing(ledger)).settled == 10 * (len(taken) + 1)

    async def test_what_comes_during_a_booking_is_booked_together_later(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        ledger.gate.clear()
        await process.put(await process.take(10), 10)
        with anyio.fail_after(5):
            await ledger.booking.wait()
        for _ in range(5):
            await process.put(await process.take(10), 10)
        ledger.booking.clear()
        ledger.gate.set()
        await turns()
        at_once = ledger.calls["book"]
        with anyio.fail_after(5):
            await ledger.booking.wait()
        await turns()

        assert at_once == 1
        assert (await standing(ledger)).settled == 60
        assert ledger.calls["book"] == 2

    async def test_an_idle_chunk_goes_back(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock)
        await process.put(await process.take(10), 7)
        assert process.purse.idle(ACME.tenant) > 0

        await pass_time(clock, IDLE)

        assert process.purse.idle(ACME.tenant) == 0
        assert (await standing(ledger)).held == 0

    async def test_a_busy_chunk_keeps_what_its_requests_hold_and_gives_the_rest_back(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        slow = await process.take(10)

        await pass_time(clock, LEASE * 2)

        assert (await standing(ledger)).held == 10
        await process.put(slow, 10)
        balance = await standing(ledger)
        assert (balance.settled, balance.held) == (10, 0)

    async def test_what_a_killed_process_held_counts_as_spent(self, ledger: Counted, clock: ManualClock) -> None:
        killed = Process(ledger, clock)
        await killed.put(await killed.take(10), 7)
        held = (await standing(ledger)).held
        await kill()

        await clock.advance(LEASE)

        balance = await standing(ledger)
        assert held >= 10
        assert (balance.settled, balance.held) == (held, 0)

    async def test_near_the_limit_a_request_gets_the_last_token(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock, limit=100)

        for _ in range(10):
            await process.put(await process.take(10), 10)

        balance = await standing(ledger, 100)
        assert (balance.settled, balance.held) == (100, 0)
        with pytest.raises(ResourceExhausted) as refused:
            await process.take(1)
        assert refused.value.code == "budget_exceeded"

    async def test_nobody_is_refused_for_what_the_process_itself_holds_idle(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock, limit=1_000)
        await process.put(await process.take(3), 3)
        assert (await standing(ledger, 1_000)).held > 0

        whole = await process.take(997)

        assert whole.amount.tokens == 997

    async def test_nobody_is_refused_for_what_another_process_holds_idle(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        one, other = Process(ledger, clock, limit=1_000), Process(ledger, clock, limit=1_000)
        await one.put(await one.take(3), 3)
        assert (await standing(ledger, 1_000)).free < 997

        taking = asyncio.ensure_future(other.take(997))
        await turns()
        for _ in range(int(PATIENCE_S / 0.1)):
            await clock.advance(timedelta(milliseconds=100))
            await turns()

        with anyio.fail_after(5):
            assert (await taking).amount.tokens == 997

    async def test_who_is_refused_for_what_others_use_has_waited_no_longer_than_it_may(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        one, other = Process(ledger, clock, limit=1_000), Process(ledger, clock, limit=1_000)
        await one.take(900)
        before = ledger.calls["hold"]

        # Of as many sessions, so that each has accounts of its own.
        sessions = [account_of(Budget(id="each", limit=10**6, scope="session"), f"s-{number}") for number in range(20)]
        taking = [
            asyncio.ensure_future(other.purse.take(ACME, Amount(tokens=200), (tokens_per_day(1_000), one), LEASE))
            for one in sessions
        ]
        await turns()
        assert not any(one.done() for one in taking)
        for _ in range(int(PATIENCE_S / 0.1)):
            await clock.advance(timedelta(milliseconds=100))
            await turns()

        refused = await asyncio.gather(*taking, return_exceptions=True)
        assert {one.code for one in refused if isinstance(one, ResourceExhausted)} == {"budget_in_flight"}
        assert len(refused) == 20
        # One asks for all of them; before and after, each for itself.
        assert ledger.calls["hold"] - before <= 20 + PATIENCE_S / 0.1 + 20

    async def test_what_becomes_free_is_had_by_those_who_wait(self, ledger: Counted, clock: ManualClock) -> None:
        one, other = Process(ledger, clock, limit=1_000), Process(ledger, clock, limit=1_000)
        used = await one.take(900)
        taking = [asyncio.ensure_future(other.take(200)) for _ in range(4)]
        await turns()

        await one.put(used, 100)
        await clock.advance(timedelta(milliseconds=100))
        await turns()

        assert [(await one).amount.tokens for one in taking] == [200] * 4

    async def test_a_budget_that_is_spent_is_told_at_once(self, ledger: Counted, clock: ManualClock) -> None:
        one, other = Process(ledger, clock, limit=1_000), Process(ledger, clock, limit=1_000)
        await one.put(await one.take(900), 900)

        with pytest.raises(ResourceExhausted) as refused:
            await other.take(200)

        assert refused.value.code == "budget_exceeded"

    async def test_usage_outlives_a_ledger_that_is_away(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock)
        taken = await process.take(10)
        ledger.failures = 5

        await process.put(taken, 7)
        await pass_time(clock, IDLE * 3)

        balance = await standing(ledger)
        assert (balance.settled, balance.held) == (7, 0)

    @pytest.mark.parametrize("at", [0, 4, 9])
    async def test_usage_that_the_ledger_refuses_takes_no_other_with_it(
        self, ledger: Counted, clock: ManualClock, at: int
    ) -> None:
        ledger.never = {"no"}
        process = Process(ledger, clock)

        requests = ["no" if number == at else uuid.uuid4().hex for number in range(10)]
        for request in requests:
            await process.put(await process.take(10), 7, request=request)
        await process.purse.drain()
        await pass_time(clock, LEASE + timedelta(seconds=1))

        booked = [len(await ledger.usage(ACME, request)) for request in requests]
        assert booked == [int(request != "no") for request in requests]
        balance = await standing(ledger)
        assert balance.held == 0
        # What can't be booked may count as spent; what was free does not.
        assert balance.settled in {9 * 7, 10 * 7}
        assert await ledger.deviations(ACME) == ()

    async def test_a_ledger_that_refuses_all_usage_is_not_asked_about_each(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        ledger.never = {"no"}
        process = Process(ledger, clock)

        for _ in range(100):
            await process.put(await process.take(10), 7, request="no")
        await process.purse.drain()

        assert ledger.calls["book"] < 30

    async def test_a_chunk_that_lapses_while_its_process_lives_counts_what_was_used(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        taken = await process.take(10)
        held = (await standing(ledger)).held
        ledger.away = True
        await pass_time(clock, LEASE * 2)
        ledger.away = False
        lapsed = (await standing(ledger)).settled

        await process.put(taken, 7)
        await pass_time(clock, IDLE)

        assert lapsed == held > 10
        balance = await standing(ledger)
        assert (balance.settled, balance.held) == (7, 0)
        assert await ledger.deviations(ACME) == ()

    async def test_money_is_held_and_spent_beside_tokens(self, ledger: Counted, clock: ManualClock) -> None:
        money = account_of(Budget(id="money", unit="nanousd", limit=1_000))
        process = Process(ledger, clock, also=(money,))

        await process.put(await process.take(10, nanousd=400), 7, nanousd=390)
        await process.put(await process.take(10, nanousd=600), 7, nanousd=600)
        with pytest.raises(ResourceExhausted) as refused:
            await process.take(10, nanousd=400)

        assert (refused.value.code, refused.value.details["budget"]) == ("budget_exceeded", "money")
        [balance] = await ledger.standing(ACME, [money])
        assert (balance.settled, balance.held) == (990, 0)

    async def test_what_calls_cost_takes_nothing_of_a_budget_of_tokens(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)

        for _ in range(20):
            await process.put(await process.take(10), 7, nanousd=10**9)

        assert ledger.calls["hold"] == 1

    async def test_a_chunk_is_not_used_beyond_its_window(self, ledger: Counted, clock: ManualClock) -> None:
        minutely = account_of(Budget(id="minutely", limit=LIMIT, period="minute"))
        process = Process(ledger, clock, also=(minutely,))
        [before] = await ledger.standing(ACME, [minutely])
        await clock.advance(before.window_end - clock.now() - timedelta(seconds=1))
        first = await process.take(10)

        await clock.advance(timedelta(seconds=1))
        second = await process.take(10)

        assert first.chunk is not second.chunk

    async def test_a_request_grows_in_its_chunk_and_by_a_call_when_that_is_over(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        taken = await process.grow(await process.take(10), 20)
        assert ledger.calls == Counter(hold=1)

        await pass_time(clock, timedelta(seconds=6))
        taken = await process.grow(taken, 30)

        assert taken.amount.tokens == 60
        assert (await standing(ledger)).held == 60
        await process.put(taken, 55)
        balance = await standing(ledger)
        assert (balance.settled, balance.held) == (55, 0)

    async def test_an_extension_is_not_lost_to_a_booking_that_was_under_way(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock)
        slow, quick = await process.take(10), await process.take(10)
        ledger.gate.clear()
        slow.chunk.retired = True
        await process.put(quick, 5)
        await pass_time(clock, timedelta(seconds=1))
        assert ledger.calls["book"] == 1
        growing = asyncio.ensure_future(process.grow(slow, 30))
        await turns()

        ledger.gate.set()
        with anyio.fail_after(5):
            await growing

        await turns()
        balance = await standing(ledger)
        assert (balance.settled, balance.held) == (5, 40)

    async def test_an_extension_that_nobody_waits_for_goes_back(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock)
        left, stays = await process.take(10), await process.take(10)
        await pass_time(clock, timedelta(seconds=6))
        growing = asyncio.ensure_future(process.grow(left, 30))
        await asyncio.sleep(0)

        growing.cancel()
        await process.put(left, 0)
        await pass_time(clock, IDLE)

        assert stays.chunk is left.chunk
        assert (await standing(ledger)).held == 10

    async def test_an_extension_is_not_refused_for_what_the_process_itself_holds_idle(
        self, ledger: Counted, clock: ManualClock
    ) -> None:
        process = Process(ledger, clock, limit=1_000)
        taken = await process.take(3)
        assert (await standing(ledger, 1_000)).held > 3

        taken = await process.grow(taken, 997)

        assert taken.amount.tokens == 1_000

    async def test_draining_gives_everything_back(self, ledger: Counted, clock: ManualClock) -> None:
        process = Process(ledger, clock)
        await process.put(await process.take(10), 7)
        ledger.failures = 1

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(process.purse.drain)
                await pass_time(clock, IDLE)

        balance = await standing(ledger)
        assert (balance.settled, balance.held) == (7, 0)


def test_a_request_waits_for_longer_than_idle_chunks_take_to_go_back() -> None:
    assert IDLE_S + LOOK_EVERY.total_seconds() + FLUSH_AFTER.total_seconds() < PATIENCE_S


def test_chunks_grow_as_long_as_they_do_not_last_and_shrink_again() -> None:
    assert next_requests(128, 0.9) == 256
    assert next_requests(128, 0.25) == 1_024
    assert next_requests(128, 0.001) == next_requests(128, 0) == 2_048
    assert next_requests(4_096, 0.1) == 4_096
    assert next_requests(256, 3.0) == 128
    assert next_requests(128, 3.0) == 128


async def kill() -> None:
    """End every task but ours, as SIGKILL would: nothing of them is told to the ledger."""
    tasks = [task for task in asyncio.all_tasks() if "Purse." in repr(task.get_coro())]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Sequences(RuleBasedStateMachine):
    """Any order of requests in two processes that are killed now and then, against what was really consumed."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self.clock = ManualClock()
        self.ledger = Counted(self.clock)
        self.processes = [Process(self.ledger, self.clock, limit=2_000) for _ in range(2)]
        self.out: list[tuple[int, Taken]] = []
        self.consumed = 0

    def run(self, call: Coroutine[Any, Any, ValueT]) -> ValueT:
        return self._runner.run(call)

    @rule(place=st.integers(0, 1), tokens=st.integers(1, 150))
    def take(self, place: int, tokens: int) -> None:
        async def act() -> Taken | None:
            away = self.ledger.failures
            free = (await standing(self.ledger, 2_000)).free
            free += sum(process.purse.idle(ACME.tenant) for process in self.processes)
            taking = asyncio.ensure_future(self.processes[place].take(tokens))
            await turns()
            while not taking.done():
                await pass_time(self.clock, timedelta(seconds=1))
            try:
                return taking.result()
            except ResourceExhausted:
                assert away or free < tokens, "refused although it fits"
                return None

        if (taken := self.run(act())) is not None:
            self.out.append((place, taken))

    @precondition(lambda self: self.out)
    @rule(which=st.randoms(use_true_random=False), tokens=st.integers(1, 150), leaves=st.booleans())
    def grow(self, which: Any, tokens: int, leaves: bool) -> None:
        place, taken = self.out.pop(which.randrange(len(self.out)))

        async def act() -> Taken:
            free = (await standing(self.ledger, 2_000)).free
            growing = asyncio.ensure_future(self.processes[place].grow(taken, tokens))
            await asyncio.sleep(0)
            if leaves:
                growing.cancel()
            await turns()
            while not growing.done():
                await pass_time(self.clock, timedelta(seconds=1))
            try:
                return taken if growing.cancelled() else growing.result()
            except ResourceExhausted:
                assert free < tokens, "refused although it fits"
                return taken

        self.out.append((place, self.run(act())))

    @precondition(lambda self: self.out)
    @rule(which=st.randoms(use_true_random=False), share=st.integers(0, 4))
    def put(self, which: Any, share: int) -> None:
        place, taken = self.out.pop(which.randrange(len(self.out)))
        tokens = taken.amount.tokens * share // 4
        self.consumed += tokens
        self.run(self.processes[place].put(taken, tokens))

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.run(pass_time(self.clock, timedelta(seconds=seconds)))

    @rule(failures=st.integers(1, 2))
    def ledger_away(self, failures: int) -> None:
        self.ledger.failures = failures

    @rule()
    def kill_all(self) -> None:
        # What was under way may have been consumed in full, for all that anybody knows.
        self.consumed += sum(taken.amount.tokens for _, taken in self.out)
        self.out.clear()
        self.run(kill())
        self.processes = [Process(self.ledger, self.clock, limit=2_000) for _ in range(2)]

    @invariant()
    def never_more_than_the_limit_and_never_less_than_the_truth(self) -> None:
        balance = self.run(standing(self.ledger, 2_000))
        under_way = sum(taken.amount.tokens for _, taken in self.out)

        assert balance.settled + balance.held <= 2_000
        assert balance.settled + balance.held >= self.consumed + under_way
        assert self.run(self.ledger.deviations(ACME)) == ()

    def teardown(self) -> None:
        try:
            while self.out:
                place, taken = self.out.pop()
                self.run(self.processes[place].put(taken, 0))
            self.run(pass_time(self.clock, LEASE * 2))
            balance = self.run(standing(self.ledger, 2_000))
            assert balance.held == 0, "nothing is held for ever"
            assert balance.settled >= self.consumed
        finally:
            self._runner.close()


Sequences.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestSequences = Sequences.TestCase
