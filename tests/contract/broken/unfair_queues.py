"""Broken queues: those that are unfair."""

from datetime import datetime, timedelta
from fractions import Fraction

from adapters.inproc.queue import InprocQueue, Message
from ports.context import AuthContext
from ports.ids import TenantId
from ports.priority import DEFAULT, HIGHEST, LOWEST
from ports.queue import Delivery
from tests.contract.broken.queues import BrokenQueue


class ServesTheOldestFirst(InprocQueue):
    def _in_turn(self, ready: list[Message], size: int) -> list[Message]:
        return ready[:size]


class TestServesTheOldestFirst(BrokenQueue):
    broken = ServesTheOldestFirst
    caught_by = frozenset(
        {
            "test_a_backlog_delays_another_tenant_by_no_more_than_a_batch",
            "test_tenants_with_messages_waiting_take_turns",
            "test_what_one_tenant_does_not_need_of_a_batch_another_gets",
            "test_tenants_share_in_proportion_to_their_weights",
            "test_a_tenant_that_had_nothing_waiting_has_saved_no_turns_up",
            "test_a_tenant_that_was_served_while_alone_owes_nothing",
            "test_a_tenants_priorities_win_it_no_turns_of_others",
        }
    )


class ServesTheNewestOfATenant(InprocQueue):
    def _in_turn(self, ready: list[Message], size: int) -> list[Message]:
        return super()._in_turn(ready[::-1], size)


class TestServesTheNewestOfATenant(BrokenQueue):
    broken = ServesTheNewestOfATenant
    caught_by = frozenset(
        {
            "test_a_tenant_with_a_message_leased_is_not_idle_until_that_is_over",
            "test_within_a_tenant_the_oldest_comes_first",
            "test_a_message_that_comes_back_has_its_priority_still",
            "test_of_one_tenants_messages_the_more_urgent_come_first_and_of_equal_ones_the_oldest",
        }
    )


class ServesOneTenantPerBatch(InprocQueue):
    def _in_turn(self, ready: list[Message], size: int) -> list[Message]:
        due = super()._in_turn(ready, size)
        return [one for one in due if one.requester.tenant == due[0].requester.tenant]


class TestServesOneTenantPerBatch(BrokenQueue):
    broken = ServesOneTenantPerBatch
    caught_by = frozenset(
        {
            "test_of_tenants_with_nothing_under_way_each_gets_its_first",
            "test_a_worker_serves_every_tenant",
            "test_what_one_tenant_does_not_need_of_a_batch_another_gets",
            "test_tenants_share_in_proportion_to_their_weights",
        }
    )


class IgnoresWeights(InprocQueue):
    def _charge(self, tenant: TenantId) -> None:
        self._messages.time = self._messages.times[tenant]
        self._messages.times[tenant] += 1


class TestIgnoresWeights(BrokenQueue):
    broken = IgnoresWeights
    caught_by = frozenset({"test_tenants_share_in_proportion_to_their_weights"})


class TakesWeightsForCosts(InprocQueue):
    def _charge(self, tenant: TenantId) -> None:
        self._messages.time = self._messages.times[tenant]
        self._messages.times[tenant] += self._tenants.entitlements(tenant).weight


class TestTakesWeightsForCosts(BrokenQueue):
    broken = TakesWeightsForCosts
    caught_by = frozenset({"test_tenants_share_in_proportion_to_their_weights"})


class SavesTurnsUp(InprocQueue):
    def _wake(self, tenant: TenantId) -> None:
        self._messages.times.setdefault(tenant, Fraction(0))


class TestSavesTurnsUp(BrokenQueue):
    broken = SavesTurnsUp
    caught_by = frozenset(
        {
            "test_a_tenant_that_had_nothing_waiting_has_saved_no_turns_up",
            "test_a_tenant_that_was_served_while_alone_owes_nothing",
        }
    )


class PutsNewcomersLast(InprocQueue):
    def _wake(self, tenant: TenantId) -> None:
        self._messages.times.setdefault(tenant, self._messages.time + len(self._messages.rows))


