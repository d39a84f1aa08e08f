"""What every Model adapter must show. Clauses: `ports.model`."""

from typing import Final

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import ModelHarness
from conformance.people import ACME, ACME_BEN, GLOBEX
from conformance.waiting import PATIENCE_S
from ports.errors import AgentOSError, Conflict, PermissionDenied, Unavailable
from ports.model import ChatDelta, ChatReply, ChatRequest, Message, ModelPort

ABSENT: Final = "there-is-no-such-model"
KEY: Final = "run_1:1"


def request(harness: ModelHarness, text: str = "to be or not to be", *, step_key: str | None = None) -> ChatRequest:
    return ChatRequest(
        model=harness.chat_model, messages=(Message(role="user", content=text),), max_tokens=200, step_key=step_key
    )


async def journaled(harness: ModelHarness) -> ModelPort:
    model = await harness.open()
    if not model.capabilities.journaled:
        pytest.skip("not declared: journaled")
    return model


async def waiting(harness: ModelHarness, count: int) -> None:
    """Until that many calls wait in the backend."""
    while await harness.backend_waiting() != count:
        await anyio.lowlevel.checkpoint()


async def streamed(model: ModelPort, asked: ChatRequest) -> list[ChatDelta]:
    return [delta async for delta in model.stream(ACME, asked)]


