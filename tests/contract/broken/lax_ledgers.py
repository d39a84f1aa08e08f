"""Budget ledgers that are broken beyond a tenant's tokens a day."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec.structs import replace

from adapters.inproc.budget import HoldRow, InprocBudget, Window
from ports.budget import NOTHING, Account, Amount, Booking, Budget, Hold, Spent, UsageEvent
from ports.context import AuthContext
from ports.errors import ResourceExhausted
from ports.ids import HoldId, TenantId
from tests.contract.broken.ledgers import BrokenBudget


class HoldsOnTheFirstOnly(InprocBudget):
    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        return await super().hold(auth, amount, on=on[:1], lease=lease, spare=spare)


class TestHoldsOnTheFirstOnly(BrokenBudget):
    broken = HoldsOnTheFirstOnly
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
            "test_a_hold_takes_room_of_every_account_in_its_own_unit",
            "test_a_hold_with_a_checkpoint_lapses_at_it",
            "test_a_shadow_budget_counts_and_says_nothing",
            "test_a_soft_budget_refuses_nothing_and_says_when_it_is_beyond",
            "test_a_spare_is_a_small_part_of_the_room_that_is_left",
            "test_an_amount_that_one_account_can_never_hold_names_it",
            "test_an_extension_takes_room_and_time",
            "test_each_of_a_scope_has_an_account_of_its_own",
            "test_no_account_is_held_on_when_one_has_no_room",
            "test_usage_moves_from_held_to_settled_and_the_rest_stays_held",
            "test_what_is_spent_is_told_before_what_is_only_held",
        }
    )


class HoldsOneAfterTheOther(InprocBudget):
    """What it took of the first accounts stays taken when the next has no room."""

    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        try:
            return await super().hold(auth, amount, on=on, lease=lease, spare=spare)
        except ResourceExhausted:
            if len(on) > 1:
                await super().hold(auth, amount, on=on[:1], lease=lease)
            raise


class TestHoldsOneAfterTheOther(BrokenBudget):
    broken = HoldsOneAfterTheOther
    caught_by = frozenset(
        {
            "test_no_account_is_held_on_when_one_has_no_room",
            "test_what_is_spent_is_told_before_what_is_only_held",
        }
    )


class CountsTokensOnly(InprocBudget):
    def _windows(self, tenant: TenantId, on: Sequence[Account]) -> list[Window]:
        found = super()._windows(tenant, on)
        for window in found:
            window.unit = "tokens"
        return found


class TestCountsTokensOnly(BrokenBudget):
    broken = CountsTokensOnly
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
            "test_a_hold_takes_room_of_every_account_in_its_own_unit",
            "test_a_hold_with_a_checkpoint_lapses_at_it",
            "test_a_spare_is_a_small_part_of_the_room_that_is_left",
            "test_an_extension_takes_room_and_time",
            "test_no_account_is_held_on_when_one_has_no_room",
            "test_usage_moves_from_held_to_settled_and_the_rest_stays_held",
            "test_what_is_spent_is_told_before_what_is_only_held",
        }
    )


class RefusesForSoftBudgets(InprocBudget):
    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        hard = [replace(one, budget=replace(one.budget, mode="hard")) for one in on]
        return await super().hold(auth, amount, on=hard, lease=lease, spare=spare)


class TestRefusesForSoftBudgets(BrokenBudget):
    broken = RefusesForSoftBudgets
    caught_by = frozenset(
        {
            "test_a_shadow_budget_counts_and_says_nothing",
            "test_a_soft_budget_refuses_nothing_and_says_when_it_is_beyond",
            "test_a_spare_is_never_what_a_hold_is_refused_for",
        }
    )


class LeavesWhatIsNotHeld(InprocBudget):
    """Says that what is held has been spent."""

    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        hold = await super().hold(auth, amount, on=on, lease=lease, spare=spare)
        balances = await self.standing(auth, on)
        left = tuple(
            replace(one, amount=one.amount - balance.held)
            for one in hold.left
            for account, balance in zip(on, balances, strict=True)
            if account.budget.id == one.budget
        )
        return replace(hold, left=left)


class TestLeavesWhatIsNotHeld(BrokenBudget):
    broken = LeavesWhatIsNotHeld
    caught_by = frozenset({"test_a_soft_budget_refuses_nothing_and_says_when_it_is_beyond"})


class TellsOfShadows(InprocBudget):
    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        told = [
            replace(one, budget=replace(one.budget, mode="soft")) if one.budget.mode == "shadow" else one for one in on
        ]
        return await super().hold(auth, amount, on=told, lease=lease, spare=spare)


class TestTellsOfShadows(BrokenBudget):
    broken = TellsOfShadows
    caught_by = frozenset(
        {
            "test_a_soft_budget_refuses_nothing_and_says_when_it_is_beyond",
            "test_a_shadow_budget_counts_and_says_nothing",
        }
    )


class KnowsNoTimeZones(InprocBudget):
    def _windows(self, tenant: TenantId, on: Sequence[Account]) -> list[Window]:
        return super()._windows(tenant, [replace(one, budget=replace(one.budget, tz="UTC")) for one in on])


class TestKnowsNoTimeZones(BrokenBudget):
    broken = KnowsNoTimeZones
    caught_by = frozenset(
        {
            "test_windows_start_where_their_period_does",
        }
    )


class ForgetsTotals(InprocBudget):
    def _windows(self, tenant: TenantId, on: Sequence[Account]) -> list[Window]:
        daily = [
            replace(one, budget=replace(one.budget, period="day")) if one.budget.period == "total" else one
            for one in on
        ]
        return super()._windows(tenant, daily)


class TestForgetsTotals(BrokenBudget):
    broken = ForgetsTotals
    caught_by = frozenset(
        {
            "test_a_total_goes_on_for_ever",
        }
    )


class ExtendsWithoutLooking(InprocBudget):
    async def extend(
        self, auth: AuthContext, hold: HoldId, more: Amount, *, on: Sequence[Account], lease: timedelta
    ) -> Hold:
        return await super().extend(auth, hold, more, on=on[:0], lease=lease)


class TestExtendsWithoutLooking(BrokenBudget):
    broken = ExtendsWithoutLooking
    caught_by = frozenset(
        {
            "test_an_extension_stays_in_the_window_of_its_hold",
            "test_an_extension_that_does_not_fit_changes_nothing",
        }
    )


class RevivesHolds(InprocBudget):
    async def extend(
        self, auth: AuthContext, hold: HoldId, more: Amount, *, on: Sequence[Account], lease: timedelta
    ) -> Hold:
        row = self._row(auth, hold)
        row.ended = None
        row.expires_at = max(row.expires_at, self._clock.now() + lease)
        return await super().extend(auth, hold, more, on=on, lease=lease)


class TestRevivesHolds(BrokenBudget):
    broken = RevivesHolds
    caught_by = frozenset(
        {
            "test_a_hold_that_is_over_is_not_extended",
            "test_an_extension_that_does_not_fit_changes_nothing",
        }
    )


class RenewsNothing(InprocBudget):
    async def renew(self, auth: AuthContext, holds: Sequence[HoldId], *, lease: timedelta) -> frozenset[HoldId]:
        return await super().renew(auth, holds, lease=min(lease, timedelta(0)))


class TestRenewsNothing(BrokenBudget):
    broken = RenewsNothing
    caught_by = frozenset(
        {
            "test_renewing_prolongs_what_is_alive_and_ours",
        }
    )


class RenewsForAnybody(InprocBudget):
    async def renew(self, auth: AuthContext, holds: Sequence[HoldId], *, lease: timedelta) -> frozenset[HoldId]:
        found: frozenset[HoldId] = frozenset()
        for tenant in {row.tenant for row in self._books.holds.values()}:
            found |= await super().renew(replace(auth, tenant=tenant), holds, lease=lease)
        return found


class TestRenewsForAnybody(BrokenBudget):
    broken = RenewsForAnybody
    caught_by = frozenset(
        {
            "test_renewing_prolongs_what_is_alive_and_ours",
        }
    )


class IgnoresCheckpoints(InprocBudget):
    async def checkpoint(self, auth: AuthContext, hold: HoldId, amount: Amount) -> None:
        del amount
        self._row(auth, hold)


class TestIgnoresCheckpoints(BrokenBudget):
    broken = IgnoresCheckpoints
    caught_by = frozenset(
        {
            "test_a_hold_with_a_checkpoint_lapses_at_it",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
            "test_what_was_booked_before_is_no_part_of_what_lapses",
        }
    )


class KeepsHoldingWhatWasUsed(InprocBudget):
    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        before = {one.hold: self._row(auth, one.hold).held for one in bookings if not one.end}
        await super().book(auth, bookings)
        for hold, held in before.items():
            row = self._row(auth, hold)
            self._move(row, held=held.minus(row.held))


class TestKeepsHoldingWhatWasUsed(BrokenBudget):
    broken = KeepsHoldingWhatWasUsed
    caught_by = frozenset(
        {
            "test_the_books_balance_whatever_happened",
            "test_usage_beyond_what_is_held_is_recorded_in_full",
            "test_usage_moves_from_held_to_settled_and_the_rest_stays_held",
            "test_what_a_booking_does_not_keep_is_free",
            "test_what_was_booked_before_is_no_part_of_what_lapses",
        }
    )


class KeepsEverything(InprocBudget):
    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        await super().book(auth, [replace(one, keep=None) for one in bookings])


class TestKeepsEverything(BrokenBudget):
    broken = KeepsEverything
    caught_by = frozenset(
        {
            "test_what_a_booking_does_not_keep_is_free",
        }
    )


class BooksTwice(InprocBudget):
    def _add(self, row: HoldRow, event: UsageEvent) -> bool:
        return super()._add(row, event) or event.kind == "call"


class TestBooksTwice(BrokenBudget):
    broken = BooksTwice
    caught_by = frozenset(
        {
            "test_an_attempt_is_booked_once",
            "test_what_a_booking_does_not_keep_is_free",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
        }
    )


class BooksOneByOne(InprocBudget):
    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        for booking in bookings:
            await super().book(auth, [booking])


class TestBooksOneByOne(BrokenBudget):
    broken = BooksOneByOne
    caught_by = frozenset(
        {
            "test_bookings_of_several_holds_are_all_or_nothing",
        }
    )


class BooksNoMoreThanIsHeld(InprocBudget):
    def _move(self, row: HoldRow, *, held: Amount, settled: Amount = NOTHING) -> None:
        most = min(settled.tokens, row.held.tokens)
        super()._move(row, held=held, settled=replace(settled, tokens=most))


class TestBooksNoMoreThanIsHeld(BrokenBudget):
    broken = BooksNoMoreThanIsHeld
    caught_by = frozenset(
        {
            "test_a_soft_budget_refuses_nothing_and_says_when_it_is_beyond",
            "test_settling_replaces_the_hold_by_what_was_spent",
            "test_spending_over_the_limit_is_recorded_in_full",
            "test_usage_beyond_what_is_held_is_recorded_in_full",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
        }
    )


class CountsLateUsageAgain(InprocBudget):
    def _lapse(self, tenant: TenantId) -> None:
        super()._lapse(tenant)
        for row in self._books.holds.values():
            row.lapsed = NOTHING


class TestCountsLateUsageAgain(BrokenBudget):
    broken = CountsLateUsageAgain
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
            "test_the_books_balance_whatever_happened",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
        }
    )


class KeepsWhatLapsed(InprocBudget):
    """Whoever ends a hold late pays for all of it, as if nobody knew what was used."""

    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        self._lapse(auth.tenant)
        rows = [self._books.holds.get(booking.hold) for booking in bookings]
        late = [row is not None and row.ended == "lapsed" for row in rows]
        await super().book(
            auth, [replace(one, end=one.end and not over) for one, over in zip(bookings, late, strict=True)]
        )


class TestKeepsWhatLapsed(BrokenBudget):
    broken = KeepsWhatLapsed
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
        }
    )


class DropsLateUsage(InprocBudget):
    async def book(self, auth: AuthContext, bookings: Sequence[Booking]) -> None:
        await super().book(auth, [one for one in bookings if self._row(auth, one.hold).ended != "lapsed"])


class TestDropsLateUsage(BrokenBudget):
    broken = DropsLateUsage
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
        }
    )


class LapsesWithoutAWord(InprocBudget):
    """The end of a lease is counted, and no event tells of it."""

    def _lapse(self, tenant: TenantId) -> None:
        super()._lapse(tenant)
        for where in [where for where, (_, event) in self._books.events.items() if event.kind == "lapse"]:
            del self._books.events[where]


class TestLapsesWithoutAWord(BrokenBudget):
    broken = LapsesWithoutAWord
    caught_by = frozenset(
        {
            "test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent",
            "test_the_end_of_a_hold_that_lapsed_takes_back_what_was_not_used",
            "test_a_hold_with_a_checkpoint_lapses_at_it",
            "test_the_books_balance_whatever_happened",
            "test_what_the_end_of_a_lease_counted_is_not_counted_again",
        }
    )


class SparesEverything(InprocBudget):
    async def hold(
        self, auth: AuthContext, amount: Amount, *, on: Sequence[Account], lease: timedelta, spare: Amount = NOTHING
    ) -> Hold:
        return await super().hold(auth, amount.plus(spare), on=on, lease=lease)


class TestSparesEverything(BrokenBudget):
    broken = SparesEverything
    caught_by = frozenset(
        {
            "test_a_spare_is_a_small_part_of_the_room_that_is_left",
            "test_a_spare_is_never_what_a_hold_is_refused_for",
        }
    )


class LetsTenantsSetBudgets(InprocBudget):
    async def set_budget(self, auth: AuthContext, tenant: TenantId, budget: Budget) -> None:
        await super().set_budget(replace(auth, scopes=frozenset({"admin:platform"})), tenant, budget)


class TestLetsTenantsSetBudgets(BrokenBudget):
    broken = LetsTenantsSetBudgets
    caught_by = frozenset(
        {
            "test_a_tenant_can_not_change_its_budgets",
        }
    )


class TakesAnyBudget(InprocBudget):
    async def set_budget(self, auth: AuthContext, tenant: TenantId, budget: Budget) -> None:
        auth.require("admin:platform")
        self._books.budgets[tenant, budget.id] = budget


class TestTakesAnyBudget(BrokenBudget):
    broken = TakesAnyBudget
    caught_by = frozenset(
        {
            "test_a_budget_that_can_not_be_is_refused",
        }
    )


class SharesBudgets(InprocBudget):
    async def budgets(self, auth: AuthContext) -> tuple[Budget, ...]:
        del auth
        return tuple(self._books.budgets.values())


class TestSharesBudgets(BrokenBudget):
    broken = SharesBudgets
    caught_by = frozenset(
        {
            "test_the_platform_sets_budgets_and_the_tenant_reads_them",
        }
    )


class SumsUpAllThatWasEverSpent(InprocBudget):
    async def spent(self, auth: AuthContext, *, since: datetime, by_agent: bool = False) -> tuple[Spent, ...]:
        return await super().spent(auth, since=since - timedelta(days=9), by_agent=by_agent)


class TestSumsUpAllThatWasEverSpent(BrokenBudget):
    broken = SumsUpAllThatWasEverSpent
    caught_by = frozenset({"test_what_was_spent_is_summed_up_by_day_and_model"})


class SumsUpCallsOnly(InprocBudget):
    async def spent(self, auth: AuthContext, *, since: datetime, by_agent: bool = False) -> tuple[Spent, ...]:
        return tuple(one for one in await super().spent(auth, since=since, by_agent=by_agent) if one.calls)


class TestSumsUpCallsOnly(BrokenBudget):
    broken = SumsUpCallsOnly
    caught_by = frozenset({"test_what_a_lapse_counted_and_what_was_taken_back_is_in_what_was_spent"})


class MixesAgents(InprocBudget):
    async def spent(self, auth: AuthContext, *, since: datetime, by_agent: bool = False) -> tuple[Spent, ...]:
        found = await super().spent(auth, since=since, by_agent=by_agent)
        return tuple(replace(one, agent="") for one in found)


class TestMixesAgents(BrokenBudget):
    broken = MixesAgents
    caught_by = frozenset({"test_what_was_spent_is_told_by_agent_where_asked_to"})
