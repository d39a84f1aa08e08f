"""The kit over the in-process Tool port, and what is this adapter's own."""

import math

import pytest

from adapters.inproc.tool import SPEC, InprocToolConfig, InprocTools, load_tool
from conformance.clock import ManualClock
from conformance.people import ACME
from conformance.tool import TIMEOUT, ToolContract
from ports.adapter import Given
from ports.context import AuthContext
from ports.errors import Internal, InvalidArgument
from ports.messages import Json
from ports.tool import ToolCall
from tests.support.inproc_tools import ADD, InprocToolHarness, tool


class TestInprocTools(ToolContract):
    @pytest.fixture
    def harness(self) -> InprocToolHarness:
        return InprocToolHarness()


@pytest.mark.anyio
async def test_tools_are_loaded_by_the_references_of_the_configuration() -> None:
    config = InprocToolConfig(tools=("tests.support.inproc_tools:ADD",))

    async with SPEC.open(config, Given(clock=ManualClock())) as tools:
        result = await tools.invoke(ACME, ToolCall(name="add", arguments={"a": 40, "b": 2}, key="k"), timeout=TIMEOUT)

    assert result.output == 42


@pytest.mark.parametrize(
    "reference", ["", "nonsense", "no.such.module:TOOL", "tests.support.inproc_tools:NOTHING", "math:pi"]
)
def test_a_reference_that_names_no_tool_is_refused_by_name(reference: str) -> None:
    with pytest.raises(InvalidArgument, match="tools: "):
        load_tool(reference)


@pytest.mark.anyio
@pytest.mark.parametrize("output", [math.nan, (1, 2), {1: "one"}, object()], ids=["nan", "tuple", "int key", "object"])
async def test_an_output_that_json_would_change_is_a_bug_of_the_tool(output: object) -> None:
    async def act(_auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        return output

    tools = InprocTools((tool("odd", act),), ManualClock())

    with pytest.raises(Internal) as refusal:
        await tools.invoke(ACME, ToolCall(name="odd", arguments={}, key="k"), timeout=TIMEOUT)

    assert refusal.value.code == "tool_bad_output"


@pytest.mark.anyio
async def test_a_refusal_of_arguments_does_not_quote_them() -> None:
    tools = InprocTools((ADD,), ManualClock())
    call = ToolCall(name="add", arguments={"a": "my secret", "b": 1}, key="k")

    with pytest.raises(InvalidArgument) as refusal:
        await tools.invoke(ACME, call, timeout=TIMEOUT)

    assert "my secret" not in refusal.value.message
    assert "$.a" in refusal.value.message
