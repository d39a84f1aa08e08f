"""What every BudgetLedger must show: of a tenant's tokens a day here, and of all else in `budget_accounts`.

Clauses: `ports.budget`.
"""

from datetime import timedelta
from typing import Final

import anyio
import pytest

from conformance.budget_accounts import BudgetAccounts
from conformance.clauses import clause
from conformance.harness import BudgetHarness
from conformance.people import ACME, ACME_BEN, GLOBEX
from ports.budget import Balance, BudgetLedger, Hold
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, NotFound, ResourceExhausted

LIMIT: Final = 1_000
LEASE: Final = timedelta(minutes=1)
DAY: Final = timedelta(days=1)


async def reserve(ledger: BudgetLedger, amount: int, auth: AuthContext = ACME) -> Hold:
    return await ledger.reserve(auth, amount, limit=LIMIT, lease=LEASE)


async def spend(ledger: BudgetLedger, amount: int, auth: AuthContext = ACME) -> None:
    await ledger.settle(auth, (await reserve(ledger, amount, auth)).id, amount)


async def standing(ledger: BudgetLedger, auth: AuthContext = ACME) -> tuple[int, int]:
    """Settled and held."""
    balance = await ledger.balance(auth, limit=LIMIT)
    return balance.settled, balance.held


async def to_a_fresh_window(harness: BudgetHarness, ledger: BudgetLedger) -> Balance:
    """Move to just after the start of a window, so that a test's minutes do not meet its end."""
    balance = await ledger.balance(ACME, limit=LIMIT)
    await harness.advance(balance.window_end - await harness.now() + timedelta(seconds=1))
    return await ledger.balance(ACME, limit=LIMIT)


