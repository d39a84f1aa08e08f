"""What the port does for every tool, with tools made for it; and its configuration."""

from datetime import timedelta

import anyio
import pytest

from adapters.builtin_tools.port import SPEC, BuiltinTools, BuiltinToolsConfig
from adapters.builtin_tools.tool import Act, Arguments, Tool, object_schema
from conformance.clock import ManualClock
from conformance.people import ACME
from ports.adapter import Given, find
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument
from ports.messages import Json
from ports.tool import ToolCall, ToolResult, ToolSpec

SHORT = timedelta(milliseconds=20)
LONG = timedelta(seconds=20)


def tool(act: Act, *, timeout: timedelta = LONG) -> Tool:
    spec = ToolSpec(
        name="sample",
        description="",
        input_schema=object_schema({}),
        effect="pure",
        timeout=timeout,
        max_output_bytes=10,
    )
    return Tool(spec=spec, act=act)


def answering(output: Json) -> Act:
    async def act(_auth: AuthContext, _arguments: Arguments, _call: ToolCall) -> Json:
        return output

    return act


async def hang(_auth: AuthContext, _arguments: Arguments, _call: ToolCall) -> Json:
    await anyio.sleep_forever()


async def code_of(one: Tool, *, timeout: timedelta = LONG) -> str:
    with pytest.raises(AgentOSError) as refusal, anyio.fail_after(5):
        await BuiltinTools([one]).invoke(ACME, ToolCall(name="sample", arguments={}, key="run_0:1"), timeout=timeout)
    return refusal.value.code


@pytest.mark.anyio
class TestInvoke:
    async def test_an_output_over_the_limit_is_refused(self) -> None:
        assert await code_of(tool(answering("a" * 9))) == "tool_response_too_large"

    async def test_the_output_beside_writes_has_the_same_limit(self) -> None:
        assert await code_of(tool(answering(ToolResult(output="a" * 9)))) == "tool_response_too_large"

    async def test_an_output_that_is_not_json_is_a_bug_of_the_tool(self) -> None:
        assert await code_of(tool(answering(object()))) == "tool_bad_output"

    async def test_the_shorter_of_both_timeouts_holds(self) -> None:
        assert await code_of(tool(hang), timeout=SHORT) == "tool_timeout"
        assert await code_of(tool(hang, timeout=SHORT)) == "tool_timeout"

    async def test_a_timeout_inside_the_tool_is_not_taken_for_the_calls_own(self) -> None:
        async def act(_auth: AuthContext, _arguments: Arguments, _call: ToolCall) -> Json:
            raise TimeoutError("a lock")

        with pytest.raises(TimeoutError, match="a lock"):
            await BuiltinTools([tool(act)]).invoke(
                ACME, ToolCall(name="sample", arguments={}, key="run_0:1"), timeout=LONG
            )


@pytest.mark.anyio
async def test_the_six_tools_are_there_and_can_be_chosen_among() -> None:
    given = Given(clock=ManualClock(), ports={"memory": None, "egress": None})

    async with SPEC.open(BuiltinToolsConfig(), given) as tools:
        every = [spec.name for spec in await tools.list_tools(ACME)]
    async with SPEC.open(BuiltinToolsConfig(enabled=("clock",)), given) as tools:
        chosen = [spec.name for spec in await tools.list_tools(ACME)]

    assert every == ["calculator", "clock", "http_get", "memory_put", "memory_search", "text_stats"]
    assert chosen == ["clock"]


@pytest.mark.anyio
async def test_a_tool_that_does_not_exist_can_not_be_enabled() -> None:
    with pytest.raises(InvalidArgument, match="shell"):
        async with SPEC.open(
            BuiltinToolsConfig(enabled=("shell",)), Given(clock=ManualClock(), ports={"memory": None, "egress": None})
        ):
            pytest.fail("opened")


def test_the_adapter_is_found_by_name() -> None:
    assert find("tool", "builtin") is SPEC
