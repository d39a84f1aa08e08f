"""The engine under a crash at every port call: promises E1 to E5, E8 and E9, against an oracle that trusts nobody.

Two kinds of proof. One scenario is repeated with trouble at each of its port calls in turn, so that none is left out. And
Hypothesis looks for orders of events that nobody thought of: creations, cancels, deadlines, kills, pauses longer than a
lease, errors of unknown effect. `AGENTOS_SIMULATION_EXAMPLES=2000` is the long form.
"""

import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import msgspec
import pytest
from anyio.abc import TaskGroup
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from conformance.faults import Kind
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.ids import RunId, WorkerId
from ports.memory import MemoryWrite
from ports.model import ChatDelta, ChatRequest
from ports.queue import Delivery
from ports.run_state import Adrift, Appended, Change, Created, NewRun, Orphan, Renewal, Run, StepIntent
from ports.tool import ToolCall, ToolResult, ToolSpec
from stack_a.lease import LEASE, SELF
from stack_a.runs.start import Hint
from stack_a.worker import Worker
from tests.support.simulation import AS_IT_IS, HANDED, TOOLS, TRANSACTIONAL, Trouble, Turns, World, Wrap

EXAMPLES: Final = int(os.environ.get("AGENTOS_SIMULATION_EXAMPLES", "60"))
SEARCHED: Final = max(400, EXAMPLES)
"""Histories looked through for a planted bug; the first that shows it ends the search."""
HEALED_WITHIN_S: Final = 150
"""A lease to lapse, a sweep, and what is left of the longest run."""

SETTINGS: Final = settings(
    print_blob=False,
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TURNS: Final = st.lists(
    st.lists(st.sampled_from([*TOOLS, HANDED, "nonsense"]), min_size=1, max_size=3).map(tuple), max_size=3
).map(tuple)
FAULTS: Final = st.dictionaries(
    st.sampled_from(["create", "enqueue"]), st.sampled_from(["before", "after"]), max_size=2
)
TROUBLES: Final = st.sampled_from(["kill", "pause", "unavailable"])


class EngineMachine(RuleBasedStateMachine):
    """What can't be done at the moment is passed over: what Hypothesis draws must not depend on the engine's own order."""

    def __init__(self, plant: Wrap = AS_IT_IS, stored: Wrap = AS_IT_IS) -> None:
        super().__init__()
        self._plant = plant
        self._stored = stored
        self.world: World | None = None
        self.keys = 0

    @property
    def its(self) -> World:
        assert self.world is not None, "the first rule makes it"
        return self.world

    @initialize(seed=st.integers(0, 1_000))
    def begin(self, seed: int) -> None:
        self.world = World(seed=seed, plant=self._plant, stored=self._stored)
        self.world.start(2)

    @rule(turns=TURNS, deadline=st.sampled_from([None, None, 5, 20]), faults=FAULTS)
    def create(self, turns: tuple[tuple[str, ...], ...], deadline: int | None, faults: dict[str, Kind]) -> None:
        self.keys += 1
        limit = None if deadline is None else timedelta(seconds=deadline)
        self.its.create(turns, key=f"key-{self.keys}", deadline=limit, faults=faults)

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds: int) -> None:
        self.its.pass_time(seconds)

    @rule(which=st.integers(0, 9), gates=st.integers(0, 30), trouble=TROUBLES)
    def plan(self, which: int, gates: int, trouble: Trouble) -> None:
        if living := self.its.living():
            living[which % len(living)].plan(gates, trouble)

    @rule(
        turns=TURNS,
        gates=st.integers(0, 60),
        trouble=TROUBLES,
        seconds=st.integers(1, 8),
        missed=st.sampled_from([0, 33, 35, 38]),
    )
    def create_into_trouble(
        self, turns: tuple[tuple[str, ...], ...], gates: int, trouble: Trouble, seconds: int, missed: int
    ) -> None:
        """So that most histories have a run in hand when it happens, and a worker that takes it over."""
        self.create(turns=turns, deadline=None, faults={})
        for process in self.its.living():
            process.plan(gates, trouble)
        self.wait(seconds=seconds)
        if missed:
            self.start(seconds=0)
            self.resume(seconds=missed)

    @rule(seconds=st.sampled_from([1, 20, 34, 37]))
    def resume(self, seconds: int) -> None:
        """What stood still for less than its lease, or for longer, while another worker took over."""
        if any(process.paused for process in self.its.living()):
            self.its.start()
            self.its.pass_time(seconds)
            for process in self.its.living():
                process.resume()

    @rule(seconds=st.sampled_from([0, 35]))
    def start(self, seconds: int) -> None:
        if len(self.its.living()) < 2:
            self.its.start()
            self.its.pass_time(seconds)

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if runs := list(self.its.accepted.values()):
            self.cancelled(runs[which % len(runs)])

    @rule(tool=st.sampled_from(["slow", "send"]), seconds=st.integers(0, 9))
    def cancel_in_the_middle(self, tool: str, seconds: int) -> None:
        self.create(turns=((tool, "slow"), ("slow",)), deadline=None, faults={})
        self.wait(seconds=seconds)
        self.cancelled(self.its.accepted[f"key-{self.keys}"])

    def cancelled(self, run_id: RunId) -> None:
        """E8: in healthy hands it takes no more than the time between two renewals."""
        reachable = self.its.status(run_id) == "running" and self.its.healthy_holder(run_id)

        self.its.cancel(run_id)
        self.its.pass_time(5)

        if reachable:
            assert self.its.status(run_id) in {"succeeded", "failed", "cancelled"}, f"E8: {run_id} goes on"

    @invariant()
    def nothing_is_broken(self) -> None:
        if self.world is not None:
            self.world.check()

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            # With a failure on its way, what is found after it would only hide it.
            if sys.exc_info()[0] is None:
                heal(self.world)
                self.world.check_end()
        finally:
            self.world.close()


