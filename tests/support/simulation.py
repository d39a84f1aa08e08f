"""The engine in a small world of its own: two workers as processes that can be killed, paused and told that a port failed.

Everything runs on one event loop whose time is a `ManualClock`, so that the same choices give the same history. Every port
call of a process passes a gate before its effect and one after it; trouble is planned by counting gates. What really
happened is written down below the gates and the mutants, by `Watching`: the oracle believes nobody else.
"""

import asyncio
import inspect
import itertools
import json
import random
import selectors
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypeVar

from adapters.inproc.agent import InprocAgents
from adapters.inproc.memory import Items
from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.queue import InprocQueue
from adapters.inproc.run_state import InprocRunState
from adapters.inproc.runs import RunRow, Runs
from adapters.inproc.store import Store, uuid7_int
from adapters.inproc.tool import InprocTools, PythonTool, validator
from conformance.clock import ManualClock
from conformance.faults import Faults, Kind
from conformance.people import ACME
from observability.metrics import Metrics
from ports.agent import AgentLimits, AgentSpec
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import AgentId, EventId, RunId, WorkerId, minted
from ports.memory import MemoryWrite
from ports.messages import Json
from ports.model import ChatReply, ChatRequest, Message, ToolRequest
from ports.run_intake import RunRequest
from ports.run_state import TERMINAL, Appended, Change, Idempotency, Run, RunStatePort, StepResult, step_key
from ports.tool import ToolResult, ToolSpec
from stack_a.deps import WorkerDeps
from stack_a.runs.start import Intake
from stack_a.worker import Worker

Trouble: TypeAlias = Literal["kill", "pause", "unavailable"]
Turns: TypeAlias = Sequence[Sequence[str]]
"""The tools a run's model asks for, turn by turn; after them it answers."""
Wrap: TypeAlias = Callable[[str, Any], Any]
"""(port name, port) → the port as it shall be: where a test plants a bug."""
T = TypeVar("T")

AGENT: Final = AgentId("agt_simulated")
TOOLS: Final = {
    "look": ("pure", 0), "note": ("idempotent", 1), "slow": ("idempotent", 6), "keep": ("transactional", 1),
    "send": ("unsafe", 3),
}  # fmt: skip
"""Name → effect class, and seconds it takes."""
SCHEMA: Final[dict[str, Json]] = {
    "type": "object", "properties": {"nonce": {"type": "integer"}}, "additionalProperties": False
}  # fmt: skip
CHECK: Final = validator(
    ToolSpec(name="any", description="", input_schema=SCHEMA, effect="pure", timeout=timedelta(minutes=1))
)
UNSAFE: Final = "send"
TRANSACTIONAL: Final = "keep"
HANDED: Final = AgentId("agt_simulated_helper")
"""In a turn: the agent that gets `ITS_TURNS` to do, in a run of its own."""
ITS_TURNS: Final = [["note"]]
AS_IT_IS: Final[Wrap] = lambda _, port: port  # noqa: E731 - the annotation says what it is
SECOND: Final = timedelta(seconds=1)
MOMENT: Final = timedelta(milliseconds=30)
"""Shorter than facts may wait for others to share their commit."""
_SETTLING_TURNS: Final = 15
_STEPS_OF_THE_CLOCK: Final = 20


class _NeverWaiting(selectors.DefaultSelector):
    def select(self, _timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(0)


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers go by a `ManualClock`. Whoever runs it keeps it busy."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        super().__init__(_NeverWaiting())

    def time(self) -> float:
        return self._clock.monotonic()

    def at_rest(self) -> bool:
        """Whether nobody but the task that asks has anything to do before the time goes on."""
        # asyncio's own queues, which its types leave out: it has no question for what we want to know.
        due = self._scheduled and self._scheduled[0].when() <= self.time()  # type: ignore[attr-defined]
        return not due and not self._ready  # type: ignore[attr-defined]


async def settle(turns: int) -> None:
    """So many turns of the loop; fewer where the others would change nothing, which most of them would not."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ClockLoop)
    for _ in range(turns):
        await asyncio.sleep(0)
        if loop.at_rest():
            return


class SettlingClock(ManualClock):
    async def _settle(self) -> None:
        await settle(_STEPS_OF_THE_CLOCK)


class CheckedTools(InprocTools):
    """Whose schema, which all have, was found valid once: to look at it costs more than many a history."""

    def __init__(self, tools: Sequence[PythonTool], clock: ManualClock) -> None:
        self._tools = {tool.spec.name: tool for tool in tools}
        self._validators = dict.fromkeys(self._tools, CHECK)
        self._clock = clock


class Died(BaseException):
    """The process is gone. Not an `Exception`: nothing in it may act on this."""


@dataclass
class Effect:
    """One call that reached a tool."""

    key: str
    tool: str
    nonce: int
    """What the model made up for this call."""
    process: "Process"
    stale: bool
    """Whether another worker had claimed the run by then. No store can keep such a call from beginning."""
    after_result: bool
    """Whether the step's result was recorded already."""
    after_end: bool
    ended: bool = False


@dataclass
class Told:
    """What the store really did."""

    epochs: dict[RunId, int] = field(default_factory=dict)
    holders: dict[RunId, str] = field(default_factory=dict)
    results: Counter[tuple[RunId, int]] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    """How often each key was written."""
    ended: set[RunId] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)


