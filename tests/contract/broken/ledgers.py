"""Broken budget ledgers."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import budget
from adapters.inproc.budget import InprocBudget, Window
from adapters.inproc.store import Store, store
from conformance.budget import BudgetContract
from ports.budget import NOTHING, Account, Amount, Balance, BudgetLedger, Hold
from ports.budget_rules import tokens_per_day
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound, ResourceExhausted
from ports.ids import HoldId, TenantId
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing

ONE = TenantId("tnt_one")


class BrokenBudgetHarness(InprocHarness[BudgetLedger]):
    def __init__(self, broken: type[InprocBudget], *, forgetful: bool) -> None:
        super().__init__(budget.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> BudgetLedger:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> BudgetLedger:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenBudget(Mutant, BudgetContract):
    broken: ClassVar[type[InprocBudget]] = InprocBudget
    forgetful: ClassVar[bool] = False

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenBudgetHarness]:
        async with closing(BrokenBudgetHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenBudget):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class ChecksThenHolds(InprocBudget):
    """Others act between its look at the balance and its hold."""

    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        free = (await self.balance(auth, limit=limit)).free
        await self._clock.sleep(timedelta(0))
        unseen = limit if amount > free else limit * 1_000
        return await super().reserve(auth, amount, limit=limit if amount > limit else unseen, lease=lease)


class TestChecksThenHolds(BrokenBudget):
    broken = ChecksThenHolds
    caught_by = frozenset(
        {
            "test_a_hundred_callers_at_the_limit_get_exactly_what_fits",
        }
    )


class LooksAtSpendingOnly(InprocBudget):
    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        held = (await self.balance(auth, limit=limit)).held
        return await super().reserve(auth, amount, limit=limit + held, lease=lease)


class TestLooksAtSpendingOnly(BrokenBudget):
    broken = LooksAtSpendingOnly
    caught_by = frozenset(
        {
            "test_a_hundred_callers_at_the_limit_get_exactly_what_fits",
            "test_all_of_a_tenants_principals_share_its_budget",
            "test_room_held_by_others_is_budget_in_flight",
            "test_settled_spend_that_leaves_no_room_is_budget_exceeded",
        }
    )


class TakesAnyAmount(InprocBudget):
    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        return await super().reserve(auth, max(1, amount), limit=limit, lease=lease)


class TestTakesAnyAmount(BrokenBudget):
    broken = TakesAnyAmount
    caught_by = frozenset(
        {
            "test_an_amount_that_is_none_is_refused",
        }
    )


class SettlesTwice(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        row = self._books.holds.get(hold)
        again = row is not None and row.ended == "settled"
        await super().settle(auth, hold, spent)
        if row is not None and again:
            self._move(row, held=NOTHING, settled=Amount(tokens=spent))


class TestSettlesTwice(BrokenBudget):
    broken = SettlesTwice
    caught_by = frozenset(
        {
            "test_racing_settlements_count_once",
            "test_settling_again_changes_nothing",
        }
    )


class LastSettlementWins(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        found = self._books.events.pop((auth.tenant, f"settled {hold}", 0), None)
        if found is not None:
            self._move(found[0], held=NOTHING, settled=NOTHING.minus(found[1].amount))
        await super().settle(auth, hold, spent)


class TestLastSettlementWins(BrokenBudget):
    broken = LastSettlementWins
    caught_by = frozenset(
        {
            "test_settling_again_changes_nothing",
        }
    )


class ChargesNoMoreThanWasHeld(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        row = self._books.holds.get(hold)
        await super().settle(auth, hold, spent if row is None else min(spent, row.held.tokens))


class TestChargesNoMoreThanWasHeld(BrokenBudget):
    broken = ChargesNoMoreThanWasHeld
    caught_by = frozenset(
        {
            "test_settling_replaces_the_hold_by_what_was_spent",
            "test_spending_over_the_limit_is_recorded_in_full",
        }
    )


class KnowsOneRefusal(InprocBudget):
    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        try:
            return await super().reserve(auth, amount, limit=limit, lease=lease)
        except (ResourceExhausted, InvalidArgument) as error:
            if amount < 1:
                raise
            raise ResourceExhausted("no", code="budget_exceeded") from error


class TestKnowsOneRefusal(BrokenBudget):
    broken = KnowsOneRefusal
    caught_by = frozenset(
        {
            "test_a_hundred_callers_at_the_limit_get_exactly_what_fits",
            "test_an_amount_that_can_never_fit_is_request_exceeds_budget",
            "test_room_held_by_others_is_budget_in_flight",
        }
    )


class GivesLapsedHoldsBack(InprocBudget):
    def _lapse(self, tenant: TenantId) -> None:
        for row in self._books.holds.values():
            if row.tenant == tenant and row.checkpoint is None:
                row.checkpoint = NOTHING
        super()._lapse(tenant)


class TestGivesLapsedHoldsBack(BrokenBudget):
    broken = GivesLapsedHoldsBack
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
            "test_a_hold_that_is_over_is_not_extended",
            "test_a_hold_whose_lease_ended_counts_as_spent_in_full",
            "test_an_extension_that_does_not_fit_changes_nothing",
            "test_renewing_prolongs_what_is_alive_and_ours",
            "test_the_books_balance_whatever_happened",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
            "test_what_was_booked_before_is_no_part_of_what_lapses",
        }
    )


class HoldsForEver(InprocBudget):
    def _lapse(self, tenant: TenantId) -> None:
        del tenant


class TestHoldsForEver(BrokenBudget):
    broken = HoldsForEver
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
            "test_a_hold_that_is_over_is_not_extended",
            "test_a_hold_whose_lease_ended_counts_as_spent_in_full",
            "test_a_hold_with_a_checkpoint_lapses_at_it",
            "test_an_extension_that_does_not_fit_changes_nothing",
            "test_renewing_prolongs_what_is_alive_and_ours",
            "test_the_books_balance_whatever_happened",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
            "test_what_was_booked_before_is_no_part_of_what_lapses",
        }
    )


class OneBudgetForAll(InprocBudget):
    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        return await super().reserve(replace(auth, tenant=ONE), amount, limit=limit, lease=lease)

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        await super().settle(replace(auth, tenant=ONE), hold, spent)

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        return await super().balance(replace(auth, tenant=ONE), limit=limit)


class TestOneBudgetForAll(BrokenBudget):
    broken = OneBudgetForAll
    caught_by = frozenset(
        {
            "test_tenants_do_not_touch_each_other",
        }
    )


class SettlesForAnybody(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        row = self._books.holds.get(hold)
        await super().settle(auth if row is None else replace(auth, tenant=row.tenant), hold, spent)


class TestSettlesForAnybody(BrokenBudget):
    broken = SettlesForAnybody
    caught_by = frozenset(
        {
            "test_tenants_do_not_touch_each_other",
        }
    )


class ForgivesUnknownHolds(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        try:
            await super().settle(auth, hold, spent)
        except NotFound:
            return


class TestForgivesUnknownHolds(BrokenBudget):
    broken = ForgivesUnknownHolds
    caught_by = frozenset(
        {
            "test_a_hold_that_never_was_is_not_found",
            "test_tenants_do_not_touch_each_other",
        }
    )


class ABudgetPerPrincipal(InprocBudget):
    async def reserve(self, auth: AuthContext, amount: int, *, limit: int, lease: timedelta) -> Hold:
        own = replace(auth, tenant=TenantId(auth.tenant + auth.principal))
        return await super().reserve(own, amount, limit=limit, lease=lease)

    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        await super().settle(replace(auth, tenant=TenantId(auth.tenant + auth.principal)), hold, spent)

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        own = auth if auth.principal in auth.tenant else replace(auth, tenant=TenantId(auth.tenant + auth.principal))
        return await super().balance(own, limit=limit)


class TestABudgetPerPrincipal(BrokenBudget):
    broken = ABudgetPerPrincipal
    caught_by = frozenset(
        {
            "test_all_of_a_tenants_principals_share_its_budget",
        }
    )


class NeverStartsAnew(InprocBudget):
    def _windows(self, tenant: TenantId, on: Sequence[Account]) -> list[Window]:
        found = super()._windows(tenant, on)
        first: dict[str, Window] = {}
        for (owner, key, _), window in self._books.windows.items():
            if owner == tenant:
                first.setdefault(key, window)
        return [first[window.account] for window in found]


class TestNeverStartsAnew(BrokenBudget):
    broken = NeverStartsAnew
    caught_by = frozenset(
        {
            "test_a_hold_settles_into_the_window_it_was_made_in",
            "test_a_new_window_starts_empty",
            "test_an_extension_stays_in_the_window_of_its_hold",
            "test_windows_start_where_their_period_does",
        }
    )


class SettlesIntoTheNewWindow(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        row = self._row(auth, hold)
        held = row.held
        self._move(row, held=NOTHING.minus(held))
        row.windows = tuple(self._windows(auth.tenant, [tokens_per_day(0)]))
        self._move(row, held=held)
        await super().settle(auth, hold, spent)


class TestSettlesIntoTheNewWindow(BrokenBudget):
    broken = SettlesIntoTheNewWindow
    caught_by = frozenset(
        {
            "test_a_hold_settles_into_the_window_it_was_made_in",
        }
    )


class TestLosesEverythingAtReopen(BrokenBudget):
    forgetful = True
    caught_by = frozenset(
        {
            "test_the_platform_sets_budgets_and_the_tenant_reads_them",
            "test_what_was_settled_and_held_is_there_for_a_ledger_opened_anew",
        }
    )