@pytest.mark.anyio
class BudgetContract(BudgetAccounts):
    @clause("BUD-1")
    async def test_a_hold_takes_room_and_a_balance_tells_it(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)

        hold = await reserve(ledger, 300)

        balance = await ledger.balance(ACME, limit=LIMIT)
        assert hold.amount == 300
        assert (balance.limit, balance.settled, balance.held, balance.free) == (LIMIT, 0, 300, 700)

    @clause("BUD-1")
    async def test_a_hundred_callers_at_the_limit_get_exactly_what_fits(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        await spend(ledger, 250)
        granted: list[Hold] = []
        refused: list[str] = []

        async def attempt() -> None:
            try:
                granted.append(await reserve(ledger, 100))
            except ResourceExhausted as error:
                refused.append(error.code)

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(attempt)

        assert len(granted) == 7
        assert refused == ["budget_in_flight"] * 93
        assert await standing(ledger) == (250, 700)

    @clause("BUD-1")
    async def test_the_last_token_can_be_held(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        await reserve(ledger, LIMIT - 1)

        await reserve(ledger, 1)

        assert await standing(ledger) == (0, LIMIT)

    @clause("BUD-1")
    @pytest.mark.parametrize("amount", [0, -1])
    async def test_an_amount_that_is_none_is_refused(self, harness: BudgetHarness, amount: int) -> None:
        ledger = await harness.open()

        with pytest.raises(InvalidArgument):
            await reserve(ledger, amount)

        assert await standing(ledger) == (0, 0)

    @clause("BUD-2")
    @pytest.mark.parametrize("spent", [0, 120, 300, 450])
    async def test_settling_replaces_the_hold_by_what_was_spent(self, harness: BudgetHarness, spent: int) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        hold = await reserve(ledger, 300)
        await reserve(ledger, 50)

        await ledger.settle(ACME, hold.id, spent)

        assert await standing(ledger) == (spent, 50)

    @clause("BUD-2")
    async def test_settling_again_changes_nothing(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        hold = await reserve(ledger, 300)
        await ledger.settle(ACME, hold.id, 120)

        await ledger.settle(ACME, hold.id, 120)
        await ledger.settle(ACME, hold.id, 300)

        assert await standing(ledger) == (120, 0)

    @clause("BUD-2")
    async def test_racing_settlements_count_once(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        hold = await reserve(ledger, 300)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ledger.settle, ACME, hold.id, 200)

        assert await standing(ledger) == (200, 0)

    @clause("BUD-2")
    async def test_spending_over_the_limit_is_recorded_in_full(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        hold = await reserve(ledger, 900)

        await ledger.settle(ACME, hold.id, 1_500)

        balance = await ledger.balance(ACME, limit=LIMIT)
        assert (balance.settled, balance.free) == (1_500, 0)

    @clause("BUD-3")
    async def test_settled_spend_that_leaves_no_room_is_budget_exceeded(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        await spend(ledger, 800)
        await reserve(ledger, 100)

        with pytest.raises(ResourceExhausted) as refusal:
            await reserve(ledger, 201)

        assert refusal.value.code == "budget_exceeded"
        assert await standing(ledger) == (800, 100)

    @clause("BUD-3")
    async def test_room_held_by_others_is_budget_in_flight(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        hold = await reserve(ledger, 800)

        with pytest.raises(ResourceExhausted) as refusal:
            await reserve(ledger, 300)

        assert refusal.value.code == "budget_in_flight"
        assert refusal.value.retry_after is not None
        assert timedelta(seconds=1) <= refusal.value.retry_after <= timedelta(seconds=5)
        await ledger.settle(ACME, hold.id, 0)
        await reserve(ledger, 300)

    @clause("BUD-3")
    async def test_an_amount_that_can_never_fit_is_request_exceeds_budget(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)

        with pytest.raises(AgentOSError) as refusal:
            await reserve(ledger, LIMIT + 1)

        assert refusal.value.code == "request_exceeds_budget"
        assert refusal.value.details["max_tokens_that_fits"] == LIMIT

    @clause("BUD-4")
    async def test_a_hold_whose_lease_ended_counts_as_spent_in_full(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        await reserve(ledger, 300)
        settled = await reserve(ledger, 200)
        await ledger.settle(ACME, settled.id, 50)

        await harness.advance(LEASE / 2)
        before = await standing(ledger)
        await harness.advance(LEASE)
        after = await standing(ledger)

        assert before == (50, 300)
        assert after == (350, 0)
        with pytest.raises(ResourceExhausted) as refusal:
            await reserve(ledger, 651)
        assert refusal.value.code == "budget_exceeded"
        await reserve(ledger, 650)

    @clause("BUD-5")
    async def test_tenants_do_not_touch_each_other(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        await spend(ledger, 400)
        hold = await reserve(ledger, 600)

        assert await standing(ledger, GLOBEX) == (0, 0)
        await reserve(ledger, LIMIT, GLOBEX)
        with pytest.raises(NotFound):
            await ledger.settle(GLOBEX, hold.id, 0)

        assert await standing(ledger) == (400, 600)

    @clause("BUD-5")
    async def test_all_of_a_tenants_principals_share_its_budget(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)

        await reserve(ledger, 600, ACME_BEN)

        with pytest.raises(ResourceExhausted):
            await reserve(ledger, 600, ACME)

    @clause("BUD-5")
    async def test_a_hold_that_never_was_is_not_found(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        hold = await reserve(ledger, 10)

        for absent in (hold.id[:-1] + ("0" if hold.id[-1] != "0" else "1"), "not an id of ours"):
            with pytest.raises(NotFound):
                await ledger.settle(ACME, type(hold.id)(absent), 0)

    @clause("BUD-6")
    async def test_a_new_window_starts_empty(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        first = await to_a_fresh_window(harness, ledger)
        await spend(ledger, LIMIT)

        await harness.advance(DAY)

        second = await ledger.balance(ACME, limit=LIMIT)
        assert (second.settled, second.held) == (0, 0)
        assert second.window_start == first.window_end
        assert second.window_end - second.window_start == DAY
        assert (second.window_start.hour, second.window_start.utcoffset()) == (0, timedelta(0))
        await reserve(ledger, LIMIT)

    @clause("BUD-6")
    async def test_a_hold_settles_into_the_window_it_was_made_in(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        window = await to_a_fresh_window(harness, ledger)
        await harness.advance(window.window_end - await harness.now() - LEASE / 4)
        hold = await reserve(ledger, 500)
        await harness.advance(LEASE / 2)

        await ledger.settle(ACME, hold.id, 400)

        assert await standing(ledger) == (0, 0)

    @clause("BUD-7")
    async def test_what_was_settled_and_held_is_there_for_a_ledger_opened_anew(self, harness: BudgetHarness) -> None:
        ledger = await harness.open()
        await to_a_fresh_window(harness, ledger)
        await spend(ledger, 200)
        hold = await reserve(ledger, 300)

        reopened = await harness.reopen()

        assert await standing(reopened) == (200, 300)
        await reopened.settle(ACME, hold.id, 100)
        assert await standing(ledger) == (300, 0)
