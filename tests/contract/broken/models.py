"""Broken models."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from adapters.inproc.model import InprocModel, Step
from conformance.model import ModelContract
from ports.context import AuthContext
from ports.errors import Internal, PermissionDenied, Unavailable
from ports.ids import PrincipalId, TenantId
from ports.messages import Usage
from ports.model import ChatDelta, ChatReply, ChatRequest, Embeddings, Message, ModelInfo, PolicyOutcome
from tests.contract.broken.mutant import Mutant
from tests.support.inproc_model import InprocModelHarness


class BrokenModel(Mutant, ModelContract):
    broken: ClassVar[type[InprocModel]] = InprocModel

    @pytest.fixture
    def harness(self) -> InprocModelHarness:
        return InprocModelHarness(self.broken)


class TestIsHonest(BrokenModel):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class CountsNothing(InprocModel):
    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        return replace(await super().chat(auth, request), usage=Usage())


class TestCountsNothing(BrokenModel):
    broken = CountsNothing
    caught_by = frozenset(
        {
            "test_a_reply_says_what_why_how_much_and_who",
            "test_the_deltas_of_a_stream_join_to_the_reply_of_the_last",
        }
    )


class LosesADelta(InprocModel):
    async def stream(self, auth: AuthContext, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        first = True
        async for one in super().stream(auth, request):
            if not first:
                yield one
            first = False


class TestLosesADelta(BrokenModel):
    broken = LosesADelta
    caught_by = frozenset({"test_the_deltas_of_a_stream_join_to_the_reply_of_the_last"})


class TellsWhatOthersHave(InprocModel):
    def _entitle(self, auth: AuthContext, model: str, served: tuple[str, ...]) -> None:
        if model in served and not self._may_use(auth, model):
            raise PermissionDenied("somebody else may use it", code="model_not_entitled")
        super()._entitle(auth, model, served)


class TestTellsWhatOthersHave(BrokenModel):
    broken = TellsWhatOthersHave
    caught_by = frozenset({"test_a_model_of_others_is_refused_like_one_that_does_not_exist"})


class ServesWhateverIsAsked(InprocModel):
    def _entitle(self, auth: AuthContext, model: str, served: tuple[str, ...]) -> None:
        del auth, model, served


class TestServesWhateverIsAsked(BrokenModel):
    broken = ServesWhateverIsAsked
    caught_by = frozenset(
        {
            "test_a_model_that_does_not_exist_is_not_entitled",
            "test_a_model_of_others_is_refused_like_one_that_does_not_exist",
        }
    )


class SortsInputs(InprocModel):
    async def embed(self, auth: AuthContext, model: str, inputs: tuple[str, ...]) -> Embeddings:
        return await super().embed(auth, model, tuple(sorted(inputs)))


class TestSortsInputs(BrokenModel):
    broken = SortsInputs
    caught_by = frozenset({"test_each_input_has_one_vector_in_order"})


class AsksTheBackendForPolicy(InprocModel):
    async def policy_check(self, auth: AuthContext, request: ChatRequest) -> PolicyOutcome:
        await self._answer(self._rule(auth, request), request, PolicyOutcome(decision="allowed"))
        return await super().policy_check(auth, request)


class TestAsksTheBackendForPolicy(BrokenModel):
    broken = AsksTheBackendForPolicy
    caught_by = frozenset(
        {
            "test_policy_decides_as_chat_would_without_a_model_call",
            "test_a_blocked_request_never_reaches_the_backend",
            # Whatever counts the calls of a chat, which checks policy first.
            "test_a_repeated_step_gets_the_first_reply_where_there_is_a_journal",
            "test_callers_at_the_same_time_share_one_call_where_there_is_a_journal",
            "test_another_step_is_another_call_and_so_is_one_without_a_step",
            "test_another_request_under_the_same_key_conflicts_where_there_is_a_journal",
            "test_a_step_of_another_tenant_is_another_call",
            "test_a_step_of_another_principal_is_another_call",
            "test_an_abort_ends_the_call_in_the_backend_and_frees_the_key",
            "test_a_call_goes_on_when_its_caller_leaves_where_there_is_a_journal",
        }
    )


class ListsBackwards(InprocModel):
    async def list_models(self, auth: AuthContext) -> tuple[ModelInfo, ...]:
        return (await super().list_models(auth))[::-1]


class TestListsBackwards(BrokenModel):
    broken = ListsBackwards
    caught_by = frozenset({"test_the_models_are_listed_by_id_and_chat_takes_those_that_can"})


class TakesSilenceForABug(InprocModel):
    async def _answer(
        self, said: Message | Coroutine[Any, Any, Message], request: ChatRequest, outcome: PolicyOutcome
    ) -> ChatReply:
        try:
            return await super()._answer(said, request, outcome)
        except Unavailable as error:
            raise Internal("no answer") from error


class TestTakesSilenceForABug(BrokenModel):
    broken = TakesSilenceForABug
    caught_by = frozenset({"test_a_backend_that_does_not_answer_is_unavailable"})


class ForgetsReplies(InprocModel):
    def _ended(self, step: Step, digest: str, call: asyncio.Task[ChatReply]) -> None:
        super()._ended(step, digest, call)
        self._journal.pop(step, None)


class TestForgetsReplies(BrokenModel):
    broken = ForgetsReplies
    caught_by = frozenset(
        {
            "test_a_repeated_step_gets_the_first_reply_where_there_is_a_journal",
            "test_another_request_under_the_same_key_conflicts_where_there_is_a_journal",
            "test_an_abort_of_what_has_ended_leaves_it_as_it_is",
        }
    )


class HidesReplays(InprocModel):
    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        reply = await super().chat(auth, request)
        return replace(reply, route=replace(reply.route, replayed=False))


class TestHidesReplays(BrokenModel):
    broken = HidesReplays
    caught_by = frozenset(
        {
            "test_a_repeated_step_gets_the_first_reply_where_there_is_a_journal",
            "test_callers_at_the_same_time_share_one_call_where_there_is_a_journal",
            "test_an_abort_of_what_has_ended_leaves_it_as_it_is",
            "test_a_call_goes_on_when_its_caller_leaves_where_there_is_a_journal",
        }
    )


class JournalsButDoesNotJoin(InprocModel):
    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        under_way = self._calls.pop((auth.tenant, auth.namespace, request.step_key or "", auth.principal), None)
        reply = await super().chat(auth, request)
        if under_way is not None:
            await asyncio.wait({under_way[1]})
        return reply

    def _ended(self, step: Step, digest: str, call: asyncio.Task[ChatReply]) -> None:
        self._calls.setdefault(step, (digest, call))
        super()._ended(step, digest, call)


class TestJournalsButDoesNotJoin(BrokenModel):
    broken = JournalsButDoesNotJoin
    caught_by = frozenset(
        {
            "test_callers_at_the_same_time_share_one_call_where_there_is_a_journal",
            "test_a_call_goes_on_when_its_caller_leaves_where_there_is_a_journal",
        }
    )


class OneJournalForAll(InprocModel):
    async def _answer_once(
        self, step: Step, auth: AuthContext, request: ChatRequest, outcome: PolicyOutcome
    ) -> ChatReply:
        return await super()._answer_once((TenantId("tnt_one"), *step[1:]), auth, request, outcome)

    async def abort(self, auth: AuthContext, step_key: str) -> None:
        await super().abort(replace(auth, tenant=TenantId("tnt_one")), step_key)


class TestOneJournalForAll(BrokenModel):
    broken = OneJournalForAll
    caught_by = frozenset({"test_a_step_of_another_tenant_is_another_call", "test_an_abort_touches_no_other_call"})


class KeysOfTheTenant(InprocModel):
    async def _answer_once(
        self, step: Step, auth: AuthContext, request: ChatRequest, outcome: PolicyOutcome
    ) -> ChatReply:
        return await super()._answer_once((*step[:3], PrincipalId("usr_one")), auth, request, outcome)

    async def abort(self, auth: AuthContext, step_key: str) -> None:
        await super().abort(replace(auth, principal=PrincipalId("usr_one")), step_key)


class TestKeysOfTheTenant(BrokenModel):
    broken = KeysOfTheTenant
    caught_by = frozenset({"test_a_step_of_another_principal_is_another_call", "test_an_abort_touches_no_other_call"})


class AbortsNothing(InprocModel):
    async def abort(self, auth: AuthContext, step_key: str) -> None:
        del auth, step_key


class TestAbortsNothing(BrokenModel):
    broken = AbortsNothing
    caught_by = frozenset({"test_an_abort_ends_the_call_in_the_backend_and_frees_the_key"})


class AbortsEverything(InprocModel):
    async def abort(self, auth: AuthContext, step_key: str) -> None:
        for tenant, namespace, key, principal in list(self._calls):
            await super().abort(replace(auth, tenant=tenant, namespace=namespace, principal=principal), key)
        await super().abort(auth, step_key)


class TestAbortsEverything(BrokenModel):
    broken = AbortsEverything
    caught_by = frozenset({"test_an_abort_touches_no_other_call"})


class AbortsTheJournalToo(InprocModel):
    async def abort(self, auth: AuthContext, step_key: str) -> None:
        self._journal.pop((auth.tenant, auth.namespace, step_key, auth.principal), None)
        await super().abort(auth, step_key)


class TestAbortsTheJournalToo(BrokenModel):
    broken = AbortsTheJournalToo
    caught_by = frozenset({"test_an_abort_of_what_has_ended_leaves_it_as_it_is"})


class StopsWithItsCaller(InprocModel):
    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        try:
            return await super().chat(auth, request)
        except asyncio.CancelledError:
            if request.step_key is not None:
                await self.abort(auth, request.step_key)
            raise


class TestStopsWithItsCaller(BrokenModel):
    broken = StopsWithItsCaller
    caught_by = frozenset({"test_a_call_goes_on_when_its_caller_leaves_where_there_is_a_journal"})
