"""Who holds a run, over the in-process adapters: found, handed back, taken over or given up, and executed once."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from adapters.inproc import queue as inproc_queue
from adapters.inproc.model import InprocModel, InprocModelConfig, scripted
from conformance.clock import ManualClock
from conformance.faults import Faults, Kind
from conformance.people import ACME
from ports.context import AuthContext
from ports.errors import InvalidArgument, Unavailable
from ports.ids import RunId, TenantId
from ports.model import ChatReply, ChatRequest, Message
from ports.queue import Delivery
from ports.run_state import Change
from ports.tenant import Entitlements
from stack_a import worker as worker_module
from stack_a.lease import SELF
from stack_a.runs import execute as execute_module
from tests.support.stack_a import StackA, stack_a
from tests.support.worker import Toolbox, calls, ended_in_time, model, slow_then_done, takeover, until, until_told

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def node(clock: ManualClock) -> AsyncIterator[StackA]:
    async with stack_a(clock=clock) as made:
        yield made


@pytest.fixture
def tools() -> Toolbox:
    return Toolbox()


async def test_a_run_whose_hint_was_lost_is_found_by_the_sweep(clock: ManualClock, tools: Toolbox) -> None:
    class Losing:
        """A queue that loses what it is given."""

        def __init__(self, queue: Any) -> None:
            self._queue = queue

        def __getattr__(self, name: str) -> Any:
            return getattr(self._queue, name)

        async def enqueue(self, *_: object, **__: object) -> None:
            raise Unavailable("the broker is down")

    async with stack_a(clock=clock, wrap=lambda name, port: Losing(port) if name == "queue" else port) as node:
        run_id = await node.created()
        async with node.worker(model(scripted(["found"])), tools.port(clock)):
            await takeover(clock)
            run = await node.ended(run_id)

    assert run.output == {"text": "found"}


@pytest.mark.parametrize(("port", "method", "kind"), [("run_state", "claim", "after"), ("queue", "ack", "before")])
async def test_a_claim_or_an_acknowledgement_that_is_not_answered_does_not_strand_the_run(
    clock: ManualClock, tools: Toolbox, port: str, method: str, kind: Kind
) -> None:
    faults = Faults()
    faults.inject(method, kind)

    async with stack_a(clock=clock, wrap=lambda name, given: faults.around(given) if name == port else given) as node:
        run_id = await node.created()
        async with node.worker(model(scripted([calls("add"), "found"])), tools.port(clock)):
            await takeover(clock)
            run = await node.ended(run_id)

    assert (run.status, run.epoch, tools.keys) == ("succeeded", 1, [f"{run_id}:2"])


async def test_a_run_that_comes_back_to_its_worker_before_it_was_left_is_executed_to_its_end(
    clock: ManualClock, tools: Toolbox
) -> None:
    faults = Faults()

    async with stack_a(clock=clock, wrap=lambda _, given: faults.around(given)) as node:
        run_id = await node.created()
        # The first execution ends by handing the run back, and is still telling the queue when the sweep finds the run.
        faults.inject("append", "before")
        faults.inject("enqueue", "late")
        async with node.worker(model(scripted([calls("slow"), "done"])), tools.port(clock)) as worker:
            await until(tools.begun.is_set)
            for _ in range(10):
                await clock.advance(timedelta(seconds=1))
            await until(lambda: len(tools.keys) == 2)
            faults.let_go()
            await clock.advance(timedelta(seconds=1))
            active_meanwhile = worker.active
            tools.let_go.set()
            run = await node.ended(run_id)

    assert (active_meanwhile, run.status, run.epoch) == (1, "succeeded", 2)


async def test_a_hint_delivered_twice_executes_the_run_once(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    run_id = await node.created()
    [delivery] = await node.api.queue.lease(SELF, limit=1, duration=timedelta(seconds=1))
    await node.api.queue.enqueue(ACME, delivery.body)
    await node.api.queue.release(SELF, delivery)

    async with node.worker(model(scripted([calls("add"), "once"])), tools.port(clock)):
        run = await node.ended(run_id)

    assert (run.epoch, tools.keys) == (1, [f"{run_id}:2"])
    assert (await node.api.queue.depth(ACME)).ready == 0


async def test_a_leaving_worker_hands_its_runs_back_to_others(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    talk = model(scripted([calls("slow"), "done"]))
    async with node.worker(talk, tools.port(clock)) as leaving:
        run_id = await node.created()
        await until(tools.begun.is_set)
        await leaving.drain(timedelta(0))
        handed_back = await node.run_state.load(ACME, run_id)  # type: ignore[arg-type]  # a str of the API

    tools.let_go.set()
    async with node.worker(talk, tools.port(clock)):
        run = await node.ended(run_id)

    assert handed_back.status == "queued"
    assert (run.status, run.recoveries, run.epoch) == ("succeeded", 0, 2)


async def test_a_leaving_worker_lets_its_runs_finish_within_the_grace(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    async with node.worker(model(scripted([calls("slow"), "done"])), tools.port(clock)) as leaving:
        run_id = await node.created()
        await until(tools.begun.is_set)
        async with anyio.create_task_group() as group:
            group.start_soon(leaving.drain, timedelta(seconds=30))
            tools.let_go.set()
        run = await node.ended(run_id)

    assert (run.status, run.epoch) == ("succeeded", 1)


async def test_a_worker_that_cannot_renew_stops_its_runs_without_another_write(
    clock: ManualClock, tools: Toolbox
) -> None:
    cut = anyio.Event()

    class Severed:
        """A run store that the worker can't reach once `cut` is set."""

        def __init__(self, port: Any) -> None:
            self._port = port

        def __getattr__(self, name: str) -> Any:
            return getattr(self._port, name)

        async def renew(self, *arguments: Any) -> Any:
            if cut.is_set():
                raise Unavailable("cut off")
            return await self._port.renew(*arguments)

    talk = model(scripted([calls("slow"), "never said"]))
    async with (
        stack_a(clock=clock, wrap=lambda name, port: Severed(port) if name == "run_state" else port) as node,
        node.worker(talk, tools.port(clock)) as severed,
    ):
        first_id = severed.id
        run_id = await node.created()
        await until(tools.begun.is_set)
        await until_told(node, clock, run_id, "tool.requested")
        before = await log_length(node, run_id)
        cut.set()
        await takeover(clock)
        await until(lambda: severed.active == 0)
        after = await log_length(node, run_id)

        assert not severed.holds_lease
        assert severed.id != first_id
    assert tools.cancelled == 1
    assert after == before


