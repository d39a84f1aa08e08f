"""Injected faults happen when and as often as asked, and nothing else changes."""

from collections.abc import AsyncIterator
from datetime import timedelta

import anyio
import pytest

from adapters.inproc.event import InprocEvents
from adapters.inproc.queue import InprocQueue
from adapters.inproc.store import Store
from conformance.clock import ManualClock
from conformance.faults import Faults
from conformance.people import ACME
from ports.errors import Unavailable
from ports.event import EventPort
from ports.ids import RunId
from ports.queue import Depth, QueuePort

LEASE = timedelta(seconds=30)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def queue(faults: Faults) -> QueuePort:
    port: QueuePort = InprocQueue(Store("faults"), ManualClock())
    return faults.around(port)


@pytest.mark.anyio
async def test_without_faults_a_port_is_as_it_was(queue: QueuePort) -> None:
    await queue.enqueue(ACME, b"work")

    assert queue.capabilities.delayed_delivery
    assert await queue.depth(ACME) == Depth(ready=1, leased=0)


@pytest.mark.anyio
@pytest.mark.parametrize(("kind", "effects"), [("before", 0), ("after", 1)])
async def test_a_call_fails_before_or_after_its_effect_once(
    queue: QueuePort, faults: Faults, kind: str, effects: int
) -> None:
    faults.inject("enqueue", "before" if kind == "before" else "after")

    with pytest.raises(Unavailable):
        await queue.enqueue(ACME, b"work")

    assert await queue.depth(ACME) == Depth(ready=effects, leased=0)
    await queue.enqueue(ACME, b"work")
    assert await queue.depth(ACME) == Depth(ready=effects + 1, leased=0)


@pytest.mark.anyio
async def test_a_call_acts_twice(queue: QueuePort, faults: Faults) -> None:
    faults.inject("enqueue", "twice")

    await queue.enqueue(ACME, b"work")

    assert await queue.depth(ACME) == Depth(ready=2, leased=0)


@pytest.mark.anyio
async def test_a_late_call_has_acted_before_it_answers(queue: QueuePort, faults: Faults) -> None:
    faults.inject("enqueue", "late")
    answered = anyio.Event()

    async def enqueue() -> None:
        await queue.enqueue(ACME, b"work")
        answered.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(enqueue)
            await faults.held()
            assert await queue.depth(ACME) == Depth(ready=1, leased=0)
            assert not answered.is_set()
            faults.let_go()

    assert answered.is_set()


@pytest.mark.anyio
async def test_a_stream_fails_at_its_first_step(faults: Faults) -> None:
    port: EventPort = faults.around(InprocEvents(Store("faults")))
    faults.inject("follow", "before")
    stream: AsyncIterator[object] = port.follow(ACME, RunId("run_1"))

    with pytest.raises(Unavailable):
        await anext(stream)