class Watching:
    """The run store, written down: the truth below gates and planted bugs."""

    def __init__(self, inner: RunStatePort, told: Told) -> None:
        self._inner = inner
        self._told = told

    def __getattr__(self, name: str) -> Any:  # whatever is not watched is the store's own
        return getattr(self._inner, name)

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        run = await self._inner.claim(auth, run_id, worker)
        self._told.epochs[run_id] = run.epoch
        self._told.holders[run_id] = worker
        return run

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        appended = await self._inner.append(auth, run_id, epoch, change)
        if epoch != self._told.epochs[run_id]:
            self._told.broken.append(f"E3: {run_id} took a write under epoch {epoch}, claimed under a later one")
        for fact in change.steps:
            if isinstance(fact, StepResult):
                self._told.results[run_id, fact.n] += 1
        self._told.writes.update(write.key for write in change.writes)
        if change.status in {"succeeded", "failed", "cancelled"}:
            self._told.ended.add(run_id)
        return appended

    async def cancel(self, auth: AuthContext, run_id: RunId, **more: Any) -> Run:
        run = await self._inner.cancel(auth, run_id, **more)
        if run.status == "cancelled":
            self._told.ended.add(run_id)
        return run


class Gateway(InprocModel):
    """A model that asks for the tools which the run's input lists, turn by turn, and never says the same thing twice.

    Behind a gateway that keeps what came of a call under its step's key, as Stack B does. Each answer takes a second.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(InprocModelConfig(chat_models=("m",)), self._as_the_input_says)
        self._clock = clock
        self._nonces = itertools.count(1)

    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        await self._clock.sleep(SECOND)
        return await super().chat(auth, request)

    def _as_the_input_says(self, _auth: AuthContext, request: ChatRequest) -> Message:
        turns: list[list[str]] = json.loads(next(one.content for one in request.messages if one.role == "user") or "[]")
        done = sum(one.role == "assistant" for one in request.messages)
        if done == len(turns):
            return Message(role="assistant", content="done")
        return Message(
            role="assistant",
            tool_calls=tuple(
                ToolRequest(
                    id=f"c{done}_{place}",
                    name=name,
                    arguments=json.dumps({"input": ITS_TURNS} if name == HANDED else {"nonce": next(self._nonces)}),
                )
                for place, name in enumerate(turns[done])
            ),
        )


class NumberingStore(Store):
    """Ids that are the same in every repetition."""

    def mint(self, prefix: str, now: datetime) -> str:
        self._last_id = max(uuid7_int(now, 0), self._last_id + 1)
        return minted(prefix, uuid.UUID(int=self._last_id))


class Process:
    """One worker process. Its ports are the world's, behind gates."""

    def __init__(self, world: "World", wrap: Wrap) -> None:
        self.dead = False
        self.gates: list[str] = []
        """Every gate passed, in order: `port.method` and the side of the effect."""
        self._world = world
        self._running = asyncio.Event()
        self._running.set()
        self._planned: dict[int, Trouble] = {}
        ports = {
            "run_state": world.run_state, "queue": world.queue, "agent": world.agents, "model": world.model,
            "tool": CheckedTools([self._tool(name) for name in TOOLS], world.clock),
        }  # fmt: skip
        gated = {name: _Gated(name, wrap(name, port), self) for name, port in ports.items()}
        deps = WorkerDeps(clock=world.clock, metrics=Metrics(), **gated)
        self.worker = Worker(deps, new_id=lambda: WorkerId(f"wrk_{next(world.numbers)}"), concurrency=2)
        self.task = asyncio.get_running_loop().create_task(self.worker.serve())

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def plan(self, gates: int, trouble: Trouble) -> None:
        """`trouble` at the gate that many gates from now."""
        self._planned[len(self.gates) + gates] = trouble

    def kill(self) -> None:
        """SIGKILL: no line of it runs any more that could reach a port."""
        self.dead = True
        self._running.set()
        self.task.cancel()

    def pause(self) -> None:
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def heal(self) -> None:
        self._planned.clear()
        self.resume()

    async def gate(self, label: str) -> None:
        if self.dead:
            raise Died
        trouble = self._planned.pop(len(self.gates), None)
        self.gates.append(label)
        for _ in range(self._world.pace.randrange(3)):
            await asyncio.sleep(0)  # a turn of the loop, in which others are first
        if trouble == "kill":
            self.kill()
        elif trouble == "pause":
            self.pause()
        await self._running.wait()
        if self.dead:
            raise Died
        if trouble == "unavailable":
            raise Unavailable(f"{label}: planned")

    def _tool(self, name: str) -> PythonTool:
        effect, seconds = TOOLS[name]

        async def act(_auth: AuthContext, arguments: dict[str, Json], key: str) -> Json:
            begun = self._world.begin(key, name, arguments["nonce"], self)
            await self._world.clock.sleep(timedelta(seconds=seconds))
            begun.ended = True
            if name == TRANSACTIONAL:
                return ToolResult(output={"done": name}, writes=(MemoryWrite(key=key, value=arguments["nonce"]),))
            return {"done": name}

        spec = ToolSpec(
            name=name, description=name, input_schema=SCHEMA, effect=effect, timeout=timedelta(minutes=1)  # type: ignore[arg-type]  # one of TOOLS
        )  # fmt: skip
        return PythonTool(spec=spec, act=act)


