"""What every Queue adapter must show. Clauses: `ports.queue`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import anyio
import anyio.lowlevel
import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import QueueHarness
from conformance.people import ACME, GLOBEX, NODE
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, Unsupported
from ports.ids import TenantId
from ports.priority import DEFAULT, HIGHEST, LOWEST
from ports.queue import Delivery, Depth, QueuePort
from ports.tenant import Entitlements

LEASE: Final = timedelta(seconds=30)
HALF: Final = LEASE / 2
PATIENCE_S: Final = 10
"""How long a test waits for what should come at once."""


@pytest.mark.anyio
class QueueContract(Contract):
    async def test_the_capabilities_are_those_the_spec_declares(self, harness: QueueHarness) -> None:
        queue = await harness.open()

        assert queue.capabilities == harness.declared

    @clause("QUE-1")
    async def test_a_message_is_leased_with_its_body_and_requester(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        body = bytes(range(256))
        await queue.enqueue(ACME, body)

        [delivery] = await queue.lease(NODE, limit=1, duration=LEASE)

        assert delivery.body == body
        assert delivery.requester == ACME
        assert delivery.attempt == 1

    @clause("QUE-1")
    async def test_messages_come_oldest_first_and_no_more_than_asked_for(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for body in (b"1", b"2", b"3"):
            await queue.enqueue(ACME, body)

        first = await queue.lease(ACME, limit=2, duration=LEASE)
        rest = await queue.lease(ACME, limit=2, duration=LEASE)

        assert [one.body for one in first] == [b"1", b"2"]
        assert [one.body for one in rest] == [b"3"]

    @clause("QUE-2")
    async def test_a_leased_message_is_invisible(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        await queue.lease(ACME, limit=1, duration=LEASE)

        await harness.advance(HALF)

        assert await queue.lease(ACME, limit=1, duration=LEASE) == []
        assert await queue.lease(NODE, limit=1, duration=LEASE) == []

    @clause("QUE-2")
    async def test_racing_callers_never_lease_the_same_message(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for n in range(10):
            await queue.enqueue(ACME, str(n).encode())
        taken: list[Delivery] = []

        async def take() -> None:
            taken.extend(await queue.lease(ACME, limit=3, duration=LEASE))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(take)
        taken.extend(await queue.lease(ACME, limit=10, duration=LEASE))

        assert sorted(one.body for one in taken) == [str(n).encode() for n in range(10)]

    @clause("QUE-3")
    async def test_an_expired_lease_is_delivered_again_as_the_next_attempt(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [first] = await queue.lease(ACME, limit=1, duration=LEASE)

        await harness.advance(2 * LEASE)
        [second] = await queue.lease(ACME, limit=1, duration=LEASE)

        assert (second.body, second.attempt) == (b"work", 2)
        assert second.lease != first.lease

    @clause("QUE-4")
    async def test_an_acknowledged_message_never_returns(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)

        await queue.ack(ACME, delivery)
        await harness.advance(10 * LEASE)

        assert await queue.lease(ACME, limit=1, duration=LEASE) == []

    @clause("QUE-4")
    async def test_a_second_ack_of_the_same_delivery_is_a_no_op(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"done")
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)
        await queue.enqueue(ACME, b"other")
        await queue.ack(ACME, delivery)

        await queue.ack(ACME, delivery)

        [left] = await queue.lease(ACME, limit=2, duration=LEASE)
        assert left.body == b"other"

    @clause("QUE-5")
    @pytest.mark.parametrize("action", ["ack", "extend", "release"])
    async def test_a_lease_that_was_taken_over_conflicts(self, harness: QueueHarness, action: str) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [late] = await queue.lease(ACME, limit=1, duration=LEASE)
        await harness.advance(2 * LEASE)
        [current] = await queue.lease(ACME, limit=1, duration=LEASE)

        with pytest.raises(Conflict):
            await act(queue, action, late)

        # The new holder is undisturbed: still leased, still able to finish.
        assert await queue.lease(ACME, limit=1, duration=LEASE) == []
        await queue.ack(ACME, current)
        await harness.advance(2 * LEASE)
        assert await queue.lease(ACME, limit=1, duration=LEASE) == []

    @clause("QUE-6")
    async def test_another_tenants_messages_are_neither_leased_nor_counted(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"secret")

        assert await queue.lease(GLOBEX, limit=10, duration=LEASE) == []
        assert await queue.depth(GLOBEX) == Depth(ready=0, leased=0)

    @clause("QUE-6")
    async def test_another_tenants_delivery_can_be_neither_extended_nor_released(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)

        with pytest.raises(Conflict):
            await queue.extend(GLOBEX, delivery, 10 * LEASE)
        with pytest.raises(Conflict):
            await queue.release(GLOBEX, delivery)

        assert await queue.lease(ACME, limit=1, duration=LEASE) == []

    @clause("QUE-6")
    async def test_another_tenants_ack_acknowledges_nothing(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)

        await queue.ack(GLOBEX, delivery)
        await harness.advance(2 * LEASE)

        [again] = await queue.lease(ACME, limit=1, duration=LEASE)
        assert again.body == b"work"

    @clause("QUE-6")
    async def test_a_worker_serves_every_tenant(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"a")
        await queue.enqueue(GLOBEX, b"g")

        deliveries = await queue.lease(NODE, limit=10, duration=LEASE)
        counted = await queue.depth(NODE)
        for delivery in deliveries:
            await queue.ack(NODE, delivery)

        assert {(one.requester.tenant, one.body) for one in deliveries} == {
            (ACME.tenant, b"a"),
            (GLOBEX.tenant, b"g"),
        }
        assert counted == Depth(ready=0, leased=2)
        assert await queue.depth(NODE) == Depth(ready=0, leased=0)

    @clause("QUE-7")
    async def test_a_delayed_message_waits_for_its_time_where_the_adapter_can(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        if not queue.capabilities.delayed_delivery:
            pytest.skip("not declared: delayed_delivery")

        await queue.enqueue(ACME, b"later", not_before=await harness.now() + LEASE)

        await harness.advance(HALF)
        assert await queue.lease(ACME, limit=1, duration=LEASE) == []
        await harness.advance(LEASE)
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)
        assert delivery.body == b"later"

    @clause("QUE-7")
    async def test_a_delay_is_refused_where_the_adapter_can_not(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        if queue.capabilities.delayed_delivery:
            pytest.skip("declared: delayed_delivery")

        with pytest.raises(Unsupported):
            await queue.enqueue(ACME, b"later", not_before=await harness.now() + LEASE)

        await harness.advance(2 * LEASE)
        assert await queue.lease(ACME, limit=1, duration=LEASE) == []

    @clause("QUE-8")
    async def test_extend_keeps_the_lease_for_the_given_time_from_now(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)
        await harness.advance(HALF)

        extended = await queue.extend(ACME, delivery, 4 * LEASE)

        await harness.advance(3 * LEASE)
        assert await queue.lease(ACME, limit=1, duration=LEASE) == []
        await harness.advance(2 * LEASE)
        [again] = await queue.lease(ACME, limit=1, duration=LEASE)
        assert extended.expires_at > delivery.expires_at
        assert again.attempt == 2

    @clause("QUE-8")
    async def test_an_extended_delivery_can_be_acknowledged(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)

        await queue.ack(ACME, await queue.extend(ACME, delivery, LEASE))

        assert await queue.depth(ACME) == Depth(ready=0, leased=0)

    @clause("QUE-9")
    async def test_a_released_message_is_leasable_at_once_as_the_next_attempt(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        [delivery] = await queue.lease(ACME, limit=1, duration=LEASE)

        await queue.release(ACME, delivery)

        [again] = await queue.lease(ACME, limit=1, duration=LEASE)
        assert (again.body, again.attempt) == (b"work", 2)

    @clause("QUE-9")
    async def test_a_message_released_for_later_waits_where_the_adapter_can(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        if not queue.capabilities.delayed_delivery:
            pytest.skip("not declared: delayed_delivery")
        await queue.enqueue(ACME, b"work")
        [delivery] = await queue.lease(NODE, limit=1, duration=LEASE)

        await queue.release(NODE, delivery, delay=LEASE)

        await harness.advance(HALF)
        assert await queue.lease(NODE, limit=1, duration=LEASE) == []
        await harness.advance(LEASE)
        [again] = await queue.lease(NODE, limit=1, duration=LEASE)
        assert (again.body, again.attempt) == (b"work", 2)

    @clause("QUE-10")
    async def test_depth_counts_what_is_ready_and_what_is_leased(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for body in (b"1", b"2", b"3"):
            await queue.enqueue(ACME, body)
        deliveries = await queue.lease(ACME, limit=2, duration=LEASE)

        leased = await queue.depth(ACME)
        await queue.ack(ACME, deliveries[0])
        acknowledged = await queue.depth(ACME)
        await harness.advance(2 * LEASE)
        expired = await queue.depth(ACME)

        assert leased == Depth(ready=1, leased=2)
        assert acknowledged == Depth(ready=1, leased=1)
        assert expired == Depth(ready=2, leased=0)

    @clause("QUE-11")
    async def test_a_waiting_lease_returns_as_soon_as_something_is_enqueued(self, harness: QueueHarness) -> None:
        queue = await harness.open()

        async with waiting_lease(queue) as delivered:
            await queue.enqueue(ACME, b"work")

        assert [one.body for one in delivered] == [b"work"]

    @clause("QUE-11")
    async def test_a_waiting_lease_returns_as_soon_as_another_lease_runs_out(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"work")
        await queue.lease(ACME, limit=1, duration=LEASE)

        async with waiting_lease(queue) as delivered:
            await harness.advance(2 * LEASE)

        assert [(one.body, one.attempt) for one in delivered] == [(b"work", 2)]

    @clause("QUE-11")
    async def test_a_waiting_lease_ends_empty_when_nothing_comes(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        wait = timedelta(milliseconds=50)
        outcome: list[list[Delivery]] = []

        async def lease() -> None:
            outcome.append(await queue.lease(ACME, limit=1, duration=LEASE, wait=wait))

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(lease)
                # Whichever clock the adapter waits by, the storage's or the machine's, one of them gets there.
                while not outcome:
                    await harness.advance(wait)
                    await anyio.lowlevel.checkpoint()

        assert outcome == [[]]

    @clause("QUE-12")
    async def test_a_body_over_the_limit_is_refused_and_not_enqueued(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        most = queue.capabilities.max_body_bytes
        await queue.enqueue(ACME, b"x" * most)

        with pytest.raises(InvalidArgument):
            await queue.enqueue(ACME, b"x" * (most + 1))

        assert await queue.depth(ACME) == Depth(ready=1, leased=0)

    @clause("QUE-13")
    async def test_what_was_not_acknowledged_is_there_for_a_port_opened_anew(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for body in (b"done", b"leased", b"ready"):
            await queue.enqueue(ACME, body)
        [done, _leased] = await queue.lease(ACME, limit=2, duration=LEASE)
        await queue.ack(ACME, done)

        reopened = await harness.reopen()

        assert await reopened.depth(ACME) == Depth(ready=1, leased=1)
        await harness.advance(2 * LEASE)
        deliveries = await reopened.lease(ACME, limit=10, duration=LEASE)
        assert sorted((one.body, one.attempt) for one in deliveries) == [(b"leased", 2), (b"ready", 1)]

    @clause("QUE-14")
    @pytest.mark.parametrize("limit", [1, 4])
    async def test_a_backlog_delays_another_tenant_by_no_more_than_a_batch(
        self, harness: QueueHarness, limit: int
    ) -> None:
        queue = await harness.open()
        for n in range(40):
            await queue.enqueue(ACME, str(n).encode())
        before = await served(queue, limit, times=2)
        await queue.enqueue(GLOBEX, b"one")

        after = await served(queue, limit, times=2)

        assert before == [ACME.tenant] * 2 * limit
        assert GLOBEX.tenant in after

    @clause("QUE-14")
    async def test_tenants_with_messages_waiting_take_turns(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for auth in (ACME, GLOBEX):
            for n in range(10):
                await queue.enqueue(auth, str(n).encode())

        order = await served(queue, 1, times=12)

        assert len(order) == 12
        for end in range(1, len(order) + 1):
            assert abs(order[:end].count(ACME.tenant) - order[:end].count(GLOBEX.tenant)) <= 1

    @clause("QUE-14")
    @pytest.mark.parametrize("limit", [1, 3])
    async def test_within_a_tenant_the_oldest_comes_first(self, harness: QueueHarness, limit: int) -> None:
        queue = await harness.open()
        for n in range(9):
            await queue.enqueue(ACME, str(n).encode())

        bodies = [one.body for _ in range(9 // limit) for one in await queue.lease(NODE, limit=limit, duration=LEASE)]

        assert bodies == [str(n).encode() for n in range(9)]

    @clause("QUE-14")
    async def test_what_one_tenant_does_not_need_of_a_batch_another_gets(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for n in range(10):
            await queue.enqueue(ACME, str(n).encode())
        await queue.enqueue(GLOBEX, b"one")

        order = await served(queue, 8, times=1)

        assert (order.count(ACME.tenant), order.count(GLOBEX.tenant)) == (7, 1)

    @clause("QUE-14")
    async def test_a_message_whose_lease_ran_out_or_was_given_back_has_its_turn(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"lost")
        await queue.lease(NODE, limit=1, duration=LEASE)
        await harness.advance(HALF)
        assert await queue.lease(NODE, limit=1, duration=LEASE) == []
        await harness.advance(LEASE)
        [again] = await queue.lease(NODE, limit=1, duration=LEASE)
        await harness.advance(HALF)
        assert await queue.lease(NODE, limit=1, duration=LEASE) == []

        await queue.release(NODE, again)

        [third] = await queue.lease(NODE, limit=1, duration=LEASE)
        assert (third.body, third.attempt) == (b"lost", 3)

    @clause("QUE-15")
    @pytest.mark.parametrize("limit", [1, 8])
    async def test_tenants_share_in_proportion_to_their_weights(self, harness: QueueHarness, limit: int) -> None:
        queue = await harness.open()
        await harness.entitle(ACME.tenant, Entitlements(weight=1))
        await harness.entitle(GLOBEX.tenant, Entitlements(weight=3))
        for auth in (ACME, GLOBEX):
            for n in range(40):
                await queue.enqueue(auth, str(n).encode())

        order = await served(queue, limit, times=40 // limit)

        assert 9 <= order.count(ACME.tenant) <= 11
        assert order.count(ACME.tenant) + order.count(GLOBEX.tenant) == 40

    @clause("QUE-16")
    async def test_a_tenant_that_had_nothing_waiting_has_saved_no_turns_up(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(GLOBEX, b"early")
        for n in range(40):
            await queue.enqueue(ACME, str(n).encode())
        await served(queue, 1, times=22)
        for n in range(10):
            await queue.enqueue(GLOBEX, str(n).encode())

        order = await served(queue, 1, times=12)

        assert 5 <= order.count(GLOBEX.tenant) <= 7

    @clause("QUE-16")
    async def test_a_tenant_that_was_served_while_alone_owes_nothing(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for n in range(40):
            await queue.enqueue(ACME, str(n).encode())
        await served(queue, 1, times=20)
        for n in range(20):
            await queue.enqueue(GLOBEX, str(n).encode())

        order = await served(queue, 1, times=12)

        assert 5 <= order.count(ACME.tenant) <= 7

    @clause("QUE-18")
    async def test_of_tenants_with_nothing_under_way_each_gets_its_first(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for body in (b"1", b"2", b"3"):
            await queue.enqueue(ACME, body)
        for body in (b"4", b"5"):
            await queue.enqueue(GLOBEX, body)

        firsts = await queue.lease(NODE, limit=4, duration=LEASE, idle_only=True)

        assert sorted(one.body for one in firsts) == [b"1", b"4"]

    @clause("QUE-18")
    async def test_a_tenant_with_a_message_leased_is_not_idle_until_that_is_over(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for body in (b"1", b"2"):
            await queue.enqueue(ACME, body)
        [first] = await queue.lease(NODE, limit=1, duration=LEASE)
        await queue.enqueue(GLOBEX, b"3")

        idle = await queue.lease(NODE, limit=4, duration=LEASE, idle_only=True)
        await queue.ack(NODE, first)
        again = await queue.lease(NODE, limit=4, duration=LEASE, idle_only=True)

        assert [one.body for one in idle] == [b"3"]
        assert [one.body for one in again] == [b"2"]

    @clause("QUE-18")
    async def test_no_more_idle_tenants_are_served_than_asked_for(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"1")
        await queue.enqueue(GLOBEX, b"2")

        first = await queue.lease(NODE, limit=1, duration=LEASE, idle_only=True)
        second = await queue.lease(NODE, limit=1, duration=LEASE, idle_only=True)

        assert sorted(one.body for one in first + second) == [b"1", b"2"]
        assert len(first) == 1

    @clause("QUE-17")
    @pytest.mark.parametrize("auth", [ACME, NODE], ids=["a tenant", "a worker"])
    @pytest.mark.parametrize("limit", [1, 3])
    async def test_of_one_tenants_messages_the_more_urgent_come_first_and_of_equal_ones_the_oldest(
        self, harness: QueueHarness, auth: AuthContext, limit: int
    ) -> None:
        queue = await harness.open()
        for body, priority in ((b"5a", DEFAULT), (b"0", LOWEST), (b"9a", HIGHEST), (b"9b", HIGHEST)):
            await queue.enqueue(ACME, body, priority=priority)
        # The default is the middle, said or not.
        await queue.enqueue(ACME, b"5b")
        await queue.enqueue(ACME, b"6", priority=DEFAULT + 1)

        bodies = [one.body for _ in range(6 // limit) for one in await queue.lease(auth, limit=limit, duration=LEASE)]

        assert bodies == [b"9a", b"9b", b"6", b"5a", b"5b", b"0"]

    @clause("QUE-17")
    async def test_a_message_that_comes_back_has_its_priority_still(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        await queue.enqueue(ACME, b"urgent", priority=HIGHEST)
        [delivery] = await queue.lease(NODE, limit=1, duration=LEASE)
        await queue.enqueue(ACME, b"older than its return")
        await queue.release(NODE, delivery)

        [released] = await queue.lease(NODE, limit=1, duration=LEASE)
        await harness.advance(2 * LEASE)
        [lapsed] = await queue.lease(NODE, limit=1, duration=LEASE)

        assert (released.body, lapsed.body) == (b"urgent", b"urgent")

    @clause("QUE-17")
    async def test_a_tenants_priorities_win_it_no_turns_of_others(self, harness: QueueHarness) -> None:
        queue = await harness.open()
        for n in range(10):
            await queue.enqueue(ACME, str(n).encode(), priority=HIGHEST)
            await queue.enqueue(GLOBEX, str(n).encode(), priority=LOWEST)

        order = await served(queue, 1, times=12)

        for end in range(1, len(order) + 1):
            assert abs(order[:end].count(ACME.tenant) - order[:end].count(GLOBEX.tenant)) <= 1

    @clause("QUE-17")
    @pytest.mark.parametrize("priority", [LOWEST - 1, HIGHEST + 1])
    async def test_what_is_no_priority_is_refused_and_nothing_enqueued(
        self, harness: QueueHarness, priority: int
    ) -> None:
        queue = await harness.open()

        with pytest.raises(InvalidArgument):
            await queue.enqueue(ACME, b"work", priority=priority)

        assert await queue.depth(ACME) == Depth(ready=0, leased=0)


async def served(queue: QueuePort, limit: int, *, times: int) -> list[TenantId]:
    """Whose messages a worker gets in so many leases, each acknowledged."""
    order: list[TenantId] = []
    for _ in range(times):
        deliveries = await queue.lease(NODE, limit=limit, duration=LEASE)
        order += [one.requester.tenant for one in deliveries]
        for one in deliveries:
            await queue.ack(NODE, one)
    return order


async def act(queue: QueuePort, action: str, delivery: Delivery) -> None:
    if action == "ack":
        await queue.ack(ACME, delivery)
    elif action == "extend":
        await queue.extend(ACME, delivery, LEASE)
    else:
        await queue.release(ACME, delivery)


@asynccontextmanager
async def waiting_lease(queue: QueuePort) -> AsyncIterator[list[Delivery]]:
    """A lease that waits for long while the body of the block acts; at the block's end it must have returned."""
    delivered: list[Delivery] = []

    async def lease() -> None:
        delivered.extend(await queue.lease(ACME, limit=1, duration=LEASE, wait=100 * LEASE))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(lease)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            yield delivered
