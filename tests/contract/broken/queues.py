"""Broken queues."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc import queue
from adapters.inproc.queue import InprocQueue, Message
from adapters.inproc.store import Store, store
from conformance.people import GLOBEX
from conformance.queue import QueueContract
from ports.context import AuthContext
from ports.errors import Conflict
from ports.priority import DEFAULT
from ports.queue import Delivery, Depth, QueuePort
from tests.contract.broken.mutant import Mutant
from tests.support.inproc import InprocHarness, closing


class BrokenQueueHarness(InprocHarness[QueuePort]):
    def __init__(self, broken: type[InprocQueue], *, forgetful: bool = False) -> None:
        super().__init__(queue.SPEC)
        self._broken = broken
        self._forgetful = forgetful

    async def open(self) -> QueuePort:
        return self._broken(store(self.config.name), self.clock)

    async def reopen(self) -> QueuePort:
        return self._broken(Store("") if self._forgetful else store(self.config.name), self.clock)


class BrokenQueue(Mutant, QueueContract):
    broken: ClassVar[type[InprocQueue]] = InprocQueue
    forgetful: ClassVar[bool] = False
    """Whether a queue opened anew starts empty."""

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenQueueHarness]:
        async with closing(BrokenQueueHarness(self.broken, forgetful=self.forgetful)) as harness:
            yield harness


class TestIsHonest(BrokenQueue):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class ShowsEveryTenant(InprocQueue):
    def _visible(self, _auth: AuthContext) -> Iterator[Message]:
        return iter(self._messages.rows.values())

    def _mine(self, _auth: AuthContext, message_id: str) -> Message | None:
        return self._messages.rows.get(message_id)


class TestShowsEveryTenant(BrokenQueue):
    broken = ShowsEveryTenant
    caught_by = frozenset(
        {
            "test_another_tenants_messages_are_neither_leased_nor_counted",
            "test_another_tenants_delivery_can_be_neither_extended_nor_released",
            "test_another_tenants_ack_acknowledges_nothing",
        }
    )


class ServesItsOwnTenantOnly(InprocQueue):
    def _visible(self, auth: AuthContext) -> Iterator[Message]:
        return (one for one in self._messages.rows.values() if one.requester.tenant == auth.tenant)


class TestServesItsOwnTenantOnly(BrokenQueue):
    broken = ServesItsOwnTenantOnly
    caught_by = frozenset(
        {
            "test_a_tenant_with_a_message_leased_is_not_idle_until_that_is_over",
            "test_no_more_idle_tenants_are_served_than_asked_for",
            "test_of_tenants_with_nothing_under_way_each_gets_its_first",
            "test_a_worker_serves_every_tenant",
            "test_a_message_is_leased_with_its_body_and_requester",
            "test_what_one_tenant_does_not_need_of_a_batch_another_gets",
            "test_a_message_whose_lease_ran_out_or_was_given_back_has_its_turn",
            "test_a_message_released_for_later_waits_where_the_adapter_can",
            "test_a_backlog_delays_another_tenant_by_no_more_than_a_batch",
            "test_tenants_share_in_proportion_to_their_weights",
            "test_a_tenant_that_had_nothing_waiting_has_saved_no_turns_up",
            "test_a_tenant_that_was_served_while_alone_owes_nothing",
            "test_within_a_tenant_the_oldest_comes_first",
            "test_tenants_with_messages_waiting_take_turns",
            "test_a_message_that_comes_back_has_its_priority_still",
            "test_of_one_tenants_messages_the_more_urgent_come_first_and_of_equal_ones_the_oldest",
        }
    )


class ForgetsAcks(InprocQueue):
    async def ack(self, auth: AuthContext, delivery: Delivery) -> None:
        if self._mine(auth, delivery.id) is not None:
            self._held(auth, delivery)


class TestForgetsAcks(BrokenQueue):
    broken = ForgetsAcks
    caught_by = frozenset(
        {
            "test_a_tenant_with_a_message_leased_is_not_idle_until_that_is_over",
            "test_an_acknowledged_message_never_returns",
            "test_a_lease_that_was_taken_over_conflicts",
            "test_a_worker_serves_every_tenant",
            "test_an_extended_delivery_can_be_acknowledged",
            "test_depth_counts_what_is_ready_and_what_is_leased",
            "test_what_was_not_acknowledged_is_there_for_a_port_opened_anew",
            "test_a_tenant_that_had_nothing_waiting_has_saved_no_turns_up",
        }
    )


class RefusesTheSecondAck(InprocQueue):
    async def ack(self, auth: AuthContext, delivery: Delivery) -> None:
        if self._mine(auth, delivery.id) is None and auth.tenant == delivery.requester.tenant:
            raise Conflict("acknowledged already")
        await super().ack(auth, delivery)


class TestRefusesTheSecondAck(BrokenQueue):
    broken = RefusesTheSecondAck
    caught_by = frozenset(
        {
            "test_a_second_ack_of_the_same_delivery_is_a_no_op",
        }
    )


class TestLosesEverythingAtReopen(BrokenQueue):
    forgetful = True
    caught_by = frozenset(
        {
            "test_what_was_not_acknowledged_is_there_for_a_port_opened_anew",
        }
    )

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BrokenQueueHarness]:
        harness = BrokenQueueHarness(InprocQueue, forgetful=True)
        async with closing(harness):
            yield harness


class DeliversEarly(InprocQueue):
    async def enqueue(
        self, auth: AuthContext, body: bytes, *, not_before: datetime | None = None, priority: int = DEFAULT
    ) -> None:
        del not_before
        await super().enqueue(auth, body, priority=priority)


class TestDeliversEarly(BrokenQueue):
    broken = DeliversEarly
    caught_by = frozenset(
        {
            "test_a_delayed_message_waits_for_its_time_where_the_adapter_can",
        }
    )


class DeliversWhatIsLeased(InprocQueue):
    async def lease(self, auth: AuthContext, **asked: Any) -> list[Delivery]:
        now = self._clock.now()
        for message in self._visible(auth):
            if message.expires_at is not None:
                message.expires_at = now
        return await super().lease(auth, **asked)


class TestDeliversWhatIsLeased(BrokenQueue):
    broken = DeliversWhatIsLeased
    caught_by = frozenset(
        {
            "test_a_tenant_with_a_message_leased_is_not_idle_until_that_is_over",
            "test_messages_come_oldest_first_and_no_more_than_asked_for",
            "test_a_leased_message_is_invisible",
            "test_racing_callers_never_lease_the_same_message",
            "test_a_lease_that_was_taken_over_conflicts",
            "test_another_tenants_delivery_can_be_neither_extended_nor_released",
            "test_extend_keeps_the_lease_for_the_given_time_from_now",
            "test_within_a_tenant_the_oldest_comes_first",
            "test_a_message_whose_lease_ran_out_or_was_given_back_has_its_turn",
            "test_of_one_tenants_messages_the_more_urgent_come_first_and_of_equal_ones_the_oldest",
        }
    )


class NeverDeliversAgain(InprocQueue):
    async def lease(self, auth: AuthContext, **asked: Any) -> list[Delivery]:
        return await super().lease(auth, **{**asked, "duration": asked["duration"] * 1_000_000})


class TestNeverDeliversAgain(BrokenQueue):
    broken = NeverDeliversAgain
    caught_by = frozenset(
        {
            "test_an_expired_lease_is_delivered_again_as_the_next_attempt",
            "test_a_lease_that_was_taken_over_conflicts",
            "test_another_tenants_ack_acknowledges_nothing",
            "test_extend_keeps_the_lease_for_the_given_time_from_now",
            "test_depth_counts_what_is_ready_and_what_is_leased",
            "test_a_waiting_lease_returns_as_soon_as_another_lease_runs_out",
            "test_what_was_not_acknowledged_is_there_for_a_port_opened_anew",
            "test_a_message_whose_lease_ran_out_or_was_given_back_has_its_turn",
            "test_a_message_that_comes_back_has_its_priority_still",
        }
    )


class DeliversTheNewestFirst(InprocQueue):
    def _in_order(self, ready: list[Message]) -> list[Message]:
        return sorted(sorted(ready, key=lambda one: one.id, reverse=True), key=lambda one: -one.priority)


class TestDeliversTheNewestFirst(BrokenQueue):
    broken = DeliversTheNewestFirst
    caught_by = frozenset(
        {
            "test_a_tenant_with_a_message_leased_is_not_idle_until_that_is_over",
            "test_of_tenants_with_nothing_under_way_each_gets_its_first",
            "test_messages_come_oldest_first_and_no_more_than_asked_for",
            "test_what_was_not_acknowledged_is_there_for_a_port_opened_anew",
            "test_within_a_tenant_the_oldest_comes_first",
            "test_of_one_tenants_messages_the_more_urgent_come_first_and_of_equal_ones_the_oldest",
        }
    )


class CountsNoAttempts(InprocQueue):
    def _take(self, message: Message, until: datetime) -> Delivery:
        return replace(super()._take(message, until), attempt=1)


class TestCountsNoAttempts(BrokenQueue):
    broken = CountsNoAttempts
    caught_by = frozenset(
        {
            "test_an_expired_lease_is_delivered_again_as_the_next_attempt",
            "test_extend_keeps_the_lease_for_the_given_time_from_now",
            "test_a_released_message_is_leasable_at_once_as_the_next_attempt",
            "test_a_waiting_lease_returns_as_soon_as_another_lease_runs_out",
            "test_what_was_not_acknowledged_is_there_for_a_port_opened_anew",
            "test_a_message_released_for_later_waits_where_the_adapter_can",
            "test_a_message_whose_lease_ran_out_or_was_given_back_has_its_turn",
        }
    )


class AcceptsStaleLeases(InprocQueue):
    def _held(self, auth: AuthContext, delivery: Delivery) -> Message:
        message = self._mine(auth, delivery.id)
        if message is None:
            raise Conflict("no such message")
        return message


class TestAcceptsStaleLeases(BrokenQueue):
    broken = AcceptsStaleLeases
    caught_by = frozenset(
        {
            "test_a_lease_that_was_taken_over_conflicts",
        }
    )


class RaisesItsVendorsError(InprocQueue):
    def _held(self, auth: AuthContext, delivery: Delivery) -> Message:
        try:
            return super()._held(auth, delivery)
        except Conflict as error:
            raise KeyError(delivery.lease) from error


class TestRaisesItsVendorsError(BrokenQueue):
    broken = RaisesItsVendorsError
    caught_by = frozenset(
        {
            "test_a_lease_that_was_taken_over_conflicts",
            "test_another_tenants_delivery_can_be_neither_extended_nor_released",
        }
    )


class ExtendsNothing(InprocQueue):
    async def extend(self, auth: AuthContext, delivery: Delivery, duration: timedelta) -> Delivery:
        self._held(auth, delivery)
        return replace(delivery, expires_at=self._clock.now() + duration)


class TestExtendsNothing(BrokenQueue):
    broken = ExtendsNothing
    caught_by = frozenset(
        {
            "test_extend_keeps_the_lease_for_the_given_time_from_now",
        }
    )


class ReleasesNothing(InprocQueue):
    async def release(self, auth: AuthContext, delivery: Delivery, *, delay: timedelta = timedelta(0)) -> None:
        del delay
        self._held(auth, delivery)


class TestReleasesNothing(BrokenQueue):
    broken = ReleasesNothing
    caught_by = frozenset(
        {
            "test_a_released_message_is_leasable_at_once_as_the_next_attempt",
            "test_a_message_whose_lease_ran_out_or_was_given_back_has_its_turn",
            "test_a_message_that_comes_back_has_its_priority_still",
        }
    )


class CountsLeasedAsReady(InprocQueue):
    async def depth(self, auth: AuthContext) -> Depth:
        depth = await super().depth(auth)
        return Depth(ready=depth.ready + depth.leased, leased=0)


class TestCountsLeasedAsReady(BrokenQueue):
    broken = CountsLeasedAsReady
    caught_by = frozenset(
        {
            "test_a_worker_serves_every_tenant",
            "test_depth_counts_what_is_ready_and_what_is_leased",
            "test_what_was_not_acknowledged_is_there_for_a_port_opened_anew",
        }
    )


class DoesNotWait(InprocQueue):
    async def lease(self, auth: AuthContext, **asked: Any) -> list[Delivery]:
        return await super().lease(auth, **{**asked, "wait": timedelta(0)})


class TestDoesNotWait(BrokenQueue):
    broken = DoesNotWait
    caught_by = frozenset(
        {
            "test_a_waiting_lease_returns_as_soon_as_something_is_enqueued",
            "test_a_waiting_lease_returns_as_soon_as_another_lease_runs_out",
        }
    )


class SleepsThroughTheWait(InprocQueue):
    async def lease(self, auth: AuthContext, **asked: Any) -> list[Delivery]:
        wait = asked.pop("wait", timedelta(0))
        found = await super().lease(auth, **asked)
        if not found and wait:
            await self._clock.sleep(wait)
            found = await super().lease(auth, **asked)
        return found


class TestSleepsThroughTheWait(BrokenQueue):
    broken = SleepsThroughTheWait
    caught_by = frozenset(
        {
            "test_a_waiting_lease_returns_as_soon_as_something_is_enqueued",
            "test_a_waiting_lease_returns_as_soon_as_another_lease_runs_out",
        }
    )


class WaitsForEver(InprocQueue):
    async def lease(self, auth: AuthContext, **asked: Any) -> list[Delivery]:
        return await super().lease(auth, **{**asked, "wait": asked.get("wait", timedelta(0)) * 1_000_000})


class TestWaitsForEver(BrokenQueue):
    broken = WaitsForEver
    caught_by = frozenset(
        {
            "test_a_waiting_lease_ends_empty_when_nothing_comes",
        }
    )


class TakesBodiesOfAnySize(InprocQueue):
    async def enqueue(
        self, auth: AuthContext, body: bytes, *, not_before: datetime | None = None, priority: int = DEFAULT
    ) -> None:
        await super().enqueue(auth, body[: self.capabilities.max_body_bytes], not_before=not_before, priority=priority)


class TestTakesBodiesOfAnySize(BrokenQueue):
    broken = TakesBodiesOfAnySize
    caught_by = frozenset(
        {
            "test_a_body_over_the_limit_is_refused_and_not_enqueued",
        }
    )


class EnqueuesBeforeItRefuses(InprocQueue):
    async def enqueue(
        self, auth: AuthContext, body: bytes, *, not_before: datetime | None = None, priority: int = DEFAULT
    ) -> None:
        if len(body) > self.capabilities.max_body_bytes:
            await super().enqueue(auth, b"", not_before=not_before, priority=priority)
        await super().enqueue(auth, body, not_before=not_before, priority=priority)


class TestEnqueuesBeforeItRefuses(BrokenQueue):
    broken = EnqueuesBeforeItRefuses
    caught_by = frozenset(
        {
            "test_a_body_over_the_limit_is_refused_and_not_enqueued",
        }
    )


class ForgetsWhoAsked(InprocQueue):
    async def enqueue(
        self, auth: AuthContext, body: bytes, *, not_before: datetime | None = None, priority: int = DEFAULT
    ) -> None:
        await super().enqueue(replace(GLOBEX, tenant=auth.tenant), body, not_before=not_before, priority=priority)


class TestForgetsWhoAsked(BrokenQueue):
    broken = ForgetsWhoAsked
    caught_by = frozenset(
        {
            "test_a_message_is_leased_with_its_body_and_requester",
        }
    )