async def test_two_workers_share_the_runs_and_each_runs_once(node: StackA, tools: Toolbox, clock: ManualClock) -> None:
    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        return Message(role="assistant", content="done") if request.messages[-1].role == "tool" else calls("add")

    async with (
        node.worker(model(rule), tools.port(clock), concurrency=2),
        node.worker(model(rule), tools.port(clock), concurrency=2),
    ):
        ids = [await node.created() for _ in range(20)]
        runs = [await node.ended(run_id) for run_id in ids]

    assert {(run.status, run.epoch) for run in runs} == {("succeeded", 1)}
    assert len(tools.keys) == len(set(tools.keys)) == 20


async def test_a_stream_closes_when_the_callers_token_is_revoked(node: StackA, clock: ManualClock) -> None:
    run_id = await node.created()
    closed = anyio.Event()

    async def follow() -> None:
        await node.get(f"/v1/runs/{run_id}/events")
        closed.set()

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await clock.advance(timedelta(seconds=2))
        still_open = not closed.is_set()
        node.tokens.revoked.add("acme")
        with anyio.fail_after(5):
            while not closed.is_set():
                await clock.advance(timedelta(seconds=1))

    assert still_open


async def log_length(node: StackA, run_id: str) -> int:
    return (await node.run_state.load(ACME, run_id)).last_sequence  # type: ignore[arg-type]  # a str of the API


class Choosy:
    """A run store that refuses appends with `error` for as long as `refusing` says so."""

    def __init__(self, port: Any, error: Exception, refusing: Callable[[Change], bool]) -> None:
        self._port = port
        self._error = error
        self._refusing = refusing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Any:
        if self._refusing(change):
            raise self._error
        return await self._port.append(auth, run_id, epoch, change)


def tells_of_a_model(change: Change) -> bool:
    return any(event.type == "model.completed" for event in change.events) and change.status is None


async def test_a_reply_that_the_store_will_not_take_fails_the_run_at_once(clock: ManualClock, tools: Toolbox) -> None:
    asked = 0

    def rule(_auth: AuthContext, _request: ChatRequest) -> Message:
        nonlocal asked
        asked += 1
        return calls("send")

    def wrap(name: str, port: Any) -> Any:
        return Choosy(port, InvalidArgument("can't be stored"), tells_of_a_model) if name == "run_state" else port

    async with stack_a(clock=clock, wrap=wrap) as node, node.worker(model(rule), tools.port(clock)):
        run = await node.ended(await node.created())

    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.code, asked) == ("internal", 1)


