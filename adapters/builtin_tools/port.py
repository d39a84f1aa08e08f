"""The built-in tools as one Tool port: arguments, time and size are checked here, once for all of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Struct

from adapters.builtin_tools.arguments import ArgumentCheck
from adapters.builtin_tools.calculator import calculator
from adapters.builtin_tools.clock import clock_tool
from adapters.builtin_tools.http_get import http_get
from adapters.builtin_tools.memory import memory_put, memory_search
from adapters.builtin_tools.text_stats import text_stats
from adapters.builtin_tools.tool import Tool
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import Internal, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unsupported
from ports.tool import ToolCall, ToolCapabilities, ToolPort, ToolResult, ToolSpec


class BuiltinToolsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: tuple[str, ...] | None = None
    """Names of the tools to offer; None offers all."""


class BuiltinTools:
    """ToolPort over a fixed set of tools; the same for every tenant."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.spec.name: tool for tool in sorted(tools, key=lambda tool: tool.spec.name)}
        self._checks = {name: ArgumentCheck(tool.spec.input_schema) for name, tool in self._tools.items()}

    @property
    def capabilities(self) -> ToolCapabilities:
        return ToolCapabilities()

    async def list_tools(self, _auth: AuthContext) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self._tools.values())

    async def describe(self, _auth: AuthContext, name: str) -> ToolSpec:
        return self._tool(name).spec

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        tool = self._tool(call.name)
        arguments = self._checks[call.name](call.arguments)
        limit = min(timeout, tool.spec.timeout)
        bound = asyncio.timeout(limit.total_seconds())
        try:
            async with bound:
                answer = await tool.act(auth, arguments, call)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise Unavailable(
                f"{call.name} took longer than {limit.total_seconds():g} s", code="tool_timeout"
            ) from error
        result = answer if isinstance(answer, ToolResult) else ToolResult(output=answer)
        size = _size(call.name, result.output)
        if size > tool.spec.max_output_bytes:
            raise ResourceExhausted(
                f"{call.name} answered {size} bytes; at most {tool.spec.max_output_bytes} are taken",
                code="tool_response_too_large",
            )
        return result

    async def reconcile(self, _auth: AuthContext, name: str, key: str) -> ToolResult | None:  # noqa: ARG002  # the port's signature
        raise Unsupported(f"{self._tool(name).spec.name} keeps no record of its calls; repeat the call instead")

    def _tool(self, name: str) -> Tool:
        tool = self._tools.get(name)
        if tool is None:
            raise NotFound(f"there is no tool {name[:64]!r}; there are {', '.join(self._tools)}")
        return tool


def _size(name: str, output: object) -> int:
    try:
        return len(msgspec.json.encode(output))
    except (TypeError, ValueError) as error:
        raise Internal(f"{name} answered something that is not JSON", code="tool_bad_output") from error


@asynccontextmanager
async def open_builtin_tools(config: BuiltinToolsConfig, given: Given) -> AsyncIterator[ToolPort]:
    memory = given.ports["memory"]
    tools = (
        calculator(),
        clock_tool(given.clock),
        http_get(given.ports["egress"]),
        memory_put(memory, with_result="memory" in given.committed_with_runs),
        memory_search(memory),
        text_stats(),
    )
    yield BuiltinTools(_chosen(tools, config.enabled))


def _chosen(tools: tuple[Tool, ...], enabled: tuple[str, ...] | None) -> tuple[Tool, ...]:
    if enabled is None:
        return tools
    unknown = sorted(set(enabled) - {tool.spec.name for tool in tools})
    if unknown:
        raise InvalidArgument(f"enabled: there are no built-in tools {unknown}")
    return tuple(tool for tool in tools if tool.spec.name in enabled)


SPEC: Final = AdapterSpec(
    config=BuiltinToolsConfig,
    capabilities=lambda _config: ToolCapabilities(),
    open=open_builtin_tools,
    needs=("memory", "egress"),
)