def heal(world: World) -> None:
    world.heal()
    for _ in range(HEALED_WITHIN_S):
        if world.settled():
            break
        world.pass_time(1)


def simulate(plant: Wrap = AS_IT_IS, stored: Wrap = AS_IT_IS, *, examples: int = EXAMPLES) -> None:
    given = settings(SETTINGS, max_examples=examples)
    run_state_machine_as_test(lambda: EngineMachine(plant, stored), settings=given)  # type: ignore[arg-type]  # it takes whatever makes one


def test_every_promise_holds_in_every_history_that_hypothesis_finds() -> None:
    simulate()


# --- trouble at every port call --------------------------------------------------------------------------------------

SCENARIO: Final = (("note", "look"), ("slow", "keep"), ("send",))
HANDING: Final = ((HANDED, "note"),)


def scenario(
    trouble: tuple[int, Trouble] | None = None,
    plant: Wrap = AS_IT_IS,
    stored: Wrap = AS_IT_IS,
    *,
    turns: Turns = SCENARIO,
) -> list[str]:
    """One run through one worker to which something happens, and through another one after that; the gates it passed."""
    world = World(plant=plant, stored=stored)
    try:
        world.create(turns, key="key-1")
        world.start(trouble=trouble)
        first = world.processes[0]
        for _ in range(30):
            world.pass_time(1)
            if world.settled() or first.dead or first.paused:
                break
        passed = list(first.gates)
        if first.paused:
            world.start()
            # Back while the other worker is at work on the run.
            world.pass_time(round(LEASE.total_seconds()) + 5)
            first.resume()
        heal(world)
        world.check_end()
        return passed
    finally:
        world.close()


@pytest.mark.parametrize("kind", ["kill", "pause", "unavailable"])
def test_every_promise_holds_whatever_port_call_meets_trouble(kind: Trouble) -> None:
    gates = scenario()

    for number in range(len(gates)):
        scenario((number, kind))

    assert {"run_state.claim after", "run_state.append before", "run_state.append after", "queue.ack before",
            "model.stream after", "tool.invoke before", "tool.invoke after"} <= set(gates)  # fmt: skip


