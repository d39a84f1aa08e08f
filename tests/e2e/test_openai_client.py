"""Done-item 3: the official `openai` client, unmodified, against Stack B over a real socket."""

import base64
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.support import official
from tests.support.http_server import served
from tests.support.stack_b import StackB, stack_b

pytestmark = [pytest.mark.anyio]

QUESTION = "What is 17.5 % of 2340, and how many words are in: to be or not to be?"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": name,
            "parameters": {
                "type": "object",
                "properties": {member: {"type": "string"}},
                "required": [member],
                "additionalProperties": False,
            },
        },
    }
    for name, member in (("calculator", "expression"), ("text_stats", "text"))
]


@asynccontextmanager
async def gateway(**settings: Any) -> AsyncIterator[tuple[StackB, "official.openai.AsyncOpenAI"]]:
    with anyio.fail_after(30):
        async with (
            stack_b(**settings) as node,
            served(node.app) as url,
            official.openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="acme") as client,
        ):
            yield node, client


async def test_a_chat_is_answered_with_usage_and_a_receipt() -> None:
    async with gateway() as (_, client):
        reply = await client.chat.completions.create(
            model="agentos-demo", messages=[{"role": "user", "content": "hello"}]
        )

    assert "not a language model" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    extra = reply.model_extra or {}
    assert extra["policy_outcome"] == {"decision": "allowed", "reasons": []}
    assert extra["route"]["backend"] == "demo"
    assert extra["tenant_id"] == "tnt_acme"
    assert extra["correlation_id"] == reply._request_id


async def test_a_stream_gives_the_same_text_and_no_usage_chunk_unless_asked() -> None:
    async with gateway() as (_, client):
        whole = await client.chat.completions.create(
            model="agentos-demo", messages=[{"role": "user", "content": "hello"}]
        )
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="agentos-demo", messages=[{"role": "user", "content": "hello"}], stream=True
            )
        ]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert (chunks[-1].model_extra or {})["route"]["backend"] == "demo"


async def test_a_stream_ends_with_a_usage_chunk_when_asked() -> None:
    async with gateway() as (_, client):
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="agentos-demo",
                messages=[{"role": "user", "content": "hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        ]

    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


async def test_parallel_tool_calls_go_round_and_the_answer_states_both_results() -> None:
    answers = {"calculator": {"result": "409.5", "exact": True}, "text_stats": {"words": 6, "characters": 18}}
    async with gateway() as (_, client):
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        first = await client.chat.completions.create(model="agentos-demo", messages=messages, tools=TOOLS)
        wished = first.choices[0].message.tool_calls or []
        calls: list[Any] = [call for call in wished if call.type == "function"]
        messages.append(first.choices[0].message.model_dump(exclude_none=True))
        for call in calls:
            content = json.dumps(answers[call.function.name])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        second = await client.chat.completions.create(model="agentos-demo", messages=messages, tools=TOOLS)

    assert first.choices[0].finish_reason == "tool_calls"
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("calculator", {"expression": "17.5 % of 2340"}),
        ("text_stats", {"text": "to be or not to be"}),
    ]
    text = second.choices[0].message.content or ""
    assert "17.5 % of 2340 = 409.5." in text
    assert '"to be or not to be" has 6 words.' in text


async def test_streamed_tool_calls_arrive_whole() -> None:
    async with gateway() as (_, client):
        stream = client.chat.completions.stream(
            model="agentos-demo", messages=[{"role": "user", "content": QUESTION}], tools=TOOLS
        )
        async with stream as events:
            final = await events.get_final_completion()

    calls: Any = final.choices[0].message.tool_calls or []
    assert final.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in calls] == [
        {"expression": "17.5 % of 2340"},
        {"text": "to be or not to be"},
    ]


