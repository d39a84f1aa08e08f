"""Any sequence of queue calls against a list of what was enqueued.

Time is counted in ticks of ten minutes and leases end between two ticks, so that a storage whose own clock runs on a
little agrees about what has expired.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, consumes, multiple, precondition, rule

from conformance.harness import QueueHarness
from conformance.machines.driving import SETTINGS, Driven
from conformance.people import ACME, GLOBEX, NODE
from ports.context import QUEUE_ANY_TENANT, AuthContext
from ports.queue import Delivery, Depth, QueuePort

TICK: Final = timedelta(minutes=10)
TENANTS: Final = st.sampled_from([ACME, GLOBEX])
CALLERS: Final = st.sampled_from([ACME, GLOBEX, NODE])
TICKS: Final = st.integers(1, 3)


@dataclass
class Expected:
    """A message as it should be. Its body is its number, so that deliveries are recognised without trusting ids."""

    body: bytes
    requester: AuthContext
    ready_tick: int
    """Leasable from this tick on."""
    attempts: int = 0
    lease: str | None = None
    """Of the delivery that holds it, or held it last and was not taken over."""
    lease_tick: int = 0
    """The first tick at which the lease has ended."""
    acked: bool = False
    old_leases: set[str] = field(default_factory=set)

    def leased(self, tick: int) -> bool:
        return not self.acked and self.lease is not None and tick < self.lease_tick

    def leasable(self, tick: int) -> bool:
        return not self.acked and not self.leased(tick) and tick >= self.ready_tick

    def seen_by(self, caller: AuthContext) -> bool:
        return self.requester.tenant == caller.tenant or QUEUE_ANY_TENANT in caller.scopes


@dataclass(frozen=True)
class Given:
    """A delivery some lease gave, and to which message it belongs."""

    delivery: Delivery
    expected: Expected


class QueueMachine(Driven[QueueHarness]):
    deliveries: Bundle[Given] = Bundle("deliveries")

    def __init__(self) -> None:
        super().__init__()
        self.tick = 0
        self.messages: list[Expected] = []
        self.port: QueuePort = self.run(self.harness.open())

    @rule(requester=TENANTS)
    def enqueue(self, requester: AuthContext) -> None:
        body = str(len(self.messages)).encode()
        self.run(self.port.enqueue(requester, body))
        self.messages.append(Expected(body=body, requester=requester, ready_tick=self.tick))

    @precondition(lambda self: self.port.capabilities.delayed_delivery)
    @rule(requester=TENANTS, ticks=TICKS)
    def enqueue_for_later(self, requester: AuthContext, ticks: int) -> None:
        body = str(len(self.messages)).encode()
        # Half a tick early: due before the tick, by any clock.
        not_before = self.run(self.harness.now()) + ticks * TICK - TICK / 2
        self.run(self.port.enqueue(requester, body, not_before=not_before))
        self.messages.append(Expected(body=body, requester=requester, ready_tick=self.tick + ticks))

    @rule(target=deliveries, caller=CALLERS, limit=st.integers(1, 4), ticks=TICKS)
    def lease(self, caller: AuthContext, limit: int, ticks: int) -> MultipleResults[Given]:
        due = {one.body: one for one in self.messages if one.leasable(self.tick) and one.seen_by(caller)}

        leased = self.run(self.port.lease(caller, limit=limit, duration=ticks * TICK - TICK / 2))

        assert len(leased) == min(limit, len(due))
        assert len({one.body for one in leased}) == len(leased)
        given = [Given(one, due[one.body]) for one in leased]
        for one in given:
            self._take(one, self.tick + ticks)
        return multiple(*given)

    def _take(self, given: Given, lease_tick: int) -> None:
        expected, delivery = given.expected, given.delivery
        expected.attempts += 1
        assert delivery.attempt == expected.attempts
        assert delivery.requester == expected.requester
        assert delivery.lease not in expected.old_leases
        expected.old_leases.add(delivery.lease)
        expected.lease = delivery.lease
        expected.lease_tick = lease_tick

    @rule(given=deliveries, caller=CALLERS)
    def ack(self, given: Given, caller: AuthContext) -> None:
        expected, held = given.expected, given.expected.lease == given.delivery.lease
        if expected.acked and not held:
            return  # a late ack of what another delivery has acknowledged: the clauses leave it open
        if expected.lease is None:
            return  # released and not leased since: open as well

        outcome = self.outcome(self.port.ack(caller, given.delivery))

        if expected.acked or not expected.seen_by(caller):
            assert outcome == "ok"
        elif held:
            assert outcome == "ok"
            expected.acked = True
        else:
            assert outcome == "conflict"

    @rule(given=deliveries, caller=CALLERS, ticks=TICKS)
    def extend(self, given: Given, caller: AuthContext, ticks: int) -> None:
        expected, held = given.expected, given.expected.lease == given.delivery.lease
        if held and not expected.acked and not expected.leased(self.tick):
            return  # a lease that ended and was not taken over: open

        outcome = self.outcome(self.port.extend(caller, given.delivery, ticks * TICK - TICK / 2))

        if held and not expected.acked and expected.seen_by(caller):
            assert outcome == "ok"
            expected.lease_tick = self.tick + ticks
        else:
            assert outcome == "conflict"

    @rule(given=consumes(deliveries), caller=CALLERS)
    def release(self, given: Given, caller: AuthContext) -> None:
        expected, held = given.expected, given.expected.lease == given.delivery.lease
        if held and not expected.acked and not expected.leased(self.tick):
            return  # as for `extend`

        outcome = self.outcome(self.port.release(caller, given.delivery))

        if held and not expected.acked and expected.seen_by(caller):
            assert outcome == "ok"
            expected.lease = None
            expected.ready_tick = self.tick
        else:
            assert outcome == "conflict"

    @rule(ticks=TICKS)
    def wait(self, ticks: int) -> None:
        self.run(self.harness.advance(ticks * TICK))
        self.tick += ticks

    @rule(caller=CALLERS)
    def count(self, caller: AuthContext) -> None:
        seen = [one for one in self.messages if one.seen_by(caller)]
        expected = Depth(
            ready=sum(one.leasable(self.tick) for one in seen), leased=sum(one.leased(self.tick) for one in seen)
        )

        assert self.run(self.port.depth(caller)) == expected

    @rule()
    def reopen(self) -> None:
        self.port = self.run(self.harness.reopen())

    def finish(self) -> None:
        """When every lease and delay has run out, what comes back is what was never acknowledged."""
        self.run(self.harness.advance(10 * TICK))

        left = self.run(self.port.lease(NODE, limit=len(self.messages) + 1, duration=TICK))

        assert sorted((one.body, one.attempt, one.requester.tenant) for one in left) == sorted(
            (one.body, one.attempts + 1, one.requester.tenant) for one in self.messages if not one.acked
        )


def queue_machine(
    open_harness: Callable[[], AbstractAsyncContextManager[QueueHarness]], how: settings = SETTINGS
) -> type[QueueMachine]:
    """The machine over the adapter that `open_harness` opens; run its `TestCase`. `how` is for slow adapters."""

    class Machine(QueueMachine):
        pass

    Machine.open_harness = staticmethod(open_harness)
    Machine.TestCase.settings = how
    return Machine