@pytest.mark.anyio
class ModelContract(Contract):
    async def test_the_capabilities_are_those_the_spec_declares(self, harness: ModelHarness) -> None:
        model = await harness.open()

        assert model.capabilities == harness.declared

    @clause("MOD-1")
    async def test_a_reply_says_what_why_how_much_and_who(self, harness: ModelHarness) -> None:
        model = await harness.open()

        reply = await model.chat(ACME, request(harness))

        assert reply.message.role == "assistant"
        assert reply.message.content or reply.message.tool_calls
        assert reply.finish_reason in {"stop", "length", "tool_calls"}
        assert reply.usage.prompt_tokens > 0
        assert reply.usage.completion_tokens > 0
        assert reply.policy_outcome.decision in {"allowed", "redacted"}
        assert reply.route.backend
        assert reply.route.model

    @clause("MOD-2")
    async def test_the_deltas_of_a_stream_join_to_the_reply_of_the_last(self, harness: ModelHarness) -> None:
        model = await harness.open()

        deltas = await streamed(model, request(harness))

        assert [delta.reply is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]
        reply = deltas[-1].reply
        assert reply is not None
        assert "".join(delta.text for delta in deltas) == (reply.message.content or "")
        assert tuple(call for delta in deltas for call in delta.tool_calls) == reply.message.tool_calls
        assert reply.usage.completion_tokens > 0

    @clause("MOD-3")
    async def test_a_model_that_does_not_exist_is_not_entitled(self, harness: ModelHarness) -> None:
        model = await harness.open()
        asked = replace(request(harness), model=ABSENT)

        with pytest.raises(PermissionDenied) as chat:
            await model.chat(ACME, asked)
        with pytest.raises(PermissionDenied) as stream:
            await streamed(model, asked)
        with pytest.raises(PermissionDenied) as embed:
            await model.embed(ACME, ABSENT, ("text",))

        assert {chat.value.code, stream.value.code, embed.value.code} == {"model_not_entitled"}

    @clause("MOD-3", "MOD-6")
    async def test_a_model_of_others_is_refused_like_one_that_does_not_exist(self, harness: ModelHarness) -> None:
        model = await harness.open()
        foreign = harness.foreign_model
        if foreign is None:
            pytest.skip("every model of this adapter is free to all: foreign_model")

        texts = set()
        for name in (foreign, ABSENT):
            with pytest.raises(PermissionDenied) as refusal:
                await model.chat(ACME, replace(request(harness), model=name))
            texts.add((refusal.value.code, refusal.value.message.replace(name, "…")))

        assert len(texts) == 1
        assert foreign not in {one.id for one in await model.list_models(ACME)}

    @clause("MOD-4")
    async def test_each_input_has_one_vector_in_order(self, harness: ModelHarness) -> None:
        model = await harness.open()

        both = await model.embed(ACME, harness.embed_model, ("walrus", "penguin", "walrus"))
        one = await model.embed(ACME, harness.embed_model, ("penguin",))

        assert len(both.vectors) == 3
        assert len({len(vector) for vector in both.vectors}) == 1
        assert len(both.vectors[0]) > 0
        assert both.vectors[0] == pytest.approx(both.vectors[2])
        assert both.vectors[1] == pytest.approx(one.vectors[0])
        assert both.vectors[0] != pytest.approx(both.vectors[1])
        assert both.usage.prompt_tokens > 0

    @clause("MOD-5")
    async def test_policy_decides_as_chat_would_without_a_model_call(self, harness: ModelHarness) -> None:
        model = await harness.open()

        outcome = await model.policy_check(ACME, request(harness))

        assert await harness.backend_calls() == 0
        assert (await model.chat(ACME, request(harness))).policy_outcome.decision == outcome.decision
        assert await harness.backend_calls() == 1

    @clause("MOD-5")
    async def test_a_blocked_request_never_reaches_the_backend(self, harness: ModelHarness) -> None:
        model = await harness.open()
        blocked = harness.blocked
        if blocked is None:
            pytest.skip("no policy is in force: blocked")

        outcome = await model.policy_check(ACME, blocked)
        with pytest.raises(PermissionDenied) as refusal:
            await model.chat(ACME, blocked)

        assert outcome.decision == "blocked"
        assert outcome.reasons
        assert refusal.value.code == "policy_blocked"
        assert await harness.backend_calls() == 0

    @clause("MOD-6")
    async def test_the_models_are_listed_by_id_and_chat_takes_those_that_can(self, harness: ModelHarness) -> None:
        model = await harness.open()

        models = await model.list_models(ACME)

        ids = [one.id for one in models]
        assert ids == sorted(set(ids))
        assert {harness.chat_model, harness.embed_model} <= set(ids)
        for one in models:
            if one.chat:
                assert (await model.chat(ACME, replace(request(harness), model=one.id))).message.role == "assistant"

    @clause("MOD-7")
    async def test_a_backend_that_does_not_answer_is_unavailable(self, harness: ModelHarness) -> None:
        model = await harness.open()

        await harness.break_backend()

        with pytest.raises(Unavailable):
            await model.chat(ACME, request(harness))
        with pytest.raises(Unavailable):
            await streamed(model, request(harness))

    @clause("MOD-8")
    async def test_a_repeated_step_gets_the_first_reply_where_there_is_a_journal(self, harness: ModelHarness) -> None:
        model = await journaled(harness)

        first = await model.chat(ACME, request(harness, step_key=KEY))
        again = await model.chat(ACME, request(harness, step_key=KEY))
        as_stream = (await streamed(model, request(harness, step_key=KEY)))[-1].reply

        assert not first.route.replayed
        assert again == replace(first, route=replace(first.route, replayed=True))
        assert as_stream == again
        assert await harness.backend_calls() == 1

    @clause("MOD-8")
    async def test_callers_at_the_same_time_share_one_call_where_there_is_a_journal(
        self, harness: ModelHarness
    ) -> None:
        model = await journaled(harness)
        await harness.hold_backend()
        replies: list[ChatReply] = []

        async def ask() -> None:
            replies.append(await model.chat(ACME, request(harness, step_key=KEY)))

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(ask)
                await waiting(harness, 1)
                await harness.release_backend()

        assert len({reply.message for reply in replies}) == 1
        assert sorted(reply.route.replayed for reply in replies) == [False, True, True, True, True]
        assert await harness.backend_calls() == 1

    @clause("MOD-8")
    async def test_another_step_is_another_call_and_so_is_one_without_a_step(self, harness: ModelHarness) -> None:
        model = await harness.open()

        for key in ("run_1:1", "run_1:2", None, None):
            assert not (await model.chat(ACME, request(harness, step_key=key))).route.replayed

        assert await harness.backend_calls() == 4

    @clause("MOD-8")
    async def test_another_request_under_the_same_key_conflicts_where_there_is_a_journal(
        self, harness: ModelHarness
    ) -> None:
        model = await journaled(harness)
        await model.chat(ACME, request(harness, step_key=KEY))

        with pytest.raises(Conflict) as refusal:
            await model.chat(ACME, request(harness, "that is the question", step_key=KEY))

        assert refusal.value.code == "idempotency_key_reused"
        assert await harness.backend_calls() == 1

    @clause("MOD-8")
    async def test_a_step_of_another_tenant_is_another_call(self, harness: ModelHarness) -> None:
        model = await harness.open()

        for auth in (ACME, GLOBEX):
            assert not (await model.chat(auth, request(harness, step_key=KEY))).route.replayed

        assert await harness.backend_calls() == 2

    @clause("MOD-8")
    async def test_a_step_of_another_principal_is_another_call(self, harness: ModelHarness) -> None:
        model = await harness.open()

        await model.chat(ACME_BEN, request(harness, "that is the question", step_key=KEY))
        assert not (await model.chat(ACME, request(harness, step_key=KEY))).route.replayed

        assert await harness.backend_calls() == 2

    @clause("MOD-9")
    async def test_an_abort_ends_the_call_in_the_backend_and_frees_the_key(self, harness: ModelHarness) -> None:
        model = await harness.open()
        await harness.hold_backend()
        errors: list[AgentOSError] = []

        async def ask() -> None:
            try:
                await model.chat(ACME, request(harness, step_key=KEY))
            except AgentOSError as error:
                errors.append(error)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await waiting(harness, 1)
                await model.abort(ACME, KEY)
                await waiting(harness, 0)
        await harness.release_backend()
        after = await model.chat(ACME, request(harness, step_key=KEY))

        assert len(errors) == 1
        assert not errors[0].retryable
        assert not after.route.replayed
        assert await harness.backend_calls() == 2

    @clause("MOD-9")
    async def test_an_abort_touches_no_other_call(self, harness: ModelHarness) -> None:
        model = await harness.open()
        await harness.hold_backend()
        replies: list[ChatReply] = []

        async def ask() -> None:
            replies.append(await model.chat(ACME, request(harness, step_key=KEY)))

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await waiting(harness, 1)
                await model.abort(ACME, "run_1:2")
                await model.abort(GLOBEX, KEY)
                await model.abort(ACME_BEN, KEY)
                await harness.release_backend()

        assert len(replies) == 1

    @clause("MOD-9")
    async def test_an_abort_of_what_has_ended_leaves_it_as_it_is(self, harness: ModelHarness) -> None:
        model = await journaled(harness)
        await model.chat(ACME, request(harness, step_key=KEY))

        await model.abort(ACME, KEY)

        assert (await model.chat(ACME, request(harness, step_key=KEY))).route.replayed

    @clause("MOD-10")
    async def test_a_call_goes_on_when_its_caller_leaves_where_there_is_a_journal(self, harness: ModelHarness) -> None:
        model = await journaled(harness)
        await harness.hold_backend()

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(model.chat, ACME, request(harness, step_key=KEY))
                await waiting(harness, 1)
                group.cancel_scope.cancel()
            await harness.release_backend()
            later = await model.chat(ACME, request(harness, step_key=KEY))

        assert later.route.replayed
        assert await harness.backend_calls() == 1