async def test_embeddings_come_as_floats_and_by_default_as_base64() -> None:
    async with gateway() as (_, client):
        # The client asks for base64 by itself and decodes it.
        default = await client.embeddings.create(model="agentos-demo-embed", input=["red apple", "green apple"])
        floats = await client.embeddings.create(
            model="agentos-demo-embed", input=["red apple", "green apple"], encoding_format="float"
        )
        raw: Any = await client.embeddings.with_raw_response.create(
            model="agentos-demo-embed", input="red apple", encoding_format="base64"
        )

    assert [item.index for item in default.data] == [0, 1]
    assert len(default.data[0].embedding) == 256
    assert default.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
    packed = base64.b64decode(json.loads(raw.text)["data"][0]["embedding"])
    assert struct.unpack("<256f", packed) == pytest.approx(floats.data[0].embedding, abs=1e-6)


async def test_models_are_listed_and_retrieved() -> None:
    async with gateway() as (_, client):
        listed = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("agentos-demo")

    assert listed == ["agentos-demo", "agentos-demo-embed"]
    assert one.owned_by == "demo"


async def test_each_refusal_is_the_clients_own_class_of_error() -> None:
    hello: Any = [{"role": "user", "content": "hello"}]
    async with gateway(models=("agentos-demo",)) as (_, client):
        with pytest.raises(official.openai.AuthenticationError) as unknown_key:
            await client.with_options(api_key="nobody").models.list()
        with pytest.raises(official.openai.PermissionDeniedError) as not_entitled:
            await client.chat.completions.create(model="gpt-5", messages=hello)
        with pytest.raises(official.openai.PermissionDeniedError) as out_of_scope:
            await client.with_options(api_key="reader").models.list()
        with pytest.raises(official.openai.NotFoundError) as no_such_model:
            await client.models.retrieve("agentos-demo-embed")
        with pytest.raises(official.openai.UnprocessableEntityError) as bad_value:
            await client.chat.completions.create(model="agentos-demo", messages=hello, max_tokens=-1)

    assert unknown_key.value.code == "unauthenticated"
    assert unknown_key.value.type == "authentication_error"
    assert not_entitled.value.code == "model_not_entitled"
    assert out_of_scope.value.code == "insufficient_scope"
    assert no_such_model.value.code == "not_found"
    assert bad_value.value.code == "validation_failed"
    assert bad_value.value.param == "max_tokens"


async def test_a_spent_budget_is_refused_without_a_retry() -> None:
    async with gateway(limit=700) as (node, client):
        hello: Any = [{"role": "user", "content": "hello"}]
        refusal: official.openai.RateLimitError | None = None
        for _ in range(20):
            try:
                await client.chat.completions.create(model="agentos-demo", messages=hello, max_tokens=100)
            except official.openai.RateLimitError as error:
                refusal = error
                break
        asked = node.deps.metrics.render().decode()
        balance = await node.balance()

    assert refusal is not None
    assert refusal.code == "budget_exceeded"
    assert refusal.type == "insufficient_quota"
    assert refusal.response.headers["x-should-retry"] == "false"
    assert refusal.response.headers["x-ratelimit-limit-tokens"] == "700"
    body: Any = refusal.body
    assert body["budget"]["limit"] == 700
    # The client would have tried twice more.
    assert 'agentos_budget_refusals_total{code="budget_exceeded"} 1.0' in asked
    assert balance.settled <= 700
    assert balance.held == 0


async def test_a_request_that_can_never_fit_says_what_would() -> None:
    async with gateway(limit=700) as (_, client):
        with pytest.raises(official.openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="agentos-demo", messages=[{"role": "user", "content": "hello"}], max_tokens=5_000
            )
        fits = refused.value.body["details"]["max_tokens_that_fits"]  # type: ignore[index]  # `object` to the checker
        reply = await client.chat.completions.create(
            model="agentos-demo", messages=[{"role": "user", "content": "hello"}], max_tokens=fits
        )

    assert refused.value.code == "request_exceeds_budget"
    assert reply.choices[0].message.content
