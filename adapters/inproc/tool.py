"""ToolPort over Python functions: declare a `PythonTool`, name it in the configuration, and agents may call it.

Arguments, time and size are checked here, so that a function is only about its task. A function that raises something
outside the error tree is a bug, and passes through as it is.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, Final, TypeAlias

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from msgspec import Struct

from adapters.inproc.store import own
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import Internal, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unsupported
from ports.messages import Json
from ports.tool import ToolCall, ToolCapabilities, ToolPort, ToolResult, ToolSpec

Act: TypeAlias = Callable[[AuthContext, dict[str, Json], str], Awaitable[Json]]
"""Takes who asks, the checked arguments and the key of the effect. Gives the output; or, of a `transactional` tool, a
`ToolResult` with what it would write."""


class InprocToolConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tools: tuple[str, ...] = ()
    """`module:attribute` of each `PythonTool` to offer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonTool:
    spec: ToolSpec
    act: Act


class InprocTools:
    """Satisfies `ToolPort`; the same tools for every tenant."""

    def __init__(self, tools: Iterable[PythonTool], clock: Clock) -> None:
        self._tools = {tool.spec.name: tool for tool in sorted(tools, key=lambda tool: tool.spec.name)}
        self._validators = {name: validator(tool.spec) for name, tool in self._tools.items()}
        self._clock = clock

    @property
    def capabilities(self) -> ToolCapabilities:
        return ToolCapabilities()

    async def list_tools(self, _auth: AuthContext) -> tuple[ToolSpec, ...]:
        return own(tuple(tool.spec for tool in self._tools.values()))

    async def describe(self, _auth: AuthContext, name: str) -> ToolSpec:
        return own(self._tool(name).spec)

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        tool = self._tool(call.name)
        if (problem := best_match(self._validators[call.name].iter_errors(call.arguments))) is not None:
            # The validator's own words quote the arguments; where and which rule is enough to correct them.
            raise InvalidArgument(
                f"{call.name}: the argument at {problem.json_path} breaks the rule {problem.validator!r} of the schema",
                code="tool_bad_arguments",
            )
        limit = min(timeout, tool.spec.timeout)
        work = asyncio.ensure_future(tool.act(auth, own(call.arguments), call.key))
        if not await ended_within(work, limit, self._clock):
            raise Unavailable(f"{call.name} took longer than {limit.total_seconds():g} s", code="tool_timeout")
        answer = work.result()
        result = answer if isinstance(answer, ToolResult) else ToolResult(output=answer)
        return ToolResult(output=checked_output(tool.spec, result.output), writes=result.writes)

    async def reconcile(self, _auth: AuthContext, name: str, _key: str) -> ToolResult | None:
        raise Unsupported(f"{self._tool(name).spec.name} keeps no record of its calls; repeat the call instead")

    def _tool(self, name: str) -> PythonTool:
        found = self._tools.get(name)
        if found is None:
            raise NotFound(f"there is no tool {name[:64]!r}; there are {', '.join(self._tools) or 'none'}")
        return found


async def ended_within(work: "asyncio.Future[Any]", limit: timedelta, clock: Clock) -> bool:
    """Whether `work` ended before `limit`. Otherwise, or when we are cancelled, it is cancelled and has ended too."""
    timer = asyncio.ensure_future(clock.sleep(limit))
    try:
        await asyncio.wait((work, timer), return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        timer.cancel()
        work.cancel()
        await asyncio.gather(timer, work, return_exceptions=True)


def validator(spec: ToolSpec) -> Draft202012Validator:
    """The compiled check of a tool's arguments. Raises `InvalidArgument` for a schema that is none."""
    schema = spec.input_schema
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidArgument(f"tool {spec.name!r}: its input_schema is not valid at {error.json_path}") from error
    if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
        raise InvalidArgument(f'tool {spec.name!r}: input_schema needs "type": "object", "additionalProperties": false')
    return Draft202012Validator(schema)


def checked_output(spec: ToolSpec, output: Json) -> Json:
    """The output as JSON that decodes to an equal value, and fits."""
    try:
        encoded = msgspec.json.encode(output)
    except (TypeError, ValueError) as error:
        raise Internal(f"{spec.name} answered something that is not JSON", code="tool_bad_output") from error
    if len(encoded) > spec.max_output_bytes:
        raise ResourceExhausted(
            f"{spec.name} answered {len(encoded)} bytes; at most {spec.max_output_bytes} are taken",
            code="tool_response_too_large",
        )
    decoded = msgspec.json.decode(encoded)
    if decoded != output:
        raise Internal(f"{spec.name} answered something that JSON would change", code="tool_bad_output")
    return decoded


def load_tool(reference: str) -> PythonTool:
    """The tool at `module:attribute`. Raises `InvalidArgument` when there is none."""
    module, _, attribute = reference.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgument(f"tools: {reference!r} can't be loaded; write it as 'module:attribute'") from error
    if not isinstance(found, PythonTool):
        raise InvalidArgument(f"tools: {reference!r} is not a PythonTool")
    return found


@asynccontextmanager
async def open_tool(config: InprocToolConfig, given: Given) -> AsyncIterator[ToolPort]:
    yield InprocTools((load_tool(reference) for reference in config.tools), given.clock)


SPEC: Final[AdapterSpec[InprocToolConfig, ToolPort]] = AdapterSpec(
    config=InprocToolConfig, capabilities=lambda _: ToolCapabilities(), open=open_tool
)
