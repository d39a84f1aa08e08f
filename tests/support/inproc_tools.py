"""Sample tools for the in-process Tool port, and a harness that counts what they did."""

import asyncio
from datetime import timedelta

from msgspec import Struct

from adapters.inproc.tool import SPEC, Act, InprocToolConfig, InprocTools, PythonTool
from conformance.clock import ManualClock
from conformance.harness import ToolSamples
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.memory import MemoryWrite
from ports.messages import Json
from ports.run_state import EffectClass
from ports.tool import NOT_SENT, OUTCOME_UNKNOWN, ToolCall, ToolPort, ToolResult, ToolSpec


def tool(name: str, act: Act, *, properties: dict[str, Json] | None = None, effect: EffectClass = "pure") -> PythonTool:
    """Takes exactly the members of `properties`, all required."""
    members = properties or {}
    schema: dict[str, Json] = {
        "type": "object",
        "properties": members,
        "required": sorted(members),
        "additionalProperties": False,
    }
    return PythonTool(
        spec=ToolSpec(
            name=name,
            description=f"{name} for tests",
            input_schema=schema,
            effect=effect,
            timeout=timedelta(hours=2),
            max_output_bytes=1_000,
        ),
        act=act,
    )


async def _add(_auth: AuthContext, arguments: dict[str, Json], _key: str) -> Json:
    return arguments["a"] + arguments["b"]


async def _flood(_auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
    return "x" * 1_001


async def _plan(_auth: AuthContext, arguments: dict[str, Json], key: str) -> Json:
    return ToolResult(output={"kept": True}, writes=(MemoryWrite(key=key, value=arguments["text"]),))


async def _call_out(_auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
    raise Unavailable("there is no connection", details=NOT_SENT)


ADD = tool("add", _add, properties={"a": {"type": "integer"}, "b": {"type": "integer"}})
CALL_OUT = tool("call_out", _call_out, effect="unsafe")
FLOOD = tool("flood", _flood)
PLAN = tool("plan", _plan, properties={"text": {"type": "string"}}, effect="transactional")


class InprocToolHarness:
    """Satisfies `ToolHarness`."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._notes: dict[tuple[str, str, str], str] = {}
        self._at_work = 0

    @property
    def declared(self) -> Struct:
        return SPEC.capabilities(InprocToolConfig())

    @property
    def samples(self) -> ToolSamples:
        return ToolSamples(
            good=ToolCall(name="add", arguments={"a": 1, "b": 2}, key="run_1:1"),
            bad_arguments=ToolCall(name="note", arguments={"text": 7}, key="run_1:2"),
            slow=ToolCall(name="wait", arguments={}, key="run_1:3"),
            oversized=ToolCall(name="flood", arguments={}, key="run_1:4"),
            repeatable=ToolCall(name="note", arguments={"text": "once"}, key="run_1:5"),
            write=ToolCall(name="note", arguments={"text": "kept"}, key="run_1:6"),
            read=ToolCall(name="notes", arguments={}, key="run_1:7"),
            transactional=ToolCall(name="plan", arguments={"text": "later"}, key="run_1:8"),
            unreachable=ToolCall(name="call_out", arguments={}, key="run_1:9"),
            lost=ToolCall(name="lose", arguments={}, key="run_1:10"),
        )

    async def open(self) -> ToolPort:
        return InprocTools(self.tools(), self.clock)

    def tools(self) -> tuple[PythonTool, ...]:
        return (
            ADD,
            CALL_OUT,
            FLOOD,
            PLAN,
            tool("lose", self._lose, effect="unsafe"),
            tool("note", self._note, properties={"text": {"type": "string"}}, effect="idempotent"),
            tool("notes", self._list),
            tool("wait", self._wait),
        )

    async def advance(self, delta: timedelta) -> None:
        await self.clock.advance(delta)

    async def effects(self) -> int:
        return len(self._notes)

    async def running(self) -> int:
        return self._at_work

    async def _note(self, auth: AuthContext, arguments: dict[str, Json], key: str) -> Json:
        self._notes[auth.tenant, auth.namespace, key] = arguments["text"]
        return {"kept": True}

    async def _lose(self, auth: AuthContext, _arguments: dict[str, Json], key: str) -> Json:
        await self._note(auth, {"text": "said"}, key)
        raise Unavailable("the connection broke", code="tool_failed", details=OUTCOME_UNKNOWN)

    async def _list(self, auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        return [text for key, text in self._notes.items() if key[:2] == (auth.tenant, auth.namespace)]

    async def _wait(self, _auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        self._at_work += 1
        try:
            await asyncio.Event().wait()
        finally:
            self._at_work -= 1