class TestPutsNewcomersLast(BrokenQueue):
    broken = PutsNewcomersLast
    caught_by = frozenset(
        {
            "test_a_backlog_delays_another_tenant_by_no_more_than_a_batch",
            "test_tenants_with_messages_waiting_take_turns",
            "test_what_one_tenant_does_not_need_of_a_batch_another_gets",
            "test_tenants_share_in_proportion_to_their_weights",
            "test_a_tenant_that_had_nothing_waiting_has_saved_no_turns_up",
            "test_a_tenant_that_was_served_while_alone_owes_nothing",
            "test_a_tenants_priorities_win_it_no_turns_of_others",
        }
    )


class ForgetsDelays(InprocQueue):
    async def release(self, auth: AuthContext, delivery: Delivery, *, delay: timedelta = timedelta(0)) -> None:
        del delay
        await super().release(auth, delivery)


class TestForgetsDelays(BrokenQueue):
    broken = ForgetsDelays
    caught_by = frozenset({"test_a_message_released_for_later_waits_where_the_adapter_can"})


class KnowsNoPriority(InprocQueue):
    def _in_order(self, ready: list[Message]) -> list[Message]:
        return ready


class TestKnowsNoPriority(BrokenQueue):
    broken = KnowsNoPriority
    caught_by = frozenset(
        {
            "test_of_one_tenants_messages_the_more_urgent_come_first_and_of_equal_ones_the_oldest",
        }
    )


class TakesTheLeastUrgentFirst(InprocQueue):
    def _in_order(self, ready: list[Message]) -> list[Message]:
        return sorted(ready, key=lambda one: (one.priority, one.id))


class TestTakesTheLeastUrgentFirst(BrokenQueue):
    broken = TakesTheLeastUrgentFirst
    caught_by = frozenset(
        {
            "test_of_one_tenants_messages_the_more_urgent_come_first_and_of_equal_ones_the_oldest",
            "test_a_message_that_comes_back_has_its_priority_still",
        }
    )


class ForgetsThePriorityOfWhatComesBack(InprocQueue):
    def _take(self, message: Message, until: datetime) -> Delivery:
        message.priority = LOWEST
        return super()._take(message, until)


class TestForgetsThePriorityOfWhatComesBack(BrokenQueue):
    broken = ForgetsThePriorityOfWhatComesBack
    caught_by = frozenset({"test_a_message_that_comes_back_has_its_priority_still"})


class ServesTheMostUrgentOfAll(InprocQueue):
    def _charge(self, tenant: TenantId) -> None:
        super()._charge(tenant)
        if any(one.priority == HIGHEST and one.requester.tenant == tenant for one in self._messages.rows.values()):
            self._messages.times[tenant] = Fraction(0)


class TestServesTheMostUrgentOfAll(BrokenQueue):
    broken = ServesTheMostUrgentOfAll
    caught_by = frozenset({"test_a_tenants_priorities_win_it_no_turns_of_others"})


class TakesAnyPriority(InprocQueue):
    async def enqueue(
        self, auth: AuthContext, body: bytes, *, not_before: datetime | None = None, priority: int = DEFAULT
    ) -> None:
        await super().enqueue(auth, body, not_before=not_before, priority=max(LOWEST, min(HIGHEST, priority)))


class TestTakesAnyPriority(BrokenQueue):
    broken = TakesAnyPriority
    caught_by = frozenset({"test_what_is_no_priority_is_refused_and_nothing_enqueued"})


class TakesBusyTenantsForIdle(InprocQueue):
    def _firsts(self, ready: list[Message], now: datetime) -> list[Message]:
        del now
        return list({one.requester.tenant: one for one in reversed(ready)}.values())


class TestTakesBusyTenantsForIdle(BrokenQueue):
    broken = TakesBusyTenantsForIdle
    caught_by = frozenset({"test_a_tenant_with_a_message_leased_is_not_idle_until_that_is_over"})


class GivesIdleTenantsAllTheyHave(InprocQueue):
    def _firsts(self, ready: list[Message], now: datetime) -> list[Message]:
        idle = {one.requester.tenant for one in super()._firsts(ready, now)}
        return [one for one in ready if one.requester.tenant in idle]


class TestGivesIdleTenantsAllTheyHave(BrokenQueue):
    broken = GivesIdleTenantsAllTheyHave
    caught_by = frozenset({"test_of_tenants_with_nothing_under_way_each_gets_its_first"})
