"""What every ProviderPort must show. Clauses: `ports.provider`."""

import json
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import ProviderHarness
from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.messages import Json
from ports.provider import ProviderPort

TEXT: Final = "Hello, you there."
CALLS: Final = (("call_1", "add", '{"a": 1, "b": [2, 3]}'), ("call_2", "look", '{"at": "the sky"}'))
SECRET: Final = "key-canary-5f3a9b"
"""The harness' endpoint has it as its key."""
WORDS: Final = "words-canary-71c0de"
"""What the harness' provider says with every refusal."""
_PROMPT: Final = "prompt-canary-e4d1"
_BOUND_S: Final = 10
_MOST: Final = 64

Body: TypeAlias = dict[str, Json]


def body_of(**members: Json) -> Body:
    return {"messages": [{"role": "user", "content": _PROMPT}], **members}


TOOLS: Final = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": {"type": "object"}}}
    for name in ("add", "look")
]
_PICTURE: Final = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/picture.png"}}]


async def streamed(port: ProviderPort, harness: ProviderHarness, body: Body) -> list[Body]:
    async with aclosing(port.stream(harness.endpoint, harness.model, body, _MOST)) as chunks:
        return [chunk async for chunk in chunks]


async def chatted(port: ProviderPort, harness: ProviderHarness, body: Body) -> Body:
    return await port.chat(harness.endpoint, harness.model, body, _MOST)


Way: TypeAlias = Callable[[ProviderPort, ProviderHarness, Body], Coroutine[Any, Any, object]]
WAYS: Final = pytest.mark.parametrize("way", [chatted, streamed])


def deltas(chunks: list[Body]) -> list[Body]:
    return [choice["delta"] for chunk in chunks for choice in chunk.get("choices") or ()]


def joined_text(chunks: list[Body]) -> str:
    return "".join(delta.get("content") or "" for delta in deltas(chunks))


def joined_calls(chunks: list[Body]) -> list[tuple[str, Json]]:
    found: dict[int, list[str]] = {}
    for delta in deltas(chunks):
        for fragment in delta.get("tool_calls") or ():
            name, arguments = found.setdefault(fragment["index"], ["", ""])
            function = fragment["function"]
            found[fragment["index"]] = [
                name + (function.get("name") or ""), arguments + (function.get("arguments") or "")
            ]  # fmt: skip
    return [(name, json.loads(arguments)) for _, (name, arguments) in sorted(found.items())]


def all_that_it_says(error: BaseException) -> str:
    """Of an error and of what it came from, as a log would have it."""
    said: list[str] = []
    at: BaseException | None = error
    while at is not None:
        said.append(f"{at!r} {at} {getattr(at, 'details', '')}")
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return " ".join(said)


