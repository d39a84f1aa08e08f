"""What every BudgetLedger must show beyond a tenant's tokens a day: accounts, extensions, usage.

Clauses: `ports.budget`.
"""

from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import BudgetHarness
from conformance.people import ACME, GLOBEX, PLATFORM
from ports.budget import (
    Account,
    Amount,
    Booking,
    Budget,
    BudgetLedger,
    Hold,
    Left,
    Mode,
    Period,
    UsageEvent,
)
from ports.budget_rules import account_of
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted

LEASE: Final = timedelta(minutes=1)
NOBODYS: Final = Amount(tokens=10_000, nanousd=10_000)

DAILY: Final = account_of(Budget(id="daily", limit=1_000))
MONEY: Final = account_of(Budget(id="money", limit=5_000, unit="nanousd"))
AGENT: Final = Budget(id="each-agent", limit=300, scope="agent")
BOTH: Final = (DAILY, MONEY)
CALL: Final = UsageEvent(
    request="req-1",
    attempt=1,
    correlation_id="corr",
    principal="usr_ann",
    agent="agt_one",
    session="s-1",
    model="m-1",
    backend="b-1",
    fresh_tokens=50,
    cache_read_tokens=20,
    cache_write_tokens=10,
    output_tokens=15,
    reasoning_tokens=5,
    cost_nanousd=400,
    price="m-1@2026-01-01",
)


def limited(mode: Mode, limit: int = 100) -> Account:
    return account_of(Budget(id=f"a-{mode}", limit=limit, mode=mode))


async def hold(ledger: BudgetLedger, tokens: int, nanousd: int = 0, *, on: tuple[Account, ...] = (DAILY,)) -> Hold:
    return await ledger.hold(ACME, Amount(tokens=tokens, nanousd=nanousd), on=on, lease=LEASE)


async def standing(ledger: BudgetLedger, *on: Account, auth: AuthContext = ACME) -> list[tuple[int, int]]:
    """Settled and held of each."""
    return [(one.settled, one.held) for one in await ledger.standing(auth, on)]


async def spend(ledger: BudgetLedger, held: Hold, tokens: int) -> None:
    event = UsageEvent(request=held.id, attempt=1, output_tokens=tokens)
    await ledger.book(ACME, [Booking(hold=held.id, events=(event,), end=True)])


async def fresh(harness: BudgetHarness, ledger: BudgetLedger) -> None:
    """Move to just after the start of a day, so that a test's minutes do not meet its end."""
    [balance] = await ledger.standing(ACME, [DAILY])
    await harness.advance(balance.window_end - await harness.now() + timedelta(seconds=1))


def starts(period: Period, at: datetime, tz: str) -> bool:
    """Whether a window may start `at`."""
    local = at.astimezone(ZoneInfo(tz))
    zero = {"minute": local.second, "hour": local.minute, "day": local.hour, "month": local.day - 1}
    order: tuple[Period, ...] = ("minute", "hour", "day", "month")
    return local.microsecond == 0 and not any(zero[name] for name in order[: order.index(period) + 1])


