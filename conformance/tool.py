"""What every Tool adapter must show, by sample calls of its own tools. Clauses: `ports.tool`."""

from datetime import timedelta
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel
import jsonschema
import msgspec
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import ToolHarness
from conformance.people import ACME, FOREIGNERS, Foreigner
from conformance.waiting import PATIENCE_S, while_time_passes
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unsupported
from ports.messages import Json
from ports.tool import ToolCall, ToolPort, ToolResult, may_have_acted

TIMEOUT: Final = timedelta(seconds=20)
SHORT: Final = timedelta(milliseconds=50)
ABSENT: Final = ToolCall(name="there_is_no_such_tool", arguments={}, key="run_0:1")


def sample(harness: ToolHarness, name: str) -> ToolCall:
    call: ToolCall | None = getattr(harness.samples, name)
    if call is None:
        pytest.skip(f"no tool of this adapter can show it: samples.{name}")
    return call


async def output_of(tools: ToolPort, auth: AuthContext, call: ToolCall) -> Json:
    with anyio.fail_after(PATIENCE_S):
        return (await tools.invoke(auth, call, timeout=TIMEOUT)).output


async def reconciled(tools: ToolPort, auth: AuthContext, call: ToolCall) -> ToolResult | None:
    with anyio.fail_after(PATIENCE_S):
        return await tools.reconcile(auth, call.name, call.key)


async def error_of(tools: ToolPort, call: ToolCall) -> AgentOSError:
    with anyio.fail_after(PATIENCE_S), pytest.raises(AgentOSError) as raised:
        await tools.invoke(ACME, call, timeout=TIMEOUT)
    return raised.value