@pytest.mark.anyio
class ProviderContract(Contract):
    async def test_what_is_used_is_among_its_capabilities(self, harness: ProviderHarness) -> None:
        port = await harness.open()

        assert harness.endpoint.provider in port.capabilities.providers
        port.check(harness.endpoint)
        with pytest.raises(InvalidArgument):
            port.check(replace(harness.endpoint, api_key=""))

    @clause("PRV-1")
    async def test_an_answer_is_a_chat_completion(self, harness: ProviderHarness) -> None:
        port = await harness.open()
        harness.will_answer(TEXT)

        [choice] = (await chatted(port, harness, body_of()))["choices"]

        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == TEXT
        assert choice["finish_reason"] == "stop"

    @clause("PRV-1")
    async def test_calls_of_tools_have_their_arguments_as_text(self, harness: ProviderHarness) -> None:
        port = await harness.open()
        harness.will_answer("", CALLS)

        [choice] = (await chatted(port, harness, body_of(tools=TOOLS)))["choices"]

        found = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in _calls(choice)]
        assert [(call, name, json.loads(text)) for call, name, text in found] == [
            (call, name, json.loads(text)) for call, name, text in CALLS
        ]
        assert choice["finish_reason"] == "tool_calls"

    @clause("PRV-2")
    @WAYS
    async def test_kinds_of_tokens_are_told_apart_as_parts_of_all(self, harness: ProviderHarness, way: Way) -> None:
        port = await harness.open()
        harness.will_answer(TEXT, prompt=100, completion=9, cache_read=40, cache_write=25)

        answer: Any = await way(port, harness, body_of())
        [usage] = [one["usage"] for one in (answer if isinstance(answer, list) else [answer]) if one.get("usage")]

        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (100, 9)
        details = usage["prompt_tokens_details"]
        assert details["cached_tokens"] == 40
        assert details.get("cache_creation_tokens", details.get("cache_write_tokens")) == harness.kept(25)

    @clause("PRV-3")
    async def test_a_stream_joined_is_the_answer(self, harness: ProviderHarness) -> None:
        port = await harness.open()
        harness.will_answer(TEXT, CALLS, prompt=10, completion=4)

        chunks = await streamed(port, harness, body_of(tools=TOOLS))

        assert joined_text(chunks) == TEXT
        assert joined_calls(chunks) == [(name, json.loads(arguments)) for _, name, arguments in CALLS]
        finishes = [choice.get("finish_reason") for chunk in chunks for choice in chunk.get("choices") or ()]
        assert [one for one in finishes if one] == ["tool_calls"]
        assert len([chunk for chunk in chunks if chunk.get("usage")]) == 1

    @clause("PRV-4")
    async def test_a_stream_that_breaks_off_is_an_error_after_what_came(self, harness: ProviderHarness) -> None:
        port = await harness.open()
        harness.will_break_off(TEXT)

        chunks: list[Body] = []

        async def read() -> None:
            async with aclosing(port.stream(harness.endpoint, harness.model, body_of(), _MOST)) as stream:
                async for chunk in stream:
                    chunks.append(chunk)  # noqa: PERF401 - what came before the error counts

        with pytest.raises(Unavailable) as raised:
            await read()

        assert raised.value.code == "upstream_error"
        assert raised.value.details["outcome"] == "unknown"
        assert joined_text(chunks)
        assert TEXT.startswith(joined_text(chunks))

    @clause("PRV-5", "PRV-6")
    @WAYS
    @pytest.mark.parametrize(
        ("status", "kind", "code"),
        [
            (400, InvalidArgument, "invalid_request"), (401, Unavailable, "upstream_auth_error"),
            (403, Unavailable, "upstream_auth_error"), (404, Unavailable, "upstream_error"),
            (408, Unavailable, "upstream_timeout"), (413, InvalidArgument, "invalid_request"),
            (422, InvalidArgument, "invalid_request"), (429, Unavailable, "upstream_error"),
            (500, Unavailable, "upstream_error"), (502, Unavailable, "upstream_error"),
            (503, Unavailable, "upstream_error"), (504, Unavailable, "upstream_timeout"),
            (302, Unavailable, "upstream_error"),
        ],
    )  # fmt: skip
    async def test_a_refusal_has_its_meaning_and_is_asked_for_once(
        self, harness: ProviderHarness, way: Way, status: int, kind: type[AgentOSError], code: str
    ) -> None:
        port = await harness.open()
        harness.will_refuse(status)

        with pytest.raises(kind) as raised:
            await way(port, harness, body_of())

        assert raised.value.code == code
        assert await harness.calls() == 1

    @clause("PRV-6")
    @pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("100000", 60), ("soon", None)])
    async def test_how_long_it_wants_to_be_left_alone_is_told_within_reason(
        self, harness: ProviderHarness, said: str, seconds: int | None
    ) -> None:
        port = await harness.open()
        harness.will_refuse(429, retry_after=said)

        with pytest.raises(Unavailable) as raised:
            await chatted(port, harness, body_of())

        wait = raised.value.retry_after
        assert (None if wait is None else wait.total_seconds()) == seconds

    @clause("PRV-6")
    async def test_a_prompt_that_is_too_long_is_told_as_that(self, harness: ProviderHarness) -> None:
        port = await harness.open()
        harness.will_refuse(400, too_long=True)

        with pytest.raises(InvalidArgument) as raised:
            await chatted(port, harness, body_of())

        assert raised.value.code == "context_length_exceeded"

    @clause("PRV-7")
    @WAYS
    async def test_one_that_can_not_be_reached_was_not_asked(self, harness: ProviderHarness, way: Way) -> None:
        port = await harness.open()
        await harness.leave()

        with pytest.raises(Unavailable) as raised:
            await way(port, harness, body_of())

        assert raised.value.code == "upstream_error"
        assert raised.value.details["sent"] is False
        assert "outcome" not in raised.value.details

    @clause("PRV-8")
    @WAYS
    @pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
    async def test_an_error_quotes_nobody(self, harness: ProviderHarness, way: Way, status: int) -> None:
        port = await harness.open()
        harness.will_refuse(status)

        with pytest.raises(AgentOSError) as raised:
            await way(port, harness, body_of())

        said = all_that_it_says(raised.value)
        assert not [canary for canary in (WORDS, SECRET, _PROMPT) if canary in said]
        assert SECRET not in repr(harness.endpoint)

    @clause("PRV-9")
    async def test_closing_a_stream_ends_the_call_at_the_provider(self, harness: ProviderHarness) -> None:
        port = await harness.open()
        harness.will_hold(TEXT)

        with anyio.fail_after(_BOUND_S):
            async with aclosing(port.stream(harness.endpoint, harness.model, body_of(), _MOST)) as stream:
                await anext(stream)
            await harness.gone()

    @clause("PRV-9")
    @WAYS
    async def test_a_caller_who_leaves_ends_the_call_at_the_provider(self, harness: ProviderHarness, way: Way) -> None:
        port = await harness.open()
        harness.will_hold(TEXT)

        with anyio.fail_after(_BOUND_S):
            async with anyio.create_task_group() as group:
                group.start_soon(way, port, harness, body_of())
                await harness.held()
                group.cancel_scope.cancel()
            await harness.gone()

    @clause("PRV-10")
    @WAYS
    @pytest.mark.parametrize(
        "members",
        [
            {"no_such_member": 1}, {"api_base": "http://127.0.0.1:9"}, {"api_key": "x"}, {"base_url": "http://127.0.0.1:9"},
            {"mock_response": "no"}, {"custom_llm_provider": "openai"}, {"extra_headers": {"x": "y"}},
            {"metadata": {"a": "b"}},
            {"fallbacks": ["x"]}, {"client": "x"}, {"model": "another"}, {"timeout": 1},
            {"messages": [{"role": "user", "content": _PICTURE}]},
        ],
        ids=lambda members: next(iter(members)),
    )  # fmt: skip
    async def test_what_can_not_be_passed_on_is_refused_before_anything_is_sent(
        self, harness: ProviderHarness, way: Way, members: Body
    ) -> None:
        port = await harness.open()
        harness.will_answer(TEXT)

        with pytest.raises(InvalidArgument):
            await way(port, harness, body_of() | members)

        assert await harness.calls() == 0

    @clause("PRV-11")
    async def test_there_is_a_vector_for_each_input_in_order(self, harness: ProviderHarness) -> None:
        port = await harness.open()
        if harness.embed_model is None:
            return
        harness.will_embed((1.0, 2.0), (3.0, 4.0))

        answer = await port.embed(
            harness.endpoint, harness.embed_model, {"input": ["a", "b"], "encoding_format": "base64"}
        )

        assert [one["embedding"] for one in answer["data"]] == [[1.0, 2.0], [3.0, 4.0]]

    @clause("PRV-12")
    @WAYS
    async def test_one_that_is_silent_is_given_up(self, harness: ProviderHarness, way: Way) -> None:
        port = await harness.open()
        harness.will_be_silent()

        with pytest.raises(Unavailable) as raised, anyio.fail_after(_BOUND_S):
            await way(port, harness, body_of())

        assert raised.value.code == "upstream_timeout"
        assert await harness.calls() == 1


def _calls(choice: Body) -> list[Body]:
    calls: list[Body] = choice["message"]["tool_calls"]
    return calls