@pytest.mark.parametrize("kind", ["kill", "pause", "unavailable"])
def test_every_promise_holds_whatever_port_call_of_a_run_that_hands_work_on_meets_trouble(kind: Trouble) -> None:
    gates = scenario(turns=HANDING)

    for number in range(len(gates)):
        scenario((number, kind), turns=HANDING)

    assert {"run_state.create before", "run_state.create after", "run_state.wake before",
            "run_state.wake after"} <= set(gates)  # fmt: skip


# --- the oracle sees what it should ----------------------------------------------------------------------------------


class Around:
    """A port, but for what a subclass breaks."""

    def __init__(self, port: Any) -> None:
        self.port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self.port, name)


class WithoutFence(Around):
    """A store that takes a write under whatever epoch."""

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        run = await self.port.load(auth, run_id)
        appended: Appended = await self.port.append(auth, run_id, max(epoch, run.epoch), change)
        return appended


class ForgettingOnTakeover(Around):
    """A store that gives a recovered run an empty journal."""

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        run: Run = await self.port.claim(auth, run_id, worker)
        if run.recoveries:
            self.port._runs.row(auth, run_id).steps.clear()
        return run


class LosingEvents(Around):
    """A store that drops an event where a change has many."""

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        appended: Appended = await self.port.append(auth, run_id, epoch, change)
        row = self.port._runs.row(auth, run_id)
        if len(change.events) > 3:
            del row.events[-2]
        return appended


class WithoutSweep(Around):
    """A store that knows no orphans."""

    async def orphans(self, *_: object, **__: object) -> tuple[Orphan, ...]:
        return ()


class DeafToCancel(Around):
    """A store that never tells the worker that somebody wants the run to end."""

    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        renewal: Renewal = await self.port.renew(auth, worker, duration)
        return msgspec.structs.replace(renewal, cancel_requested=frozenset())


class IntentsWithResults(Around):
    """A worker that records what it meant to do together with what came of it."""

    def __init__(self, port: Any) -> None:
        super().__init__(port)
        self.held: dict[RunId, tuple[StepIntent, ...]] = {}

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        results = {step.n for step in change.steps if not isinstance(step, StepIntent)}
        early = [step for step in change.steps if isinstance(step, StepIntent) and step.n not in results]
        due = self.held.pop(run_id, ())
        self.held[run_id] = tuple(early)
        written = msgspec.structs.replace(change, steps=(*due, *(step for step in change.steps if step not in early)))
        appended: Appended = await self.port.append(auth, run_id, epoch, written)
        return appended


class ActingAtOnce(Around):
    """Tools, of which the transactional one makes its writes itself."""

    store: Any = None

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        if call.name == TRANSACTIONAL:
            write = MemoryWrite(key=call.key, value=call.arguments["nonce"])
            self.store._items.put(auth, write, self.store._clock.now())
        result: ToolResult = await self.port.invoke(auth, call, timeout=timeout)
        return result


def acting_at_once(name: str, given: Any) -> Any:
    """A process' run store is wrapped before its tools."""
    if name == "run_state":
        ActingAtOnce.store = given
    return ActingAtOnce(given) if name == "tool" else given


class LosingWrites(Around):
    """A worker that records what came of a step, and forgets what was to become true with it."""

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        appended: Appended = await self.port.append(auth, run_id, epoch, msgspec.structs.replace(change, writes=()))
        return appended


class KeyPerAttempt(Around):
    """A worker that makes a new key each time it calls a tool."""

    calls = 0

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        self.calls += 1
        changed = msgspec.structs.replace(call, key=f"{call.key}.{self.calls}")
        result: ToolResult = await self.port.invoke(auth, changed, timeout=timeout)
        return result