@pytest.mark.anyio
class ToolContract(Contract):
    async def test_the_capabilities_are_those_the_spec_declares(self, harness: ToolHarness) -> None:
        tools = await harness.open()

        assert tools.capabilities == harness.declared

    @clause("TOO-1")
    async def test_tools_are_listed_by_name_and_described_one_by_one(self, harness: ToolHarness) -> None:
        tools = await harness.open()

        specs = await tools.list_tools(ACME)

        names = [spec.name for spec in specs]
        assert harness.samples.good.name in names
        assert names == sorted(set(names))
        assert [await tools.describe(ACME, name) for name in names] == list(specs)

    @clause("TOO-2")
    async def test_an_unknown_tool_is_not_found(self, harness: ToolHarness) -> None:
        tools = await harness.open()

        with pytest.raises(NotFound):
            await tools.describe(ACME, ABSENT.name)
        with pytest.raises(NotFound):
            await tools.invoke(ACME, ABSENT, timeout=TIMEOUT)

    @clause("TOO-3", "TOO-12")
    async def test_arguments_against_the_schema_are_refused_and_the_tool_does_not_act(
        self, harness: ToolHarness
    ) -> None:
        tools = await harness.open()
        call = sample(harness, "bad_arguments")
        before = await harness.effects()

        wrong: tuple[Json, ...] = (call.arguments, None, [], "text", 7)
        for arguments in wrong:
            with pytest.raises(InvalidArgument) as refusal:
                await tools.invoke(ACME, replace(call, arguments=arguments), timeout=TIMEOUT)
            assert refusal.value.code == "tool_bad_arguments"
            assert not may_have_acted(refusal.value)

        assert await harness.effects() == before

    @clause("TOO-3", "TOO-9")
    async def test_an_argument_the_schema_does_not_name_is_refused(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "good")

        with pytest.raises(InvalidArgument) as refusal:
            await tools.invoke(ACME, replace(call, arguments={**call.arguments, "unnamed_": 1}), timeout=TIMEOUT)

        assert refusal.value.code == "tool_bad_arguments"

    @clause("TOO-4")
    async def test_a_call_over_its_timeout_is_given_up_and_its_work_cancelled(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "slow")

        error = await while_time_passes(lambda: tools.invoke(ACME, call, timeout=SHORT), harness.advance, SHORT)

        assert isinstance(error, Unavailable)
        assert error.code == "tool_timeout"
        assert await harness.running() == 0

    @clause("TOO-4")
    async def test_a_cancelled_call_leaves_no_work_behind(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "slow")

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(partial(tools.invoke, timeout=TIMEOUT), ACME, call)
                while await harness.running() == 0:
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()

        assert await harness.running() == 0

    @clause("TOO-5")
    async def test_an_output_over_the_limit_is_refused(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "oversized")

        with pytest.raises(ResourceExhausted) as refusal:
            await output_of(tools, ACME, call)

        assert refusal.value.code == "tool_response_too_large"

    @clause("TOO-6")
    async def test_the_output_is_json(self, harness: ToolHarness) -> None:
        tools = await harness.open()

        output = await output_of(tools, ACME, sample(harness, "good"))

        assert msgspec.json.decode(msgspec.json.encode(output)) == output

    @clause("TOO-7")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_what_a_tool_keeps_is_kept_per_tenant_and_namespace(
        self, harness: ToolHarness, foreigner: Foreigner
    ) -> None:
        tools = await harness.open()
        write, read = sample(harness, "write"), sample(harness, "read")
        mine_before = await output_of(tools, ACME, read)
        theirs_before = await output_of(tools, foreigner.auth, read)

        await output_of(tools, ACME, write)

        assert await output_of(tools, ACME, read) != mine_before
        assert await output_of(tools, foreigner.auth, read) == theirs_before

    @clause("TOO-8")
    async def test_two_calls_with_one_key_have_the_effect_of_one(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "repeatable")
        before = await harness.effects()

        first = await output_of(tools, ACME, call)
        once = await harness.effects()
        second = await output_of(tools, ACME, call)

        assert (await tools.describe(ACME, call.name)).effect in {"pure", "idempotent"}
        assert once == before + 1
        assert await harness.effects() == once
        assert second == first

    @clause("TOO-11")
    async def test_a_transactional_tool_tells_what_it_would_write_and_does_not_act(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "transactional")
        before = await harness.effects()

        with anyio.fail_after(PATIENCE_S):
            first = await tools.invoke(ACME, call, timeout=TIMEOUT)
            second = await tools.invoke(ACME, call, timeout=TIMEOUT)

        assert (await tools.describe(ACME, call.name)).effect == "transactional"
        assert first.writes
        assert second == first
        assert await harness.effects() == before

    @clause("TOO-11")
    async def test_a_tool_that_is_not_transactional_has_no_writes(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        effects = {spec.name: spec.effect for spec in await tools.list_tools(ACME)}

        for name in ("good", "repeatable", "write", "read"):
            call: ToolCall | None = getattr(harness.samples, name)
            if call is not None and effects[call.name] != "transactional":
                assert (await tools.invoke(ACME, call, timeout=TIMEOUT)).writes == (), call.name

    @clause("TOO-12")
    async def test_the_error_of_a_call_that_did_not_begin_says_so(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "unreachable")
        before = await harness.effects()

        error = await error_of(tools, call)

        assert not may_have_acted(error)
        assert await harness.effects() == before

    @clause("TOO-12")
    async def test_the_error_of_a_call_over_its_timeout_says_that_it_may_have_acted(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        call = sample(harness, "slow")

        error = await while_time_passes(lambda: tools.invoke(ACME, call, timeout=SHORT), harness.advance, SHORT)

        assert isinstance(error, AgentOSError)
        assert may_have_acted(error)

    @clause("TOO-12")
    async def test_the_error_of_a_call_whose_answer_was_lost_says_that_it_may_have_acted(
        self, harness: ToolHarness
    ) -> None:
        tools = await harness.open()
        call = sample(harness, "lost")
        before = await harness.effects()

        error = await error_of(tools, call)

        assert may_have_acted(error)
        assert await harness.effects() == before + 1

    @clause("TOO-9")
    async def test_every_schema_is_of_an_object_that_takes_nothing_else(self, harness: ToolHarness) -> None:
        tools = await harness.open()

        for spec in await tools.list_tools(ACME):
            jsonschema.Draft202012Validator.check_schema(spec.input_schema)
            assert spec.input_schema["type"] == "object", spec.name
            assert spec.input_schema["additionalProperties"] is False, spec.name

    @clause("TOO-10")
    async def test_an_adapter_that_can_not_reconcile_says_so(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        if tools.capabilities.reconcile:
            pytest.skip("declared: reconcile")

        with pytest.raises(Unsupported):
            await tools.reconcile(ACME, harness.samples.good.name, "run_0:1")

    @clause("TOO-10")
    async def test_what_a_call_did_is_told_by_its_key(self, harness: ToolHarness) -> None:
        tools = await harness.open()
        if not tools.capabilities.reconcile:
            pytest.skip("not declared: reconcile")
        call = sample(harness, "reconcilable")
        before = await reconciled(tools, ACME, call)

        output = await output_of(tools, ACME, call)

        acted = await harness.effects()
        assert before is None
        assert await reconciled(tools, ACME, call) == ToolResult(output=output)
        assert await reconciled(tools, ACME, replace(call, key=f"{call.key}0")) is None
        assert await harness.effects() == acted

    @clause("TOO-10")
    @pytest.mark.parametrize("foreigner", FOREIGNERS, ids=lambda foreigner: foreigner.name)
    async def test_what_became_of_a_call_is_told_to_those_whose_it_was(
        self, harness: ToolHarness, foreigner: Foreigner
    ) -> None:
        tools = await harness.open()
        if not tools.capabilities.reconcile:
            pytest.skip("not declared: reconcile")
        call = sample(harness, "reconcilable")

        await output_of(tools, ACME, call)

        assert await reconciled(tools, foreigner.auth, call) is None

    @clause("TOO-2", "TOO-10")
    async def test_an_unknown_tool_can_not_be_reconciled(self, harness: ToolHarness) -> None:
        tools = await harness.open()

        with pytest.raises(NotFound):
            await tools.reconcile(ACME, ABSENT.name, ABSENT.key)