@pytest.mark.anyio
class BudgetAccounts(Contract):
    @clause("BUD-8")
    async def test_a_hold_takes_room_of_every_account_in_its_own_unit(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)

        held = await hold(ledger, 300, 2_000, on=BOTH)

        assert held.held == Amount(tokens=300, nanousd=2_000)
        assert await standing(ledger, *BOTH) == [(0, 300), (0, 2_000)]

    @clause("BUD-8")
    async def test_no_account_is_held_on_when_one_has_no_room(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        await hold(ledger, 1, 4_000, on=(MONEY,))

        with pytest.raises(ResourceExhausted) as refused:
            await hold(ledger, 300, 2_000, on=BOTH)

        assert (refused.value.code, refused.value.details["budget"]) == ("budget_in_flight", "money")
        assert await standing(ledger, *BOTH) == [(0, 0), (0, 4_000)]

    @clause("BUD-8")
    async def test_what_is_spent_is_told_before_what_is_only_held(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        await hold(ledger, 900)
        spent = await hold(ledger, 1, 5_000, on=(MONEY,))
        await ledger.book(ACME, [Booking(hold=spent.id, events=(replace(CALL, cost_nanousd=4_900),), end=True)])

        with pytest.raises(ResourceExhausted) as refused:
            await hold(ledger, 200, 200, on=BOTH)

        assert (refused.value.code, refused.value.details["budget"]) == ("budget_exceeded", "money")

    @clause("BUD-8")
    async def test_an_amount_that_one_account_can_never_hold_names_it(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()

        with pytest.raises(AgentOSError) as refused:
            await hold(ledger, 10, 5_001, on=BOTH)

        assert (refused.value.code, refused.value.details["budget"]) == ("request_exceeds_budget", "money")

    @clause("BUD-8")
    async def test_each_of_a_scope_has_an_account_of_its_own(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        one, two = account_of(AGENT, "agt_one"), account_of(AGENT, "agt_two")

        await hold(ledger, 300, on=(DAILY, one))
        await hold(ledger, 200, on=(DAILY, two))

        assert await standing(ledger, DAILY, one, two) == [(0, 500), (0, 300), (0, 200)]

    @clause("BUD-8")
    async def test_accounts_in_any_order_do_not_wait_for_each_other(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)

        async def turn(on: tuple[Account, ...]) -> None:
            for _ in range(5):
                held = await hold(ledger, 10, 10, on=on)
                await ledger.book(ACME, [Booking(hold=held.id, end=True)])

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for on in (BOTH, BOTH[::-1]) * 4:
                    group.start_soon(turn, on)

        assert await standing(ledger, *BOTH) == [(0, 0), (0, 0)]

    @clause("BUD-9")
    async def test_a_soft_budget_refuses_nothing_and_says_when_it_is_beyond(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        soft = limited("soft")

        within = await hold(ledger, 100, on=(DAILY, soft))
        beyond = await hold(ledger, 1, on=(DAILY, soft))

        assert (within.over, beyond.over) == ((), ("a-soft",))
        # Nothing is settled yet.
        assert beyond.left == (Left(budget="a-soft", unit="tokens", amount=100),)
        await spend(ledger, within, 130)
        assert (await hold(ledger, 1, on=(soft, limited("shadow")))).left == (
            Left(budget="a-soft", unit="tokens", amount=-30),
        )
        assert await standing(ledger, soft) == [(130, 2)]

    @clause("BUD-9")
    async def test_a_shadow_budget_counts_and_says_nothing(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        shadow = limited("shadow")

        held = await hold(ledger, 400, on=(DAILY, shadow))

        assert held.over == ()
        assert await standing(ledger, shadow) == [(0, 400)]

    @clause("BUD-10")
    @pytest.mark.parametrize("tz", ["UTC", "Asia/Kolkata", "America/New_York"])
    @pytest.mark.parametrize("period", ["minute", "hour", "day", "month"])
    async def test_windows_start_where_their_period_does(self, harness: BudgetHarness, period: Period, tz: str) -> None:
        ledger = await harness.open()
        account = account_of(Budget(id=f"each-{period}", limit=100, period=period, tz=tz))
        [first] = await ledger.standing(ACME, [account])
        await harness.advance(first.window_end - await harness.now() + timedelta(seconds=1))

        held = await hold(ledger, 60, on=(account,))

        [second] = await ledger.standing(ACME, [account])
        assert second.window_start == first.window_end
        assert held.usable_until == second.window_end
        assert starts(period, second.window_start, tz)
        assert starts(period, second.window_end, tz)
        await harness.advance(second.window_end - await harness.now() + timedelta(seconds=1))
        assert await standing(ledger, account) == [(0, 0)]
        await hold(ledger, 60, on=(account,))

    @clause("BUD-10")
    async def test_a_total_goes_on_for_ever(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        total = account_of(Budget(id="ever", limit=100, period="total"))
        held = await hold(ledger, 60, on=(total,))
        await spend(ledger, held, 60)

        await harness.advance(timedelta(days=40))

        assert held.usable_until is None
        assert await standing(ledger, total) == [(60, 0)]

    @clause("BUD-11")
    async def test_an_extension_takes_room_and_time(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 100, 500, on=BOTH)
        await harness.advance(LEASE / 2)

        grown = await ledger.extend(ACME, held.id, Amount(tokens=50, nanousd=20), on=BOTH, lease=LEASE)

        assert grown.held == Amount(tokens=150, nanousd=520)
        assert grown.expires_at > held.expires_at
        await harness.advance(LEASE * 3 / 4)
        assert await standing(ledger, *BOTH) == [(0, 150), (0, 520)]

    @clause("BUD-11")
    async def test_an_extension_that_does_not_fit_changes_nothing(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 600, on=BOTH)

        with pytest.raises(ResourceExhausted):
            await ledger.extend(ACME, held.id, Amount(tokens=401), on=BOTH, lease=LEASE * 5)

        assert await standing(ledger, DAILY) == [(0, 600)]
        await harness.advance(LEASE + timedelta(seconds=1))
        assert await standing(ledger, DAILY) == [(600, 0)]

    @clause("BUD-11")
    async def test_an_extension_stays_in_the_window_of_its_hold(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        [balance] = await ledger.standing(ACME, [DAILY])
        await harness.advance(balance.window_end - await harness.now() - LEASE / 4)
        held = await hold(ledger, 900)
        await harness.advance(LEASE / 2)

        await ledger.extend(ACME, held.id, Amount(tokens=100), on=[DAILY], lease=LEASE)
        with pytest.raises(ResourceExhausted):
            await ledger.extend(ACME, held.id, Amount(tokens=1), on=[DAILY], lease=LEASE)

        assert await standing(ledger, DAILY) == [(0, 0)]

    @clause("BUD-11")
    async def test_a_hold_that_is_over_is_not_extended(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        settled = await hold(ledger, 10)
        await spend(ledger, settled, 5)
        lapsed = await hold(ledger, 10)
        await harness.advance(LEASE + timedelta(seconds=1))

        for over in (settled, lapsed):
            with pytest.raises(AgentOSError) as refused:
                await ledger.extend(ACME, over.id, Amount(tokens=1), on=[DAILY], lease=LEASE)
            assert refused.value.code == "conflict"

        assert await standing(ledger, DAILY) == [(15, 0)]

    @clause("BUD-11", "BUD-5")
    async def test_renewing_prolongs_what_is_alive_and_ours(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        lapsed = await hold(ledger, 1)
        await harness.advance(LEASE / 2)
        alive, settled = await hold(ledger, 20), await hold(ledger, 300)
        await spend(ledger, settled, 300)
        foreign = await ledger.hold(GLOBEX, Amount(tokens=7), on=[DAILY], lease=LEASE)
        await harness.advance(LEASE * 3 / 4)

        renewed = await ledger.renew(ACME, [lapsed.id, alive.id, settled.id, foreign.id], lease=LEASE)
        await harness.advance(LEASE / 2)

        assert renewed == {alive.id}
        assert await standing(ledger, DAILY) == [(301, 20)]
        assert await standing(ledger, DAILY, auth=GLOBEX) == [(7, 0)]

    @clause("BUD-4")
    async def test_a_hold_with_a_checkpoint_lapses_at_it(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 500, 1_000, on=BOTH)
        await ledger.checkpoint(ACME, held.id, Amount(tokens=120, nanousd=90))

        before = await standing(ledger, *BOTH)
        await harness.advance(LEASE + timedelta(seconds=1))

        assert before == [(0, 500), (0, 1_000)]
        assert await standing(ledger, *BOTH) == [(120, 0), (90, 0)]
        await hold(ledger, 880)
        assert await ledger.deviations(ACME) == ()

    @clause("BUD-4")
    @pytest.mark.parametrize(
        ("checkpoint", "settled"), [(None, 500), (Amount(tokens=180), 180), (Amount(tokens=5), 100)]
    )
    async def test_what_was_booked_before_is_no_part_of_what_lapses(
        self, harness: BudgetHarness, checkpoint: Amount | None, settled: int
    ) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 500)
        if checkpoint is not None:
            await ledger.checkpoint(ACME, held.id, checkpoint)
        await ledger.book(ACME, [Booking(hold=held.id, events=(CALL,))])

        await harness.advance(LEASE + timedelta(seconds=1))

        assert await standing(ledger, DAILY) == [(settled, 0)]
        await hold(ledger, 1_000 - settled)

    @clause("BUD-5")
    async def test_nobody_elses_hold_can_be_changed(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 500)
        theirs = Booking(hold=held.id, events=(CALL,), end=True)

        with pytest.raises(NotFound):
            await ledger.book(GLOBEX, [theirs])
        with pytest.raises(NotFound):
            await ledger.extend(GLOBEX, held.id, Amount(tokens=1), on=[DAILY], lease=LEASE)
        with pytest.raises(NotFound):
            await ledger.checkpoint(GLOBEX, held.id, Amount())

        assert await standing(ledger, DAILY) == [(0, 500)]
        assert await ledger.usage(GLOBEX, CALL.request) == ()

    @clause("BUD-12")
    async def test_usage_moves_from_held_to_settled_and_the_rest_stays_held(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 500, 1_000, on=BOTH)

        await ledger.book(ACME, [Booking(hold=held.id, events=(CALL,))])
        during = await standing(ledger, *BOTH)
        await ledger.book(ACME, [Booking(hold=held.id, end=True)])

        assert during == [(100, 400), (400, 600)]
        assert await standing(ledger, *BOTH) == [(100, 0), (400, 0)]
        assert await ledger.usage(ACME, CALL.request) == (CALL,)

    @clause("BUD-12")
    @pytest.mark.parametrize(("keep", "held"), [(60, 60), (399, 399), (450, 400)])
    async def test_what_a_booking_does_not_keep_is_free(self, harness: BudgetHarness, keep: int, held: int) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        large = await hold(ledger, 500)
        booking = Booking(hold=large.id, events=(CALL,), keep=Amount(tokens=keep))

        for _ in range(2):
            await ledger.book(ACME, [booking])

        assert await standing(ledger, DAILY) == [(100, held)]

    @clause("BUD-12")
    async def test_an_attempt_is_booked_once(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 500)
        twice = Booking(hold=held.id, events=(CALL, replace(CALL, attempt=2)))

        await ledger.book(ACME, [twice])
        await ledger.book(ACME, [replace(twice, end=True)])
        await ledger.book(ACME, [replace(twice, end=True)])

        assert await standing(ledger, DAILY) == [(200, 0)]
        assert [event.attempt for event in await ledger.usage(ACME, CALL.request)] == [1, 2]

    @clause("BUD-12")
    async def test_usage_beyond_what_is_held_is_recorded_in_full(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held, other = await hold(ledger, 60), await hold(ledger, 200)

        await ledger.book(ACME, [Booking(hold=held.id, events=(CALL,)), Booking(hold=other.id)])

        assert await standing(ledger, DAILY) == [(100, 200)]

    @clause("BUD-12")
    async def test_bookings_of_several_holds_are_all_or_nothing(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 500)
        absent = type(held.id)(held.id[:-1] + ("0" if held.id[-1] != "0" else "1"))

        with pytest.raises(NotFound):
            await ledger.book(ACME, [Booking(hold=held.id, events=(CALL,), end=True), Booking(hold=absent)])

        assert await standing(ledger, DAILY) == [(0, 500)]

    @clause("BUD-17")
    async def test_what_was_spent_is_summed_up_by_day_and_model(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        early, late = await hold(ledger, 500, 2_000, on=BOTH), await hold(ledger, 500, 2_000, on=BOTH)
        before = replace(CALL, request="req-0")
        await ledger.book(ACME, [Booking(hold=early.id, events=(before,), end=True)])
        await harness.advance(timedelta(seconds=10))
        since = await harness.now()
        calls = (CALL, replace(CALL, attempt=2), replace(CALL, request="req-2", model="m-2", cost_nanousd=7))
        for _ in range(2):
            await ledger.book(ACME, [Booking(hold=late.id, events=calls)])

        found = await ledger.spent(ACME, since=since)

        assert [
            (one.model, one.calls, one.prompt_tokens, one.completion_tokens, one.cost_nanousd) for one in found
        ] == [
            ("m-1", 2, 160, 40, 800),
            ("m-2", 1, 80, 20, 7),
        ]
        assert {one.day for one in found} <= {since.date(), (since + timedelta(seconds=30)).date()}
        assert await ledger.spent(GLOBEX, since=since) == ()

    @clause("BUD-17")
    async def test_what_was_spent_is_told_by_agent_where_asked_to(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        since = await harness.now()
        held = await hold(ledger, 500, 2_000, on=BOTH)
        calls = (
            replace(CALL, agent="agt_b"),
            replace(CALL, attempt=2, agent="agt_a"),
            replace(CALL, attempt=3, agent="agt_a", cost_nanousd=7),
            replace(CALL, attempt=4, agent=""),
        )
        await ledger.book(ACME, [Booking(hold=held.id, events=calls)])

        [whole] = await ledger.spent(ACME, since=since)
        apart = await ledger.spent(ACME, since=since, by_agent=True)

        assert (whole.agent, whole.calls) == ("", 4)
        assert [(one.agent, one.calls, one.cost_nanousd) for one in apart] == [
            ("", 1, CALL.cost_nanousd),
            ("agt_a", 2, CALL.cost_nanousd + 7),
            ("agt_b", 1, CALL.cost_nanousd),
        ]

    @clause("BUD-17")
    async def test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent(
        self, harness: BudgetHarness
    ) -> None:
        """Whoever pays by it pays what is settled, whatever was lost meanwhile."""
        ledger = await harness.open()
        await fresh(harness, ledger)
        since = await harness.now()
        lost, found_again = await hold(ledger, 400, 1_600, on=BOTH), await hold(ledger, 500, 2_000, on=BOTH)
        await harness.advance(LEASE + timedelta(seconds=1))
        await ledger.book(ACME, [Booking(hold=found_again.id, events=(CALL,), end=True), Booking(hold=lost.id)])

        found = await ledger.spent(ACME, since=since)

        [(tokens, _), (money, _)] = await standing(ledger, *BOTH)
        assert sum(one.prompt_tokens + one.completion_tokens for one in found) == tokens == 500
        assert sum(one.cost_nanousd for one in found) == money == 2_000

    @clause("BUD-13")
    @pytest.mark.parametrize(("checkpoint", "settled"), [(None, 500), (120, 120), (30, 100)])
    async def test_what_the_end_of_a_lease_counted_is_not_counted_again(
        self, harness: BudgetHarness, checkpoint: int | None, settled: int
    ) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = await hold(ledger, 500)
        if checkpoint is not None:
            await ledger.checkpoint(ACME, held.id, Amount(tokens=checkpoint))
        await harness.advance(LEASE + timedelta(seconds=1))

        for _ in range(2):
            await ledger.book(ACME, [Booking(hold=held.id, events=(CALL,))])

        assert await standing(ledger, DAILY) == [(settled, 0)]
        assert await ledger.usage(ACME, CALL.request) == (CALL,)
        assert await ledger.deviations(ACME) == ()

    @clause("BUD-13")
    async def test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held, other = await hold(ledger, 500, 2_000, on=BOTH), await hold(ledger, 200, on=BOTH)
        await harness.advance(LEASE + timedelta(seconds=1))

        await ledger.book(ACME, [Booking(hold=held.id, events=(CALL,))])
        before = await standing(ledger, *BOTH)
        for _ in range(2):
            await ledger.book(ACME, [Booking(hold=held.id, end=True)])

        assert before == [(700, 0), (2_000, 0)]
        assert await standing(ledger, *BOTH) == [(100 + 200, 0), (400, 0)]
        await ledger.book(ACME, [Booking(hold=other.id, end=True)])
        assert await standing(ledger, *BOTH) == [(100, 0), (400, 0)]
        assert await ledger.deviations(ACME) == ()

    @clause("BUD-14")
    async def test_the_books_balance_whatever_happened(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        held = [await hold(ledger, 100, 400, on=BOTH) for _ in range(5)]
        await spend(ledger, held[0], 60)
        await ledger.book(ACME, [Booking(hold=held[1].id, events=(CALL,))])
        await ledger.extend(ACME, held[2].id, Amount(tokens=40), on=BOTH, lease=LEASE)
        first = await ledger.deviations(ACME)
        await harness.advance(LEASE * 2)
        await ledger.book(ACME, [Booking(hold=held[3].id, events=(replace(CALL, request="late"),), end=True)])

        assert first == ()
        assert await ledger.deviations(ACME) == ()
        assert await standing(ledger, DAILY) == [(60 + 100 + 140 + 100 + 100, 0)]

    @clause("BUD-15")
    async def test_a_spare_is_a_small_part_of_the_room_that_is_left(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)

        much = await ledger.hold(ACME, Amount(tokens=40), on=BOTH, lease=LEASE, spare=NOBODYS)
        little = await ledger.hold(ACME, Amount(tokens=40), on=BOTH, lease=LEASE, spare=Amount(tokens=7))

        assert much.held == Amount(tokens=40 + (1_000 - 40) // 32, nanousd=5_000 // 32)
        assert little.held == Amount(tokens=47)
        assert await standing(ledger, *BOTH) == [(0, much.amount + 47), (0, much.nanousd)]

    @clause("BUD-15")
    async def test_a_spare_is_never_what_a_hold_is_refused_for(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await fresh(harness, ledger)
        await hold(ledger, 990)

        held = await ledger.hold(ACME, Amount(tokens=10), on=(DAILY, limited("soft", 1)), lease=LEASE, spare=NOBODYS)

        assert held.held == Amount(tokens=10, nanousd=NOBODYS.nanousd)
        assert await standing(ledger, DAILY) == [(0, 1_000)]

    @clause("BUD-16")
    async def test_the_platform_sets_budgets_and_the_tenant_reads_them(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        changed = replace(AGENT, limit=7, mode="soft", tz="Europe/Berlin")

        await ledger.set_budget(PLATFORM, ACME.tenant, AGENT)
        await ledger.set_budget(PLATFORM, ACME.tenant, MONEY.budget)
        first = await ledger.budgets(ACME)
        await ledger.set_budget(PLATFORM, ACME.tenant, changed)
        await ledger.remove_budget(PLATFORM, ACME.tenant, MONEY.budget.id)

        assert first == (AGENT, MONEY.budget)
        assert await (await harness.reopen()).budgets(ACME) == (changed,)
        assert await ledger.budgets(GLOBEX) == ()
        with pytest.raises(NotFound):
            await ledger.remove_budget(PLATFORM, ACME.tenant, MONEY.budget.id)

    @clause("BUD-16")
    async def test_a_tenant_can_not_change_its_budgets(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await ledger.set_budget(PLATFORM, ACME.tenant, AGENT)

        with pytest.raises(PermissionDenied):
            await ledger.set_budget(ACME, ACME.tenant, replace(AGENT, limit=1))
        with pytest.raises(PermissionDenied):
            await ledger.remove_budget(ACME, ACME.tenant, AGENT.id)

        assert await ledger.budgets(ACME) == (AGENT,)

    @clause("BUD-16")
    @pytest.mark.parametrize(
        "budget",
        [
            replace(AGENT, tz="Mars/Olympus"), replace(AGENT, limit=-1), replace(AGENT, id="No Id"),
            replace(AGENT, id="tokens_per_day"), replace(AGENT, scope="tenant", scope_id="x"),
        ],
    )  # fmt: skip
    async def test_a_budget_that_can_not_be_is_refused(self, harness: BudgetHarness, budget: Budget) -> None:
        ledger = await harness.open()

        with pytest.raises(InvalidArgument):
            await ledger.set_budget(PLATFORM, ACME.tenant, budget)

        assert await ledger.budgets(ACME) == ()