class ChildPerAttempt(Around):
    """A worker that makes a new key each time it makes a run for another one."""

    calls = 0

    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        if new.parent is not None:
            self.calls += 1
            key = msgspec.structs.replace(new.idempotency, key=f"{new.idempotency.key}.{id(self)}.{self.calls}")
            new = msgspec.structs.replace(new, idempotency=key)
        created: Created = await self.port.create(auth, new)
        return created


class WithoutMending(Around):
    """A store that knows of nobody whose parent or children went on without it."""

    async def adrift(self, *_: object, **__: object) -> tuple[Adrift, ...]:
        return ()


class ForgettingReplies(Around):
    """A gateway that asks its model anew each time, and gets another answer each time."""

    async def stream(self, auth: AuthContext, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        async for delta in self.port.stream(auth, msgspec.structs.replace(request, step_key=None)):
            yield delta


class UnsafeTakenForSafe(Around):
    """A tool port that calls its unsafe tool idempotent, so that the engine repeats it."""

    async def list_tools(self, auth: AuthContext) -> tuple[ToolSpec, ...]:
        return tuple(msgspec.structs.replace(spec, effect="idempotent") for spec in await self.port.list_tools(auth))


def only(port: str, broken: type[Around]) -> Wrap:
    return lambda name, given: broken(given) if name == port else given


def acknowledging_before_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker as it would be with `accept` meant too literally."""

    async def follow(self: Worker, delivery: Delivery, _group: TaskGroup) -> None:
        hint = msgspec.json.decode(delivery.body, type=Hint)
        try:
            await self._deps.queue.ack(SELF, delivery)
            run = await self._claim(delivery.requester, hint.run_id)
        except AgentOSError:
            return
        if run is not None:
            await self._execute(run)

    monkeypatch.setattr(Worker, "_follow_hint", follow)


PLANTED: Final[dict[str, tuple[str, dict[str, Wrap]]]] = {
    "a journal forgotten on takeover": ("E2", {"stored": only("run_state", ForgettingOnTakeover)}),
    "a lost event": ("E4", {"stored": only("run_state", LosingEvents)}),
    "no sweep": ("E1", {"stored": only("run_state", WithoutSweep)}),
    "a worker deaf to cancels": ("E8", {"stored": only("run_state", DeafToCancel)}),
    "the intent after the effect": ("E2|E9", {"plant": only("run_state", IntentsWithResults)}),
    "a gateway that forgets its replies": ("E2", {"stored": only("model", ForgettingReplies)}),
    "a new key per attempt": ("E2", {"plant": only("tool", KeyPerAttempt)}),
    "a child per attempt": ("E2", {"plant": only("run_state", ChildPerAttempt)}),
    "a transactional tool that acts": ("E2", {"plant": acting_at_once}),
    "writes that are lost": ("E2", {"plant": only("run_state", LosingWrites)}),
    "an unsafe tool repeated": ("E9", {"plant": only("tool", UnsafeTakenForSafe)}),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    promise, planted = PLANTED[bug]

    with pytest.raises(AssertionError, match=promise):
        simulate(**planted, examples=SEARCHED)


def test_a_store_without_a_fence_is_found_where_a_worker_is_stopped_in_the_middle_of_a_write() -> None:
    """Anywhere else the worker finds out by itself that it may not write any more."""

    def at_every_gate() -> None:
        for number in range(len(scenario())):
            scenario((number, "pause"), stored=only("run_state", WithoutFence))

    with pytest.raises(AssertionError, match=r"E3: run_.* took a write under epoch"):
        at_every_gate()


def test_a_parent_that_nobody_told_is_found_where_nobody_mends() -> None:
    def at_every_gate() -> None:
        for number in range(len(scenario(turns=HANDING))):
            scenario((number, "kill"), stored=only("run_state", WithoutMending), turns=HANDING)

    with pytest.raises(AssertionError, match=r"E1: run_.* is stuck"):
        at_every_gate()


def test_acknowledging_before_the_claim_is_found_where_nobody_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledging_before_the_claim(monkeypatch)

    with pytest.raises(AssertionError, match="E1"):
        simulate(stored=only("run_state", WithoutSweep))
