"""Broken budget ledgers."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import budget
from adapters.inproc.budget import HoldRow, InprocBudget
from adapters.inproc.store import Store, store
from conformance.budget import BudgetContract
from ports.budget import Balance, BudgetLedger, Hold
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

    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        found = await super().balance(auth, limit=limit)
        await self._clock.sleep(timedelta(0))
        return found


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
            "test_settled_spend_that_leaves_no_room_is_budget_exceeded",
            "test_room_held_by_others_is_budget_in_flight",
            "test_all_of_a_tenants_principals_share_its_budget",
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
        row = self._rows.get(hold)
        before = row.spent if row is not None else None
        await super().settle(auth, hold, spent)
        if row is not None and before is not None:
            row.spent = before + spent


class TestSettlesTwice(BrokenBudget):
    broken = SettlesTwice
    caught_by = frozenset(
        {
            "test_settling_again_changes_nothing",
            "test_racing_settlements_count_once",
        }
    )


class LastSettlementWins(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        await super().settle(auth, hold, spent)
        self._rows[hold].spent = spent


class TestLastSettlementWins(BrokenBudget):
    broken = LastSettlementWins
    caught_by = frozenset(
        {
            "test_settling_again_changes_nothing",
        }
    )


class ChargesNoMoreThanWasHeld(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        row = self._rows.get(hold)
        await super().settle(auth, hold, spent if row is None else min(spent, row.hold.amount))


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
            "test_room_held_by_others_is_budget_in_flight",
            "test_an_amount_that_can_never_fit_is_request_exceeds_budget",
        }
    )


class GivesLapsedHoldsBack(InprocBudget):
    def _lapse(self, tenant: TenantId) -> None:
        super()._lapse(tenant)
        now = self._clock.now()
        for row in self._rows.values():
            if row.spent == row.hold.amount and row.hold.expires_at <= now:
                row.spent = 0


class TestGivesLapsedHoldsBack(BrokenBudget):
    broken = GivesLapsedHoldsBack
    caught_by = frozenset(
        {
            "test_a_hold_whose_lease_ended_counts_as_spent_in_full",
        }
    )


class HoldsForEver(InprocBudget):
    def _lapse(self, tenant: TenantId) -> None:
        del tenant


class TestHoldsForEver(BrokenBudget):
    broken = HoldsForEver
    caught_by = frozenset(
        {
            "test_a_hold_whose_lease_ended_counts_as_spent_in_full",
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
        row = self._rows.get(hold)
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
            "test_tenants_do_not_touch_each_other",
            "test_a_hold_that_never_was_is_not_found",
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
    async def balance(self, auth: AuthContext, *, limit: int) -> Balance:
        found = await super().balance(auth, limit=limit)
        earlier = [row for row in self._rows.values() if row.tenant == auth.tenant and row.window < found.window_start]
        return replace(found, settled=found.settled + sum(row.spent or 0 for row in earlier))


class TestNeverStartsAnew(BrokenBudget):
    broken = NeverStartsAnew
    caught_by = frozenset(
        {
            "test_a_new_window_starts_empty",
            "test_a_hold_settles_into_the_window_it_was_made_in",
        }
    )


class SettlesIntoTheNewWindow(InprocBudget):
    async def settle(self, auth: AuthContext, hold: HoldId, spent: int) -> None:
        await super().settle(auth, hold, spent)
        row: HoldRow = self._rows[hold]
        row.window = budget.window_start(self._clock.now())


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
            "test_what_was_settled_and_held_is_there_for_a_ledger_opened_anew",
        }
    )
