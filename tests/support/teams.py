"""Agents that hand work to each other: each knows its part by its instructions, and says its lines in order.

And what a test asks about the runs that they make.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias

import anyio
import anyio.lowlevel

from adapters.inproc.model import Rule
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.agent import AgentLimits, AgentSpec
from ports.context import AuthContext
from ports.ids import AgentId, RunId
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.run_state import Run, RunFilter, RunStatus
from stack_a.runs.journal import read_steps
from tests.support.stack_a import AGENT, StackA
from tests.support.worker import Toolbox, ended_in_time, model, until

Line: TypeAlias = Message | str | Callable[[ChatRequest], Message | str]

BOSS: Final = AGENT.id
HAND: Final = AgentId("agt_hand")
HELP: Final = AgentId("agt_help")


def member(agent_id: AgentId, *agents: AgentId, limits: AgentLimits | None = None) -> AgentSpec:
    """An agent with the tools of the toolbox, who may hand work to `agents`."""
    return AgentSpec(
        id=agent_id,
        description=f"Does what {agent_id} does.",
        instructions=agent_id,
        model="m",
        tools=AGENT.tools,
        agents=agents,
        limits=limits or AgentLimits(),
    )


def handing(*inputs: Json, to: AgentId = HAND) -> Message:
    """A turn that hands each of `inputs` on."""
    return turn(*((to, {"input": one}) for one in inputs))


def turn(*wanted: tuple[str, Json]) -> Message:
    requests = tuple(
        ToolRequest(id=f"call_{i}", name=name, arguments=json.dumps(arguments))
        for i, (name, arguments) in enumerate(wanted)
    )
    return Message(role="assistant", tool_calls=requests)


def playing(parts: Mapping[AgentId, Sequence[Line]]) -> Rule:
    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        said = sum(message.role == "assistant" for message in request.messages)
        line = parts[AgentId(request.messages[0].content or "")][said]
        if callable(line):
            line = line(request)
        return Message(role="assistant", content=line) if isinstance(line, str) else line

    return rule


def heard(request: ChatRequest) -> str:
    """Says what was answered last."""
    return request.messages[-1].content or ""


def errors_heard(request: ChatRequest) -> str:
    """Says the codes of the errors that were answered in the last turn."""
    answers = [json.loads(message.content or "null") for message in request.messages if message.role == "tool"]
    return " ".join(answer["error"]["code"] for answer in answers if "error" in answer)


async def team(node: StackA, *agents: AgentSpec) -> None:
    for agent in agents:
        await node.api.agent.publish(ACME, agent)


def parts(*boss: Line, hand: tuple[Line, ...] = ("done",), help_: tuple[Line, ...] = ("helped",)) -> Any:
    return model(playing({BOSS: boss, HAND: hand, HELP: help_}))


async def family(node: StackA, run_id: str) -> list[Run]:
    """The runs that a run made, oldest first."""
    page = await node.run_state.list_runs(ACME, RunFilter(parent=RunId(run_id)), limit=200)
    return list(reversed(page.items))


async def until_is(node: StackA, clock: ManualClock, run_id: str, status: RunStatus) -> Run:
    """The run once it is in `status`, with time passing until then."""
    with anyio.fail_after(10):
        while (run := await node.run_state.load(ACME, RunId(run_id))).status != status:
            await clock.advance(timedelta(milliseconds=50))
    return run


async def until_made(node: StackA, run_id: str, count: int = 1) -> list[Run]:
    with anyio.fail_after(5):
        while len(made := await family(node, run_id)) < count:
            await anyio.lowlevel.checkpoint()
    return made


async def steps_of(node: StackA, run_id: str) -> list[tuple[str, str]]:
    return [(step.kind, step.status) for step in await read_steps(node.run_state, ACME, RunId(run_id))]


async def deep(node: StackA, clock: ManualClock, tools: Toolbox, run_id: str | None = None) -> tuple[str, Run, Run]:
    """A run, its child and its grandchild, which is in a tool."""
    run_id = run_id or await node.created()
    await until(tools.begun.is_set)
    await until_is(node, clock, run_id, "waiting")
    [child] = await family(node, run_id)
    [grandchild] = await family(node, child.id)
    return run_id, child, grandchild


def three_deep() -> Any:
    return parts(handing("x"), "thanks", hand=(handing("y", to=HELP), "done"), help_=(turn(("slow", {})), "helped"))


async def statuses(node: StackA, clock: ManualClock, *runs: str) -> list[RunStatus]:
    """How they ended, with time passing until then."""
    return [(await ended_in_time(node, clock, run_id)).status for run_id in runs]
