"""A transactional tool: its effect and the result of its step are one commit, whatever happens in between."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.builtin_tools.port import SPEC, BuiltinToolsConfig
from adapters.inproc.model import InprocModel, InprocModelConfig, Rule
from adapters.inproc.tool import InprocTools
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.adapter import Given
from ports.context import AuthContext
from ports.errors import AgentOSError, Unavailable, Unsupported
from ports.ids import RunId
from ports.memory import Match, MemoryPort, MemoryWrite
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.run_state import Appended, Change, Run
from ports.tool import ToolPort, ToolResult
from stack_a.worker import SWEEP_EVERY
from tests.support.inproc_tools import tool
from tests.support.stack_a import AGENT, StackA, stack_a

pytestmark = pytest.mark.anyio


class Refusing:
    """A run store that refuses what has writes, for as long as there are errors to refuse it with."""

    def __init__(self, *errors: AgentOSError) -> None:
        self.errors = list(errors)
        self.memory: MemoryPort | None = None
        self.found_at_refusal: list[tuple[Match, ...]] = []
        self._port: Any = None

    def around(self, name: str, port: Any) -> Any:  # any port of the node
        if name != "run_state":
            return port
        self._port = port
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        if change.writes and self.errors:
            if self.memory is not None:
                self.found_at_refusal.append(await self.memory.search(auth, "tea"))
            raise self.errors.pop(0)
        appended: Appended = await self._port.append(auth, run_id, epoch, change)
        return appended


@asynccontextmanager
async def memory_tools(node: StackA) -> AsyncIterator[ToolPort]:
    """The built-in tools, over the memory that the node's run store writes to; the agent has them."""
    await node.api.agent.publish(ACME, replace(AGENT, tools=("memory_put", "memory_search")))
    given = Given(
        clock=node.clock, ports={"memory": node.memory, "egress": None}, committed_with_runs=frozenset({"memory"})
    )
    async with SPEC.open(BuiltinToolsConfig(), given) as tools:
        yield tools


def model(rule: Rule) -> InprocModel:
    return InprocModel(InprocModelConfig(chat_models=("m",)), rule)


def calling(name: str, arguments: str) -> Message:
    return Message(role="assistant", tool_calls=(ToolRequest(id="c", name=name, arguments=arguments),))


def remembers_then_recalls(_auth: AuthContext, request: ChatRequest) -> Message:
    match sum(message.role == "tool" for message in request.messages):
        case 0:
            return calling("memory_put", '{"text": "tea with milk"}')
        case 1:
            return calling("memory_search", '{"query": "tea"}')
    return Message(role="assistant", content=request.messages[-1].content)


def remembers(_auth: AuthContext, request: ChatRequest) -> Message:
    if request.messages[-1].role == "tool":
        return Message(role="assistant", content="done")
    return calling("memory_put", '{"text": "tea with milk"}')


async def ended(node: StackA, clock: ManualClock, run_id: str) -> Run:
    """The run once it has ended, with time passing until then."""
    for _ in range(20):
        run = await node.run_state.load(ACME, RunId(run_id))
        if run.finished_at is not None:
            return run
        await clock.advance(SWEEP_EVERY)
    raise AssertionError(f"{run_id} does not end")


async def test_what_a_step_remembers_is_found_by_the_next_one() -> None:
    async with stack_a(clock=ManualClock()) as node, memory_tools(node) as tools:
        async with node.worker(model(remembers_then_recalls), tools):
            run = await node.ended(await node.created())
        steps = await node.run_state.steps(ACME, run.id)

    assert run.status == "succeeded"
    assert "tea with milk" in run.output["text"]
    assert [(step.n, step.effect) for step in steps if step.kind == "tool"] == [(2, "transactional"), (4, "pure")]


async def test_a_commit_that_fails_leaves_neither_result_nor_effect_and_the_step_is_done_again() -> None:
    clock, store = ManualClock(), Refusing(Unavailable("away"))
    async with stack_a(clock=clock, wrap=store.around) as node, memory_tools(node) as tools:
        store.memory = node.memory
        async with node.worker(model(remembers), tools):
            run = await ended(node, clock, await node.created())
        found = await node.memory.search(ACME, "tea")
        steps = await node.run_state.steps(ACME, run.id)

    assert (run.status, run.epoch) == ("succeeded", 2)
    assert (store.found_at_refusal, len(found)) == ([()], 1)
    assert [(step.n, step.status, step.epoch) for step in steps if step.kind == "tool"] == [(2, "completed", 2)]


async def test_a_store_that_makes_no_writes_fails_the_run_instead_of_losing_them() -> None:
    clock, store = ManualClock(), Refusing(Unsupported("this store makes no writes"))
    async with stack_a(clock=clock, wrap=store.around) as node, memory_tools(node) as tools:
        async with node.worker(model(remembers), tools):
            run = await node.ended(await node.created())
        found = await node.memory.search(ACME, "tea")

    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.code, found) == ("internal", ())


async def test_arguments_that_memory_would_not_take_are_told_to_the_model() -> None:
    said: list[str | None] = []

    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        said.append(request.messages[-1].content)
        if request.messages[-1].role == "tool":
            return Message(role="assistant", content="sorry")
        return calling("memory_put", '{"text": "tea", "key": "a\\u0000b"}')

    async with stack_a(clock=ManualClock()) as node, memory_tools(node) as tools, node.worker(model(rule), tools):
        run = await node.ended(await node.created())

    assert run.status == "succeeded"
    assert "tool_bad_arguments" in (said[-1] or "")


async def test_a_tool_that_is_not_transactional_may_have_no_writes() -> None:
    async def act(_auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        return ToolResult(output={}, writes=(MemoryWrite(key=key, value="smuggled"),))

    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        last = request.messages[-1]
        return Message(role="assistant", content=last.content) if last.role == "tool" else calling("add", "{}")

    clock = ManualClock()
    async with stack_a(clock=clock) as node:
        async with node.worker(model(rule), InprocTools([tool("add", act, effect="idempotent")], clock)):
            run = await node.ended(await node.created())
        found = await node.memory.search(ACME, "smuggled")

    assert "tool_bad_output" in run.output["text"]
    assert found == ()
