"""What the worker's tests give it to do, and how they wait for it."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from adapters.inproc.model import InprocModel, InprocModelConfig, Rule
from adapters.inproc.tool import InprocTools, PythonTool
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.context import AuthContext
from ports.ids import RunId
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.run_state import TERMINAL, EffectClass, Run, RunStatus
from ports.tool import ToolPort, ToolSpec
from stack_a import worker as worker_module
from stack_a.lease import LEASE
from stack_a.runs import execute as execute_module
from tests.support.stack_a import StackA, events_of


class Toolbox:
    """The agent's three tools: `add` answers, `slow` waits until it is let go, `send` is like `slow` but unsafe."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.begun = anyio.Event()
        self.let_go = anyio.Event()
        self.cancelled = 0
        self.together = 0
        self.most_together = 0
        self.vanishes = False
        """Whether `slow` raises a cancellation of its own making."""
        self.description = "adds"
        """Of `add`."""

    def port(self, clock: ManualClock) -> ToolPort:
        add = self._tool("add", self._add)
        described = dataclasses.replace(add, spec=replace(add.spec, description=self.description))
        return InprocTools([described, self._tool("slow", self._wait), self._tool("send", self._wait, "unsafe")], clock)

    @staticmethod
    def _tool(
        name: str, act: Callable[[AuthContext, dict[str, Json], str], Awaitable[Json]], effect: EffectClass = "pure"
    ) -> PythonTool:
        schema: dict[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
        spec = ToolSpec(name=name, description=name, input_schema=schema, effect=effect, timeout=timedelta(hours=1))
        return PythonTool(spec=spec, act=act)

    async def _add(self, _auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        self.keys.append(key)
        return {"sum": 2}

    async def _wait(self, _auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        self.keys.append(key)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        self.begun.set()
        try:
            await self.let_go.wait()
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.together -= 1
        if self.vanishes:
            raise asyncio.CancelledError
        return {"done": True}


def slow_then_done(_auth: AuthContext, request: ChatRequest) -> Message:
    return Message(role="assistant", content="done") if request.messages[-1].role == "tool" else calls("slow")


def calls(*names: str) -> Message:
    requests = tuple(ToolRequest(id=f"call_{i}", name=name, arguments="{}") for i, name in enumerate(names))
    return Message(role="assistant", tool_calls=requests)


def model(rule: Rule) -> InprocModel:
    return InprocModel(InprocModelConfig(chat_models=("m",)), rule)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def takeover(clock: ManualClock) -> None:
    """Let a dead worker's lease lapse and another one sweep, second by second, so that the living keep renewing."""
    for _ in range(round((LEASE + worker_module.SWEEP_EVERY * 2).total_seconds())):
        await clock.advance(timedelta(seconds=1))


async def until_status(node: StackA, run_id: str, status: RunStatus) -> Run:
    with anyio.fail_after(5):
        while (run := await node.run_state.load(ACME, run_id)).status != status:  # type: ignore[arg-type]  # a str of the API
            await anyio.lowlevel.checkpoint()
    return run


async def until_told(node: StackA, clock: ManualClock, run_id: str, kind: str) -> None:
    """Until the log has an event of this kind, while the time passes that facts may wait for company."""
    with anyio.fail_after(5):
        while kind not in {event.type for event in await node.api.event.read(ACME, RunId(run_id))}:
            await clock.advance(execute_module.TELL_WITHIN)


async def ended_in_time(node: StackA, clock: ManualClock, run_id: str) -> Run:
    """The run once it has ended, with time passing until then."""
    with anyio.fail_after(10):
        while (run := await node.run_state.load(ACME, run_id)).status not in TERMINAL:  # type: ignore[arg-type]  # a str of the API
            await clock.advance(worker_module.ROOM_AFTER)
    return run


async def log_of(node: StackA, run_id: str) -> list[dict[str, Any]]:
    return events_of((await node.get(f"/v1/runs/{run_id}/events")).text)
