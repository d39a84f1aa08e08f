"""The kit over the built-in tools, with the in-process memory and a server that never answers."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest
from msgspec import Struct

from adapters.builtin_tools.port import SPEC, BuiltinToolsConfig
from adapters.inproc import memory, store
from adapters.inproc.store import InprocConfig
from conformance.clock import ManualClock
from conformance.harness import ToolSamples
from conformance.people import ACME
from conformance.tool import ToolContract
from ports.adapter import Given
from ports.memory import MAX_MATCHES, MemoryPort
from ports.tool import ToolCall, ToolPort
from tests.support.egress import guarded
from tests.support.http_origin import Origin, serving
from tests.support.ports import free_port


class BuiltinToolsHarness:
    def __init__(
        self,
        closing: AsyncExitStack,
        origin: Origin,
        remembered: MemoryPort,
        *,
        committed: frozenset[str] = frozenset(),
    ) -> None:
        self._closing = closing
        self._origin = origin
        self._memory = remembered
        self._nobody = free_port()
        self._config = BuiltinToolsConfig()
        self._clock = ManualClock()
        self._committed = committed

    @property
    def declared(self) -> Struct:
        return SPEC.capabilities(self._config)

    @property
    def samples(self) -> ToolSamples:
        put = ToolCall(name="memory_put", arguments={"text": "tea with milk"}, key="run_1:1")
        return ToolSamples(
            good=ToolCall(name="calculator", arguments={"expression": "17.5 % of 2340"}, key="run_1:2"),
            bad_arguments=ToolCall(name="memory_put", arguments={"text": 7}, key="run_1:3"),
            slow=ToolCall(name="http_get", arguments={"url": f"http://127.0.0.1:{self._origin.port}/"}, key="run_1:4"),
            repeatable=None if self._committed else put,
            transactional=put if self._committed else None,
            write=None if self._committed else put,
            read=ToolCall(name="memory_search", arguments={"query": "tea"}, key="run_1:5"),
            unreachable=ToolCall(
                name="http_get", arguments={"url": f"http://127.0.0.1:{self._nobody}/"}, key="run_1:6"
            ),
        )

    async def open(self) -> ToolPort:
        private = {("127.0.0.1", port) for port in (self._origin.port, self._nobody)}
        egress = await self._closing.enter_async_context(guarded(private=private))
        ports = {"memory": self._memory, "egress": egress}
        given = Given(clock=self._clock, ports=ports, committed_with_runs=self._committed)
        return await self._closing.enter_async_context(SPEC.open(self._config, given))

    async def advance(self, delta: timedelta) -> None:
        await self._clock.advance(delta)

    async def effects(self) -> int:
        return len(await self._memory.search(ACME, "tea", limit=MAX_MATCHES))

    async def running(self) -> int:
        """Connections that are still open once the other side has had the time to notice."""
        with anyio.move_on_after(0.5):
            while self._origin.open_connections:
                await anyio.lowlevel.checkpoint()
        return self._origin.open_connections


class TestBuiltinTools(ToolContract):
    committed: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture
    async def harness(self) -> AsyncIterator[BuiltinToolsHarness]:
        storage = InprocConfig(name=uuid.uuid4().hex)
        async with (
            serving({}) as origin,
            memory.SPEC.open(storage, Given(clock=ManualClock())) as remembered,
            AsyncExitStack() as closing,
        ):
            yield BuiltinToolsHarness(closing, origin, remembered, committed=self.committed)
        store.drop(storage.name)


class TestBuiltinToolsBesideTheirRunStore(TestBuiltinTools):
    """Where the run store commits what memory is told."""

    committed = frozenset({"memory"})
