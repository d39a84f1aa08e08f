"""Broken tools."""

import asyncio
import itertools
from collections.abc import Iterable
from datetime import timedelta
from typing import ClassVar

import pytest
from msgspec import Struct
from msgspec.structs import replace

from adapters.inproc.tool import InprocTools, PythonTool
from conformance.harness import ToolSamples
from conformance.people import ACME
from conformance.tool import ToolContract
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError, Unavailable
from ports.memory import MemoryWrite
from ports.messages import Json
from ports.tool import ToolCall, ToolCapabilities, ToolPort, ToolResult, ToolSpec
from tests.contract.broken.mutant import Mutant
from tests.support.inproc_tools import InprocToolHarness


class BrokenToolHarness(InprocToolHarness):
    def __init__(self, broken: type[InprocTools]) -> None:
        super().__init__()
        self._broken = broken
        self._port = broken(self.tools(), self.clock)

    @property
    def declared(self) -> Struct:
        return self._port.capabilities

    @property
    def samples(self) -> ToolSamples:
        samples = super().samples
        return replace(samples, reconcilable=samples.repeatable)

    async def open(self) -> ToolPort:
        return self._port


class BrokenTools(Mutant, ToolContract):
    broken: ClassVar[type[InprocTools]] = InprocTools

    @pytest.fixture
    def harness(self) -> BrokenToolHarness:
        return BrokenToolHarness(self.broken)


class TestIsHonest(BrokenTools):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class Remembers(InprocTools):
    """Honest, and keeps a record of what it did."""

    def __init__(self, tools: Iterable[PythonTool], clock: Clock) -> None:
        super().__init__(tools, clock)
        self._record: dict[tuple[str, ...], ToolResult] = {}

    @property
    def capabilities(self) -> ToolCapabilities:
        return ToolCapabilities(reconcile=True)

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        result = await super().invoke(auth, call, timeout=timeout)
        self._record[auth.tenant, auth.namespace, call.name, call.key] = result
        return result

    async def reconcile(self, auth: AuthContext, name: str, key: str) -> ToolResult | None:
        self._tool(name)
        return self._record.get((auth.tenant, auth.namespace, name, key))


class TestRemembersHonestly(BrokenTools):
    broken = Remembers
    caught_by = frozenset()


class ListsInAnyOrder(InprocTools):
    async def list_tools(self, auth: AuthContext) -> tuple[ToolSpec, ...]:
        return tuple(reversed(await super().list_tools(auth)))


class TestListsInAnyOrder(BrokenTools):
    broken = ListsInAnyOrder
    caught_by = frozenset({"test_tools_are_listed_by_name_and_described_one_by_one"})


class HasEveryTool(InprocTools):
    def _tool(self, name: str) -> PythonTool:
        return self._tools.get(name) or next(iter(self._tools.values()))


class TestHasEveryTool(BrokenTools):
    broken = HasEveryTool
    caught_by = frozenset({"test_an_unknown_tool_is_not_found", "test_an_unknown_tool_can_not_be_reconciled"})


class TakesAnyArguments(InprocTools):
    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        tool = self._tool(call.name)
        if call.name in {"add", "note"}:
            return ToolResult(output=await tool.act(auth, call.arguments or {"text": ""}, call.key))
        return await super().invoke(auth, call, timeout=timeout)


class TestTakesAnyArguments(BrokenTools):
    broken = TakesAnyArguments
    caught_by = frozenset(
        {
            "test_arguments_against_the_schema_are_refused_and_the_tool_does_not_act",
            "test_an_argument_the_schema_does_not_name_is_refused",
        }
    )