class _Gated:
    """A port of a process: each call passes a gate before its effect and one after it."""

    def __init__(self, name: str, port: object, process: Process) -> None:
        self._name = name
        self._port = port
        self._process = process

    def __getattr__(self, name: str) -> Any:  # stands in for every port
        found = getattr(self._port, name)
        if inspect.isasyncgenfunction(found):
            return self._steps(name, found)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            await self._process.gate(f"{self._name}.{name} before")
            answer = await found(*arguments, **named)
            await self._process.gate(f"{self._name}.{name} after")
            return answer

        return call

    def _steps(self, name: str, found: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def stream(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            await self._process.gate(f"{self._name}.{name} before")
            async for step in found(*arguments, **named):
                yield step
            await self._process.gate(f"{self._name}.{name} after")

        return stream


class World:
    """One storage, its clock, and the processes over it."""

    def __init__(self, *, seed: int = 0, plant: Wrap = AS_IT_IS, stored: Wrap = AS_IT_IS) -> None:
        """`plant` is put around the ports of every worker, `stored` around the store itself."""
        # The worker's jitter is drawn from there.
        random.seed(seed)
        self.clock = SettlingClock()
        self.pace = random.Random(seed)  # noqa: S311 - the order of things, not a secret
        self.told = Told()
        self.effects: list[Effect] = []
        self.processes: list[Process] = []
        self.accepted: dict[str, RunId] = {}
        self.numbers = itertools.count(1)
        self.seen: defaultdict[RunId, list[EventId]] = defaultdict(list)
        self._plant = plant
        self._store = NumberingStore("simulated")
        self.rows = self._store.table(Runs).rows
        self.items = self._store.table(Items).rows
        self.run_state = Watching(stored("run_state", InprocRunState(self._store, self.clock)), self.told)
        self.queue = InprocQueue(self._store, self.clock)
        self.agents = InprocAgents(self._store, self.clock)
        self.model = stored("model", Gateway(self.clock))
        self._runner = asyncio.Runner(loop_factory=lambda: ClockLoop(self.clock))
        limits = AgentLimits(max_steps=20, max_parallel_tools=2, deadline_s=3_600)
        for agent_id, agents in ((AGENT, (HANDED,)), (HANDED, ())):
            spec = AgentSpec(id=agent_id, model="m", tools=tuple(TOOLS), limits=limits, agents=agents)
            self.run(self.agents.publish(ACME, spec))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        # Not by `Runner.run`, which looks after SIGINT at each call.
        return self._runner.get_loop().run_until_complete(work)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.run(self._turns())
        self._runner.close()

    # --- what may happen ---------------------------------------------------------------------------------------------

    def start(self, count: int = 1, *, trouble: tuple[int, Trouble] | None = None) -> None:
        """New worker processes, with trouble planned for their first steps: after so many gates, and which."""

        async def started() -> None:
            for _ in range(count):
                process = Process(self, self._plant)
                if trouble is not None:
                    process.plan(*trouble)
                self.processes.append(process)
            await self._turns()

        self.run(started())

    def kill(self, process: Process) -> None:
        async def killed() -> None:
            process.kill()
            await self._turns()

        self.run(killed())

    def create(
        self, turns: Turns, *, key: str, deadline: timedelta | None = None, faults: dict[str, Kind] | None = None
    ) -> RunId:
        """As a client does: with one key until it is accepted. The first attempt meets `faults`, by method."""
        request = RunRequest(
            agent_id=AGENT,
            input=json.dumps([list(turn) for turn in turns]),
            idempotency=Idempotency(route="runs", key=key, fingerprint=json.dumps([list(turn) for turn in turns])),
            deadline=deadline,
        )
        going_wrong = Faults()
        for method, kind in (faults or {}).items():
            going_wrong.inject(method, kind)

        async def accepted() -> RunId:
            intake = Intake(
                run_state=going_wrong.around(self.run_state),
                agent=self.agents,
                queue=going_wrong.around(self.queue),
                metrics=Metrics(),
            )
            while True:
                try:
                    return (await intake.accept(ACME, request)).run.id
                except Unavailable:
                    continue

        run_id = self.run(accepted())
        if self.accepted.setdefault(key, run_id) != run_id:
            self.told.broken.append(f"E5: the key {key!r} made {self.accepted[key]} and {run_id}")
        return run_id

    def cancel(self, run_id: RunId) -> None:
        # Nobody tells the runs below it: that is left to the workers.
        self.run(self.run_state.cancel(ACME, run_id, reason="simulated"))

    def pass_time(self, seconds: int) -> None:
        """Second by second, so that the living keep renewing; with some turns of the loop in each."""

        async def passed() -> None:
            for _ in range(seconds):
                for part in (MOMENT, SECOND - MOMENT):
                    await self._turns()
                    await self.clock.advance(part)

        self.run(passed() if seconds else self._turns())

    def heal(self) -> None:
        """No more trouble, and two workers that live."""
        for process in self.living():
            process.heal()
        self.start(max(0, 2 - len(self.living())))

    # --- what is the case --------------------------------------------------------------------------------------------

    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.dead]

    def healthy_holder(self, run_id: RunId) -> bool:
        """Whether a living worker, to which nothing is going to happen, holds the run."""
        holder = self.told.holders.get(run_id)
        return any(one.worker.id == holder and not one.paused and not one._planned for one in self.living())

    def status(self, run_id: RunId) -> str:
        return self._row(run_id).run.status

    def settled(self) -> bool:
        return all(
            row.run.status in {"succeeded", "failed", "cancelled", "needs_operator"} for row in self.rows.values()
        )

    def crashed(self) -> list[str]:
        """Processes that ended by themselves."""
        return [
            repr(one.task.exception() if not one.task.cancelled() else "cancelled")
            for one in self.living()
            if one.task.done()
        ]

    def _row(self, run_id: RunId) -> RunRow:
        return self.rows[ACME.tenant, ACME.namespace, run_id]

    def check(self) -> None:
        """What must hold at any moment."""
        assert not self.told.broken, self.told.broken[0]
        assert not self.crashed(), f"E1: a worker ended by itself: {self.crashed()[0]}"
        for (run_id, n), times in self.told.results.items():
            assert times == 1, f"E2: the result of {run_id}:{n} was recorded {times} times"
        for (_, _, run_id), row in self.rows.items():
            ids, types = [event.event_id for event in row.events], [event.type for event in row.events]
            assert [event.sequence for event in row.events] == list(range(1, len(ids) + 1)), f"E4: gaps in {run_id}"
            assert ids[: len(self.seen[run_id])] == self.seen[run_id], f"E4: {run_id} rewrote its events"
            ends = [kind for kind in types if kind in {"run.completed", "run.failed", "run.cancelled"}]
            assert len(ends) <= 1, f"E1: {run_id} ended {len(ends)} times"
            assert ends == [] or types[-1] == ends[0], f"E4: {run_id} went on after its end"
            self.seen[run_id] = ids
        self._check_effects()
        self._check_kept()

    def check_end(self) -> None:
        """What must hold once everything has healed."""
        self.check()
        asked_for = [row for row in self.rows.values() if row.run.parent is None]
        assert len(self.accepted) == len(asked_for), "E5: a run that nobody was promised"
        self._check_families()
        for (_, _, run_id), row in self.rows.items():
            unknown = [n for n, step in row.steps.items() if step.status == "unknown" and step.effect == "unsafe"]
            assert row.run.status in {"succeeded", "failed", "cancelled", "needs_operator"}, f"E1: {run_id} is stuck"
            assert (row.run.status == "needs_operator") <= bool(unknown), f"E1: {run_id} waits for nothing"
            assert not (row.run.status == "succeeded" and unknown), f"E9: {run_id} went on over an unknown effect"
            begun = [n for n, step in row.steps.items() if step.status == "started"]
            parked = row.run.status == "needs_operator"
            assert not begun or parked, f"E1: {run_id} ended with steps {begun} begun"
        for effect in self.effects:
            found, _, n = effect.key.rpartition(":")
            if effect.tool == UNSAFE and not effect.ended and not effect.stale:
                status = self._row(RunId(found)).steps[int(n)].status
                assert status == "unknown", f"E9: {effect.key} was interrupted and is {status}"

    def _check_families(self) -> None:
        made: defaultdict[tuple[RunId, int], list[Run]] = defaultdict(list)
        for row in self.rows.values():
            if (parent := row.run.parent) is not None:
                made[parent.run_id, parent.step].append(row.run)
        for (run_id, n), children in made.items():
            assert len(children) == 1, f"E2: step {n} of {run_id} made {len(children)} runs"
            row, [child] = self._row(run_id), children
            assert row.steps[n].kind == "agent", f"E2: step {n} of {run_id} made a run"
            if row.steps[n].status == "completed":
                assert child.status == "succeeded", (
                    f"E2: step {n} of {run_id} was completed by a run that {child.status}"
                )
            assert row.run.status != "cancelled" or child.status in TERMINAL, (
                f"E8: {run_id} has ended, its child goes on"
            )

    def _check_effects(self) -> None:
        unsafe = Counter(effect.key for effect in self.effects if effect.tool == UNSAFE)
        assert all(times == 1 for times in unsafe.values()), f"E9: unsafe calls repeated: {unsafe}"
        meant: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        for effect in self.effects:
            meant[effect.key].add((effect.tool, effect.nonce))
            if not effect.stale:
                assert not effect.after_result, f"E2: {effect.key} was repeated although its result was recorded"
                assert not effect.after_end, f"E8: {effect.key} began after the run's end"
        for key, effects in meant.items():
            assert len(effects) == 1, f"E2: {key} is the key of {len(effects)} effects: {effects}"

    def _check_kept(self) -> None:
        """The effect of a transactional step is there as soon as its result is, and not before."""
        kept = {
            step_key(run_id, n): step.input["arguments"]["nonce"]
            for (_, _, run_id), row in self.rows.items()
            for n, step in row.steps.items()
            if step.name == TRANSACTIONAL and step.status == "completed"
        }
        there = {key: item.value for (_, _, key), item in self.items.items()}
        assert there == kept, f"E2: results and effects of transactional steps differ: {there} and {kept}"
        assert all(times == 1 for times in self.told.writes.values()), f"E2: effects repeated: {self.told.writes}"

    def begin(self, key: str, tool: str, nonce: int, process: Process) -> Effect:
        found, _, n = key.rpartition(":")
        run = RunId(found)
        if (ACME.tenant, ACME.namespace, run) not in self.rows or not n.isdecimal():
            self.told.broken.append(f"E2: {key!r} is not the key of a step")
            n = "0"
        elif tool == UNSAFE and ((step := self._row(run).steps.get(int(n))) is None or step.name != tool):
            self.told.broken.append(f"E9: {tool} acts as {key} before that intent is recorded")
        effect = Effect(
            key=key,
            tool=tool,
            nonce=nonce,
            process=process,
            stale=self.told.holders.get(run) != process.worker.id,
            after_result=self.told.results[run, int(n)] > 0,
            after_end=run in self.told.ended,
        )
        self.effects.append(effect)
        return effect

    async def _turns(self) -> None:
        await settle(_SETTLING_TURNS)