async def test_a_run_that_no_worker_can_go_on_with_nor_end_is_given_up_as_poison(
    clock: ManualClock, tools: Toolbox
) -> None:
    def refused(change: Change) -> bool:
        return tells_of_a_model(change) or (change.error is not None and change.error.code == "internal")

    def wrap(name: str, port: Any) -> Any:
        return Choosy(port, InvalidArgument("can't be stored"), refused) if name == "run_state" else port

    async with (
        stack_a(clock=clock, wrap=wrap) as node,
        node.worker(model(lambda _auth, _request: calls("send")), tools.port(clock)),
    ):
        run = await ended_in_time(node, clock, await node.created())

    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.code, run.recoveries) == ("poison", 6)


async def test_outages_of_the_store_do_not_count_against_a_run_however_many_they_are(
    clock: ManualClock, tools: Toolbox
) -> None:
    outages = 0

    def refused(change: Change) -> bool:
        nonlocal outages
        outages += tells_of_a_model(change)
        return tells_of_a_model(change) and outages <= 20

    def wrap(name: str, port: Any) -> Any:
        return Choosy(port, Unavailable("away"), refused) if name == "run_state" else port

    tools.let_go.set()
    talk = model(scripted([calls("send"), "said"]))
    async with stack_a(clock=clock, wrap=wrap) as node, node.worker(talk, tools.port(clock)):
        created = await node.created()
        before = clock.monotonic()
        run = await ended_in_time(node, clock, created)

    assert (run.status, run.output, run.recoveries, run.epoch) == ("succeeded", {"text": "said"}, 0, 21)
    # It was not claimed again in the same moment.
    assert clock.monotonic() - before >= 20


async def test_a_store_that_is_away_during_a_model_call_is_not_the_models_failure(
    clock: ManualClock, tools: Toolbox
) -> None:
    away = True
    begun = anyio.Event()
    answer = anyio.Event()

    class Slow(InprocModel):
        async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
            begun.set()
            await answer.wait()
            return await super().chat(auth, request)

    def wrap(name: str, port: Any) -> Any:
        return Choosy(port, Unavailable("away"), lambda _: away) if name == "run_state" else port

    async with (
        stack_a(clock=clock, wrap=wrap) as node,
        node.worker(Slow(InprocModelConfig(chat_models=("m",)), scripted(["said"])), tools.port(clock)),
    ):
        run_id = await node.created()
        await until(begun.is_set)
        await clock.advance(execute_module.TELL_WITHIN)
        away = False
        answer.set()
        run = await node.ended(run_id)

    assert (run.status, run.output) == ("succeeded", {"text": "said"})


async def test_a_full_tenants_runs_wait_while_others_go_on_and_start_when_one_ends(
    node: StackA, tools: Toolbox, clock: ManualClock
) -> None:
    await node.entitle(ACME, Entitlements(max_active_runs=1))
    async with node.worker(model(slow_then_done), tools.port(clock)):
        mine = [await node.created() for _ in range(3)]
        await until(lambda: len(tools.keys) == 1)
        theirs = await node.created("globex")
        await until(lambda: len(tools.keys) == 2)
        tools.let_go.set()
        runs = [await ended_in_time(node, clock, run_id) for run_id in mine]
        runs.append(await node.ended(theirs, "globex"))

    assert tools.most_together == 2
    assert [(run.status, run.epoch) for run in runs] == [("succeeded", 1)] * 4


async def test_a_hint_of_a_full_tenant_is_put_aside_and_comes_back(tools: Toolbox, clock: ManualClock) -> None:
    class Unaware(inproc_queue.InprocQueue):
        """Knows of no tenant's limits."""

        leases = 0

        def _room(self, _tenant: TenantId) -> int:
            return 1_000

        def _take(self, message: inproc_queue.Message, until: datetime) -> Delivery:
            self.leases += 1
            return super()._take(message, until)

    unaware: list[Unaware] = []

    def wrap(name: str, port: Any) -> Any:  # any port of the node
        if name != "queue":
            return port
        unaware.append(Unaware(port._store, clock))
        return unaware[0]

    async with stack_a(clock=clock, wrap=wrap) as node:
        await node.entitle(ACME, Entitlements(max_active_runs=1))
        async with node.worker(model(slow_then_done), tools.port(clock)):
            mine = [await node.created() for _ in range(3)]
            await until(lambda: unaware[0].leases == 3)
            for _ in range(10):
                await clock.advance(worker_module.ROOM_AFTER)
            leases, together = unaware[0].leases, tools.together
            tools.let_go.set()
            for run_id in mine:
                await ended_in_time(node, clock, run_id)

    # Both hints that wait came back each time, and no more often.
    assert together == 1
    assert 3 < leases <= 3 + 2 * 10