class LeavesTheWorkBehind(InprocTools):
    """Tells the caller in time, and goes on."""

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        work = asyncio.ensure_future(super().invoke(auth, call, timeout=timedelta(hours=2)))
        timer = asyncio.ensure_future(self._clock.sleep(timeout))
        await asyncio.wait((work, timer), return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()
        if not work.done():
            raise Unavailable("too long", code="tool_timeout")
        return work.result()


class TestLeavesTheWorkBehind(BrokenTools):
    broken = LeavesTheWorkBehind
    caught_by = frozenset(
        {
            "test_a_call_over_its_timeout_is_given_up_and_its_work_cancelled",
            "test_a_cancelled_call_leaves_no_work_behind",
        }
    )


class TakesAnySize(InprocTools):
    def __init__(self, tools: Iterable[PythonTool], clock: Clock) -> None:
        roomy = [PythonTool(spec=replace(one.spec, max_output_bytes=10**9), act=one.act) for one in tools]
        super().__init__(roomy, clock)


class TestTakesAnySize(BrokenTools):
    broken = TakesAnySize
    caught_by = frozenset({"test_an_output_over_the_limit_is_refused"})


class AnswersWhatIsNoJson(InprocTools):
    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        result = await super().invoke(auth, call, timeout=timeout)
        return ToolResult(output=(result.output,)) if call.name == "add" else result


class TestAnswersWhatIsNoJson(BrokenTools):
    broken = AnswersWhatIsNoJson
    caught_by = frozenset({"test_the_output_is_json"})


class KeepsForEverybody(InprocTools):
    async def invoke(self, _auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        return await super().invoke(ACME, call, timeout=timeout)


class TestKeepsForEverybody(BrokenTools):
    broken = KeepsForEverybody
    caught_by = frozenset({"test_what_a_tool_keeps_is_kept_per_tenant_and_namespace"})


class ActsUnderNewKeys(InprocTools):
    def __init__(self, tools: Iterable[PythonTool], clock: Clock) -> None:
        super().__init__(tools, clock)
        self._count = itertools.count()

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        return await super().invoke(auth, replace(call, key=f"{call.key}.{next(self._count)}"), timeout=timeout)


class TestActsUnderNewKeys(BrokenTools):
    broken = ActsUnderNewKeys
    caught_by = frozenset(
        {
            "test_two_calls_with_one_key_have_the_effect_of_one",
            "test_a_transactional_tool_tells_what_it_would_write_and_does_not_act",
        }
    )


class ShowsOpenSchemas(InprocTools):
    async def list_tools(self, auth: AuthContext) -> tuple[ToolSpec, ...]:
        return tuple([await self.describe(auth, one.name) for one in await super().list_tools(auth)])

    async def describe(self, auth: AuthContext, name: str) -> ToolSpec:
        spec = await super().describe(auth, name)
        return replace(spec, input_schema={"type": "object"})


class TestShowsOpenSchemas(BrokenTools):
    broken = ShowsOpenSchemas
    caught_by = frozenset({"test_every_schema_is_of_an_object_that_takes_nothing_else"})


class SaysNothingWasDone(InprocTools):
    """Keeps no record, and answers as if it did."""

    async def reconcile(self, _auth: AuthContext, name: str, _key: str) -> ToolResult | None:
        self._tool(name)
        return None


class TestSaysNothingWasDone(BrokenTools):
    broken = SaysNothingWasDone
    caught_by = frozenset({"test_an_adapter_that_can_not_reconcile_says_so"})


class ForgetsWhatItDid(Remembers):
    async def reconcile(self, _auth: AuthContext, name: str, _key: str) -> ToolResult | None:
        self._tool(name)
        return None


class TestForgetsWhatItDid(BrokenTools):
    broken = ForgetsWhatItDid
    caught_by = frozenset({"test_what_a_call_did_is_told_by_its_key"})


class ReconcilesByActing(Remembers):
    async def reconcile(self, auth: AuthContext, name: str, key: str) -> ToolResult | None:
        found = await super().reconcile(auth, name, key)
        call = ToolCall(name=name, arguments={"text": "again"}, key=key)
        return found or await self.invoke(auth, call, timeout=timedelta(seconds=1))


class TestReconcilesByActing(BrokenTools):
    broken = ReconcilesByActing
    caught_by = frozenset(
        {
            "test_what_a_call_did_is_told_by_its_key",
            "test_what_became_of_a_call_is_told_to_those_whose_it_was",
        }
    )


class TellsAnybodyWhatItDid(Remembers):
    async def reconcile(self, _auth: AuthContext, name: str, key: str) -> ToolResult | None:
        return await super().reconcile(ACME, name, key)


class TestTellsAnybodyWhatItDid(BrokenTools):
    broken = TellsAnybodyWhatItDid
    caught_by = frozenset({"test_what_became_of_a_call_is_told_to_those_whose_it_was"})


class ActsBesideItsWrites(InprocTools):
    """Calls its transactional tool, and does what that means to do."""

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        result = await super().invoke(auth, call, timeout=timeout)
        if result.writes:
            await super().invoke(auth, replace(call, name="note"), timeout=timeout)
        return result


class TestActsBesideItsWrites(BrokenTools):
    broken = ActsBesideItsWrites
    caught_by = frozenset({"test_a_transactional_tool_tells_what_it_would_write_and_does_not_act"})


class LosesItsWrites(InprocTools):
    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        return ToolResult(output=(await super().invoke(auth, call, timeout=timeout)).output)


class TestLosesItsWrites(BrokenTools):
    broken = LosesItsWrites
    caught_by = frozenset({"test_a_transactional_tool_tells_what_it_would_write_and_does_not_act"})


class Doubting(InprocTools):
    """Tells of every error with these details."""

    details: ClassVar[dict[str, Json]] = {}

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        try:
            return await super().invoke(auth, call, timeout=timeout)
        except AgentOSError as error:
            error.details = dict(self.details)
            raise


class NeverKnowsWhatItDid(Doubting):
    details: ClassVar[dict[str, Json]] = {"outcome": "unknown"}


class TestNeverKnowsWhatItDid(BrokenTools):
    broken = NeverKnowsWhatItDid
    caught_by = frozenset(
        {
            "test_the_error_of_a_call_that_did_not_begin_says_so",
            "test_arguments_against_the_schema_are_refused_and_the_tool_does_not_act",
        }
    )


class SaysThatNothingWasSent(Doubting):
    details: ClassVar[dict[str, Json]] = {"sent": False}


class TestSaysThatNothingWasSent(BrokenTools):
    broken = SaysThatNothingWasSent
    caught_by = frozenset(
        {
            "test_the_error_of_a_call_over_its_timeout_says_that_it_may_have_acted",
            "test_the_error_of_a_call_whose_answer_was_lost_says_that_it_may_have_acted",
        }
    )


class TakesALostAnswerForARefusal(Doubting):
    """And says of a call that could not begin that it failed, which is true."""

    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        try:
            return await super().invoke(auth, call, timeout=timeout)
        except Unavailable as error:
            if error.code == "tool_timeout":
                raise
            raise Unavailable("it failed", code="tool_failed") from error


class TestTakesALostAnswerForARefusal(BrokenTools):
    broken = TakesALostAnswerForARefusal
    caught_by = frozenset({"test_the_error_of_a_call_whose_answer_was_lost_says_that_it_may_have_acted"})


class WritesWithEveryTool(InprocTools):
    async def invoke(self, auth: AuthContext, call: ToolCall, *, timeout: timedelta) -> ToolResult:
        result = await super().invoke(auth, call, timeout=timeout)
        return replace(result, writes=(MemoryWrite(key=call.key, value=result.output),))


class TestWritesWithEveryTool(BrokenTools):
    broken = WritesWithEveryTool
    caught_by = frozenset({"test_a_tool_that_is_not_transactional_has_no_writes"})
