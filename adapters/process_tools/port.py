"""The declared commands as one Tool port: arguments, time and answers are judged here, once for all of them.

What a command gets on standard input is one JSON object:

    {"tool": …, "arguments": {…}, "key": …, "tenant": …, "namespace": …, "principal": …}

`key` is the same on every attempt of the same step, and of no other. Its answer is one JSON value on standard output
and the exit code 0. A `reconcile` command gets the same without `arguments`, and answers `{"acted": true, "output": …}`
or `{"acted": false}`.
"""

import os
import re
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import anyio
import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from msgspec import Meta, Struct

from adapters.process_tools import command
from adapters.process_tools.declared import DeclaredTool, read_tools
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import Internal, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unsupported
from ports.http import strict_json
from ports.messages import Json
from ports.tool import NOT_SENT, OUTCOME_UNKNOWN, ToolCall, ToolCapabilities, ToolPort, ToolResult, ToolSpec

MAX_GRACE_S: Final = 2.5
"""A cancel is in force within 5 s: 2 s until the worker learns of it, this, and the time to write it down."""
MAX_TOLD_CHARS: Final = 500
"""Of what a command that failed said on standard error."""

_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\S ]+|[\x00-\x1f\x7f-\x9f\ufffd]")


class ProcessToolsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    file: Annotated[str, Meta(min_length=1)]
    """Where the tools are declared."""

    grace_s: Annotated[float, Meta(ge=0, le=MAX_GRACE_S)] = 2.0
    """Between SIGTERM and SIGKILL, for a command that is cancelled or took too long."""


class ProcessTools:
    """Satisfies `ToolPort`; the same tools for every tenant."""

    def __init__(self, tools: Iterable[DeclaredTool], *, environ: Mapping[str, str], grace_s: float) -> None:
        self._tools = {tool.name: tool for tool in sorted(tools, key=lambda tool: tool.name)}
        self._specs = {name: tool.spec for name, tool in self._tools.items()}
        self._validators = {name: Draft202012Validator(tool.input_schema) for name, tool in self._tools.items()}
        self._environ = environ
        self._grace_s = grace_s

    @property
    def capabilities(self) -> ToolCapabilities:
        return capabilities_of(self._tools.values())

    async def list_tools(self, _auth: AuthContext) -> tuple[ToolSpec, ...]:
        return tuple(self._specs.values())

    async def describe(self, _auth: AuthContext, name: str) -> ToolSpec:
        return self._tool(name).spec

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        tool = self._tool(call.name)
        self._check(call)
        document = _document(auth, call.name, call.key) | {"arguments": call.arguments}
        output = await self._answer(tool, tool.command, document, min(timeout, self._specs[tool.name].timeout))
        return ToolResult(output=output)

    async def reconcile(self, auth: AuthContext, name: str, key: str) -> ToolResult | None:
        tool = self._tool(name)
        if tool.reconcile is None:
            raise Unsupported(f"{name} has no reconcile command; declare one, or decide for yourself")
        document = _document(auth, name, key)
        answer = await self._answer(tool, tool.reconcile, document, self._specs[name].timeout)
        match answer:
            case {"acted": True, "output": output, **rest} if not rest:
                return ToolResult(output=output)
            case {"acted": False, **rest} if not rest:
                return None
            case _:
                raise Internal(
                    f'{name}, reconcile: the answer must be {{"acted": true, "output": …}} or {{"acted": false}}',
                    code="tool_bad_output",
                )

    def _tool(self, name: str) -> DeclaredTool:
        found = self._tools.get(name)
        if found is None:
            raise NotFound(f"there is no tool {name[:64]!r}; there are {', '.join(self._tools) or 'none'}")
        return found

    def _check(self, call: ToolCall) -> None:
        problem = best_match(self._validators[call.name].iter_errors(call.arguments))
        if problem is not None:
            # The validator's own words quote the arguments; where and which rule is enough to correct them.
            raise InvalidArgument(
                f"{call.name}: the argument at {problem.json_path} breaks the rule {problem.validator!r} of the schema",
                code="tool_bad_arguments",
            )

    async def _answer(self, tool: DeclaredTool, argv: tuple[str, ...], document: Json, limit: timedelta) -> Json:
        encoded = _encoded(tool.name, document)
        ended: command.Ended | None = None
        try:
            with anyio.move_on_after(limit.total_seconds()):
                ended = await command.run(
                    argv, encoded, environ=self._environ, max_output=tool.max_output_bytes, grace=self._grace_s
                )
        except OSError as error:
            raise Unavailable(
                f"{tool.name} can't be started: {error.strerror}; nothing was done", details=NOT_SENT
            ) from error
        if ended is None:
            raise Unavailable(f"{tool.name} took longer than {limit.total_seconds():g} s", code="tool_timeout")
        return judged(tool, ended)


def judged(tool: DeclaredTool, ended: command.Ended) -> Json:
    """The output of a command that ended by itself. Raises what the port says of one that failed."""
    if ended.code != 0:
        how = f"exited with {ended.code}" if ended.code > 0 else f"was ended by {_signal_name(-ended.code)}"
        said = told(ended.stderr)
        # Who was ended has not said what it had done by then.
        raise Unavailable(
            f"{tool.name} {how}" + (f": {said}" if said else ""),
            code="tool_failed",
            details=None if ended.code > 0 else OUTCOME_UNKNOWN,
        )
    if ended.size > tool.max_output_bytes:
        raise _too_large(tool, ended.size)
    try:
        output = strict_json.parse(ended.output)
    except InvalidArgument as error:
        raise Internal(
            f"{tool.name} answered what is not usable JSON: {error.message}", code="tool_bad_output"
        ) from error
    # As it is kept: a short way to write a number may be the longer one there.
    if (size := len(msgspec.json.encode(output))) > tool.max_output_bytes:
        raise _too_large(tool, size)
    return output


def told(stderr: bytes) -> str:
    """The end of what a command said, on one line, without what would move a terminal's cursor."""
    line = " ".join(_CONTROL.sub(" ", stderr.decode("utf-8", "replace")).split())
    return line if len(line) <= MAX_TOLD_CHARS else "…" + line[-MAX_TOLD_CHARS:]


def capabilities_of(tools: Iterable[DeclaredTool]) -> ToolCapabilities:
    return ToolCapabilities(reconcile=any(tool.reconcile for tool in tools))


def _document(auth: AuthContext, name: str, key: str) -> dict[str, Json]:
    """What a tool needs to act for the right one, and once."""
    whose = {"tenant": auth.tenant, "namespace": auth.namespace, "principal": auth.principal}
    return {"tool": name, "key": key, **whose}


def _encoded(name: str, document: Json) -> bytes:
    try:
        return msgspec.json.encode(document) + b"\n"
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: the arguments can't be written as JSON", code="tool_bad_arguments") from error


def _too_large(tool: DeclaredTool, size: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{tool.name} answered {size} bytes; at most {tool.max_output_bytes} are taken", code="tool_response_too_large"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tools_of(config: ProcessToolsConfig) -> tuple[DeclaredTool, ...]:
    return read_tools(Path(config.file), search=os.environ.get("PATH"))


@asynccontextmanager
async def open_process_tools(config: ProcessToolsConfig, _given: Given) -> AsyncIterator[ToolPort]:
    yield ProcessTools(_tools_of(config), environ=os.environ, grace_s=config.grace_s)


SPEC: Final[AdapterSpec[ProcessToolsConfig, ToolPort]] = AdapterSpec(
    config=ProcessToolsConfig, capabilities=lambda config: capabilities_of(_tools_of(config)), open=open_process_tools
)
