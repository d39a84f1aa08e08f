"""The kit over commands as tools, alone and joined with another adapter's."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import Struct

from adapters import joined_tools
from adapters.joined_tools import JoinedToolsConfig, Part
from adapters.process_tools import port
from adapters.process_tools.port import ProcessToolsConfig
from conformance.clock import ManualClock
from conformance.harness import ToolSamples
from conformance.tool import ToolContract
from ports.adapter import AdapterSpec, Given
from ports.tool import ToolCall, ToolPort
from tests.support.command_tools import alive, declared, lines, takes, written


class CommandsHarness:
    """Satisfies `ToolHarness`."""

    def __init__(self, home: Path) -> None:
        self._closing = AsyncExitStack()
        self._store = home / "store"
        self._store.mkdir()
        store = self._store
        note = declared("note", "note", store, input_schema=takes(text="string"), effect="idempotent")
        note["reconcile"] = declared("", "noted", store)["command"]
        file = written(
            home / "tools.json",
            declared("add", "add", store, input_schema=takes(a="integer", b="integer")),
            declared("flood", "flood", store, max_output_bytes=1_000),
            declared("lose", "lose", store, effect="unsafe"),
            note,
            declared("notes", "notes", store),
            declared("wait", "wait", store, timeout_s=7_200),
        )
        self.spec: AdapterSpec[Any, ToolPort] = port.SPEC
        self.config: Struct = ProcessToolsConfig(file=str(file), grace_s=0.2)

    @property
    def declared(self) -> Struct:
        return self.spec.capabilities(self.config)

    @property
    def samples(self) -> ToolSamples:
        note = ToolCall(name="note", arguments={"text": "tea"}, key="run_1:1")
        return ToolSamples(
            good=ToolCall(name="add", arguments={"a": 1, "b": 2}, key="run_1:2"),
            bad_arguments=ToolCall(name="note", arguments={"text": 7}, key="run_1:3"),
            slow=ToolCall(name="wait", arguments={}, key="run_1:4"),
            oversized=ToolCall(name="flood", arguments={}, key="run_1:5"),
            repeatable=note,
            write=note,
            read=ToolCall(name="notes", arguments={}, key="run_1:6"),
            reconcilable=note,
            lost=ToolCall(name="lose", arguments={}, key="run_1:7"),
        )

    async def open(self) -> ToolPort:
        given = Given(clock=ManualClock(), ports=dict.fromkeys(self.spec.needs))
        return await self._closing.enter_async_context(self.spec.open(self.config, given))

    async def close(self) -> None:
        await self._closing.aclose()

    async def advance(self, delta: timedelta) -> None:
        await anyio.sleep(delta.total_seconds())

    async def effects(self) -> int:
        return len(lines(self._store, "effects"))

    async def running(self) -> int:
        return len(alive(self._store))


class TestProcessTools(ToolContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[CommandsHarness]:
        made = CommandsHarness(tmp_path)
        yield made
        await made.close()


class TestJoinedTools(ToolContract):
    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[CommandsHarness]:
        made = CommandsHarness(tmp_path)
        commands = Part(adapter="commands", config={"file": str(tmp_path / "tools.json"), "grace_s": 0.2})
        other = Part(adapter="inproc", config={"tools": ["tests.support.unsafe_tools:CALCULATOR"]})
        made.spec, made.config = joined_tools.SPEC, JoinedToolsConfig(parts=(other, commands))
        yield made
        await made.close()
