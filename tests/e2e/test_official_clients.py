"""The official `openai` and `anthropic` clients, unmodified, over every surface on which a model writes. Real sockets.

What a surface means is what its client understands, and what a backend is asked is the same whichever surface was used.
"""

import json
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from ports.http.body import Receive
from ports.http.edge import App, Scope, Send
from stack_b.backends.protocol import ModelCard
from stack_b.http import chat_stream
from stack_b.http.completions import SURFACES
from tests.support import official
from tests.support.http_server import served
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_b import StackB, stack_b, upstream_at
from tests.support.surface_clients import CLIENTS, PIXEL, City, Client, client_for, function

pytestmark = [pytest.mark.anyio]

TOOLS = [function("weather", "city"), function("clock", "zone")]
CALLS = [
    {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
    {"id": "call_b", "type": "function", "function": {"name": "clock", "arguments": '{"zone":"CET"}'}},
]
ROLE = delta(role="assistant", content="")
TOLD = {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)}


@pytest.fixture(params=sorted(SURFACES))
def path(request: pytest.FixtureRequest) -> str:
    given: str = request.param
    return given


@asynccontextmanager
async def gateway(path: str, upstream: ScriptedUpstream, **settings: Any) -> AsyncIterator[tuple[StackB, Client]]:
    async with at(upstream, **settings) as (node, url), client_for(path, url, max_retries=0) as client:
        yield node, client


@asynccontextmanager
async def at(
    upstream: ScriptedUpstream, *, around: Callable[[App], App] = lambda app: app, **settings: Any
) -> AsyncIterator[tuple[StackB, str]]:
    with anyio.fail_after(30):
        async with (
            served(upstream) as origin,
            upstream_at(f"{origin}/v1", api_key="sk-upstream") as backend,
            stack_b(backend, **settings) as node,
            served(around(node.app)) as url,
        ):
            yield node, url


async def settled(node: StackB) -> int:
    with anyio.fail_after(10):
        while (balance := await node.balance()).held:  # noqa: ASYNC110 - the ledger is asked, it doesn't tell
            await anyio.sleep(0.005)
    return balance.settled


def with_calls(finish: str = "tool_calls") -> Whole:
    whole = completion("", tool_calls=CALLS, usage=usage(7, 5))
    whole.body["choices"][0]["finish_reason"] = finish
    return whole


def test_every_surface_has_its_client() -> None:
    assert CLIENTS.keys() == SURFACES.keys()


async def test_a_question_is_answered_with_usage_and_a_receipt(path: str) -> None:
    counts = {
        **usage(10, 20),
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    async with gateway(path, ScriptedUpstream([completion("hi", usage=counts)])) as (node, client):
        told = await client.ask("hello")
        spent = await settled(node)

    assert (told.text, told.finish, told.usage) == ("hi", client.finishes["stop"], (10, 20))
    assert told.receipt["route"]["backend"] == "up"
    assert told.receipt["policy_outcome"]["decision"] == "allowed"
    assert told.receipt["tenant_id"] == "tnt_acme"
    if told.detail:
        assert told.detail == {"cached": 4, "reasoning": 3}
        assert told.receipt["usage"]["estimated"] is False
    assert spent == 30


async def test_a_stream_is_understood_like_the_whole(path: str) -> None:
    events = Events([ROLE, delta(content="gr"), delta(content="üße"), delta("stop"), TOLD])
    async with gateway(path, ScriptedUpstream([completion("grüße", usage=usage(7, 5)), events])) as (node, client):
        whole = await client.ask("hello")
        streamed = await client.stream("hello")
        spent = await settled(node)

    assert (streamed.text, streamed.finish, streamed.usage) == (whole.text, whole.finish, whole.usage)
    assert streamed.receipt["route"]["backend"] == "up"
    assert streamed.receipt["correlation_id"] != whole.receipt["correlation_id"]
    assert spent == 24


async def test_a_stream_of_a_backend_that_counts_nothing_has_an_estimated_usage(path: str) -> None:
    events = Events([ROLE, delta(content="x" * 40), delta("stop")])
    async with gateway(path, ScriptedUpstream([events])) as (node, client):
        told = await client.stream("hello")
        spent = await settled(node)

    assert told.usage is not None
    assert told.usage[1] == 10
    assert sum(told.usage) == spent > 10


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_parallel_tools_go_round(path: str, *, streamed: bool) -> None:
    fragments = [
        delta(tool_calls=[{"index": 0, **CALLS[0], "function": {"name": "weather", "arguments": '{"city"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ':"Oslo"}'}}, {"index": 1, **CALLS[1]}]),
    ]
    first = (
        Events([ROLE, delta(content="Let me see."), *fragments, delta("tool_calls"), TOLD])
        if streamed
        else with_calls()
    )
    upstream = ScriptedUpstream([first, completion("cold, and late")])
    async with gateway(path, upstream) as (_, client):
        asked = await (client.stream if streamed else client.ask)("how is it there?", TOOLS)
        history = client.results(asked, {"call_a": "-3 °C", "call_b": "23:10"})
        answer = await client.ask("", TOOLS, history=history)

    assert [(call.id, call.name, call.arguments) for call in asked.calls] == [
        ("call_a", "weather", {"city": "Oslo"}),
        ("call_b", "clock", {"zone": "CET"}),
    ]
    assert asked.text == ("Let me see." if streamed else "")
    assert asked.finish == client.finishes["tool_calls"]
    assert answer.text == "cold, and late"
    user, assistant, *results = upstream.requests[1].body["messages"]
    assert user == {"role": "user", "content": "how is it there?"}
    # Streaming helpers of clients add members of their own to what they give back.
    sent = [{**call["function"], "id": call["id"]} for call in assistant["tool_calls"]]
    assert [(call["id"], call["name"], call["arguments"]) for call in sent] == [
        ("call_a", "weather", '{"city":"Oslo"}'),
        ("call_b", "clock", '{"zone":"CET"}'),
    ]
    assert (assistant["content"] or "") == asked.text
    assert results == [
        {"role": "tool", "tool_call_id": "call_a", "content": "-3 °C"},
        {"role": "tool", "tool_call_id": "call_b", "content": "23:10"},
    ]


async def test_a_backend_is_asked_the_same_by_every_surface() -> None:
    upstream = ScriptedUpstream([completion()])
    async with at(upstream) as (_, url):
        for path in SURFACES:
            async with client_for(path, url) as client:
                await client.ask("hello", TOOLS, system="be brief", forced="clock", temperature=0.5)
                await client.ask("what is it?", image=PIXEL)

    bodies = [received.body for received in upstream.requests]
    assert bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "clock"}}
    assert bodies[0]["parallel_tool_calls"] is False
    assert bodies[0]["messages"][0] == {"role": "system", "content": "be brief"}
    assert bodies[1]["messages"][0]["content"][1]["image_url"] == {"url": f"data:image/png;base64,{PIXEL}"}
    assert bodies[2:4] == bodies[0:2]
    assert bodies[4:6] == bodies[0:2]


async def test_a_structured_answer_is_parsed_by_the_client(path: str) -> None:
    upstream = ScriptedUpstream([completion('{"name":"Oslo","people":717710}')])
    async with gateway(path, upstream) as (_, client):
        city = await client.parse("the capital of Norway")

    assert city == City(name="Oslo", people=717710)
    wished = upstream.requests[0].body["response_format"]
    assert wished["type"] == "json_schema"
    assert wished["json_schema"]["strict"] is True
    assert set(wished["json_schema"]["schema"]["properties"]) == {"name", "people"}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_an_answer_that_was_cut_says_so(path: str, finish: str, *, streamed: bool) -> None:
    whole = completion("once upon")
    whole.body["choices"][0]["finish_reason"] = finish
    script = Events([ROLE, delta(content="once upon"), delta(finish), TOLD]) if streamed else whole
    async with gateway(path, ScriptedUpstream([script])) as (_, client):
        if path.endswith("completions") and streamed:
            # Its helper raises on these; the chunks say it all the same.
            chunks = [chunk async for chunk in await client.open("tell")]
            said = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
            assert said == [finish]
            return
        told = await (client.stream if streamed else client.ask)("tell")

    assert told.finish == client.finishes[finish]
    assert told.text + told.refusal == "once upon"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_refusal_of_the_model_is_one(path: str, *, streamed: bool) -> None:
    whole = completion("", refusal="I won't")
    script = Events([ROLE, delta(refusal="I "), delta(refusal="won't"), delta("stop"), TOLD]) if streamed else whole
    async with gateway(path, ScriptedUpstream([script])) as (_, client):
        told = await (client.stream if streamed else client.ask)("do it")

    assert (told.text, told.refusal) == ("", "I won't")


async def test_each_refusal_is_the_clients_own_class_of_error(path: str) -> None:
    upstream = ScriptedUpstream([Whole({"error": {"message": "key sk-upstream is bad"}}, status=401)])
    errors: Any = official.anthropic if path == "/v1/messages" else official.openai
    async with at(upstream) as (_, url):
        async with client_for(path, url, key="nobody") as stranger, client_for(path, url, key="reader") as reader:
            with pytest.raises(errors.AuthenticationError) as unknown:
                await stranger.ask("hello")
            with pytest.raises(errors.PermissionDeniedError) as out_of_scope:
                await reader.stream("hello")
        async with client_for(path, url) as client:
            with pytest.raises(errors.UnprocessableEntityError) as bad_value:
                await client.ask("hello", most=-1)
            with pytest.raises(errors.InternalServerError) as upstream_refused:
                await client.ask("hello")

    found = [client.error_of(each.value) for each in (unknown, out_of_scope, bad_value, upstream_refused)]
    assert [error["code"] for error in found] == [
        "unauthenticated", "insufficient_scope", "validation_failed", "upstream_auth_error",
    ]  # fmt: skip
    assert found[2]["param"].startswith("max_")
    assert "sk-upstream" not in json.dumps(found[3])
    assert found[3]["route"]["attempts"][0]["status"] == 401
    for each, error in zip((unknown, out_of_scope, bad_value, upstream_refused), found, strict=True):
        assert each.value.request_id == error["correlation_id"]
    # Refused for good: the client would have tried twice more.
    assert len(upstream.requests) == 1


async def test_what_may_pass_is_tried_again_by_the_client(path: str) -> None:
    upstream = ScriptedUpstream([Whole("busy", status=503), completion("at last", usage=usage(7, 5))])
    async with at(upstream) as (node, url), client_for(path, url, max_retries=2) as client:
        told = await client.ask("hello")
        spent = await settled(node)

    assert told.text == "at last"
    assert len(upstream.requests) == 2
    assert spent == 12


async def test_a_spent_budget_is_not_tried_again(path: str) -> None:
    async with at(ScriptedUpstream([completion("hi", usage=usage(300, 100))]), limit=400) as (node, url):
        async with client_for(path, url, max_retries=2) as client:
            await client.ask("hello")
            with pytest.raises(client.error) as refused:
                await client.stream("hello")
        refusals = node.deps.metrics.render().decode()

    assert client.error_of(refused.value)["code"] == "budget_exceeded"
    assert client.error_of(refused.value)["type"] in {"insufficient_quota", "billing_error"}
    assert 'agentos_budget_refusals_total{code="budget_exceeded"} 1.0' in refusals


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_waits_no_longer_ends_the_call(path: str, *, streamed: bool) -> None:
    upstream = ScriptedUpstream([Events([ROLE, delta("stop")], hold_after=1)])
    errors: Any = official.anthropic if path == "/v1/messages" else official.openai
    async with gateway(path, upstream) as (node, client):
        hasty = client.with_options(timeout=0.3)
        with pytest.raises(errors.APITimeoutError):
            await (hasty.stream if streamed else hasty.ask)("hello")
        await upstream.gone.wait()
        spent = await settled(node)

    # The prompt was sent, whatever became of it.
    assert 0 < spent < 100


async def test_a_stream_that_is_left_ends_the_call_and_pays_for_what_came(path: str) -> None:
    upstream = ScriptedUpstream([Events([ROLE, delta(content="xxx " * 100), delta("stop"), TOLD], hold_after=2)])
    async with gateway(path, upstream) as (node, client):
        async with await client.open("hello") as events:
            async for event in events:
                if "xxx" in event.model_dump_json():
                    break
        await upstream.gone.wait()
        spent = await settled(node)

    assert 100 < spent < 200


async def test_a_failure_after_the_first_content_is_raised_by_the_client(path: str) -> None:
    broken = Events([ROLE, delta(content="half of it\n")], done=False)
    errors: Any = official.anthropic if path == "/v1/messages" else official.openai
    seen: list[str] = []

    async def read(client: Client) -> None:
        async with await client.open("hello") as events:
            async for event in events:
                seen.append(event.model_dump_json())  # noqa: PERF401 - what came before the failure counts

    async with gateway(path, ScriptedUpstream([broken])) as (_, client):
        with pytest.raises(errors.APIError) as failed:
            await read(client)

    assert "half of it" in "".join(seen)
    assert client.error_of(failed.value)["code"] == "upstream_error"
    assert client.error_of(failed.value)["route"]["backend"] == "up"


async def test_a_long_silence_is_filled_and_the_client_reads_on(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_stream, "KEEP_ALIVE_EVERY", timedelta(seconds=0.01))
    upstream = ScriptedUpstream([Events([ROLE, delta(content="hi"), delta("stop"), TOLD], hold_after=1)])
    alive = b"event: ping" if path == "/v1/messages" else b": keepalive"

    def resuming(app: App) -> App:
        """Lets the backend go on once two signs of life have gone out."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            seen = 0

            async def watched(message: MutableMapping[str, Any]) -> None:
                nonlocal seen
                seen += message.get("body", b"").startswith(alive)
                if seen == 2:
                    upstream.resume.set()
                await send(message)

            await app(scope, receive, watched)

        return wrapped

    async with at(upstream, around=resuming) as (_, url), client_for(path, url, max_retries=0) as client:
        body = {**client.asked("hello"), "stream": True}
        async with httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer acme"}) as plain:
            raw = (await plain.post(path, json=body)).content
        upstream.resume.clear()
        told = await client.stream("hello")

    assert raw.startswith(alive)
    assert raw.count(alive) >= 2
    assert told.text == "hi"


async def test_a_step_made_on_one_surface_is_repeated_on_another() -> None:
    upstream = ScriptedUpstream([completion("once", usage=usage(7, 5))])
    texts: list[str] = []
    async with at(upstream) as (node, url):
        for path in SURFACES:
            async with client_for(path, url, default_headers={"X-Step-Key": "run_1.4"}) as client:
                told = [await client.ask("hello"), await client.stream("hello")]
                texts += [each.text for each in told]
                assert told[1].receipt["route"]["replayed"] is True
        spent = await settled(node)

    assert texts == ["once"] * 6
    assert len(upstream.requests) == 1
    assert spent == 12


async def test_anthropics_key_header_is_taken_on_its_own_surface_only() -> None:
    body = {"model": "m-1", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
    async with at(ScriptedUpstream([completion()])) as (_, url), httpx.AsyncClient(base_url=url) as plain:
        by_key = await plain.post("/v1/messages?beta=true", json=body, headers={"x-api-key": "acme"})
        unknown = await plain.post("/v1/messages", json=body, headers={"x-api-key": "nobody"})
        both = {"x-api-key": "acme", "authorization": "Bearer globex"}
        two = await plain.post("/v1/messages", json=body, headers=both)
        elsewhere = await plain.post("/v1/chat/completions", json=body, headers={"x-api-key": "acme"})

    assert by_key.status_code == 200
    assert by_key.headers["request-id"] == by_key.json()["correlation_id"]
    assert unknown.json()["type"] == "error"
    assert unknown.json()["error"]["type"] == "authentication_error"
    assert unknown.json()["request_id"] == unknown.headers["request-id"]
    assert 'error="invalid_token"' in unknown.headers["www-authenticate"]
    assert (two.status_code, two.json()["error"]["code"]) == (400, "invalid_request")
    assert (elsewhere.status_code, elsewhere.json()["error"]["type"]) == (401, "authentication_error")
    assert "type" not in elsewhere.json()


async def test_tokens_are_counted_without_a_call() -> None:
    upstream = ScriptedUpstream([completion()])
    async with at(upstream) as (node, url), client_for("/v1/messages", url) as client:
        messages: Any = [{"role": "user", "content": "hello"}]
        short = await client.sdk.messages.count_tokens(model="m-1", messages=messages)
        long = await client.sdk.messages.count_tokens(model="m-1", messages=messages, system="be brief " * 40)
        with pytest.raises(official.anthropic.PermissionDeniedError):
            await client.sdk.messages.count_tokens(model="m-2", messages=messages)
        balance = await node.balance()

    assert 0 < short.input_tokens < long.input_tokens - 80
    assert upstream.requests == []
    assert (balance.settled, balance.held) == (0, 0)


async def test_a_structured_answer_is_parsed_from_a_stream_too(path: str) -> None:
    pieces = ['{"name":"Os', 'lo","people":', "717710}"]
    upstream = ScriptedUpstream([Events([ROLE, *(delta(content=one) for one in pieces), delta("stop"), TOLD])])
    async with gateway(path, upstream) as (_, client):
        city = await client.parse_streamed("the capital of Norway")

    assert city == City(name="Oslo", people=717710)
    assert upstream.requests[0].body["response_format"]["json_schema"]["strict"] is True


async def test_one_tool_that_must_be_used_is_used_once(path: str) -> None:
    upstream = ScriptedUpstream([with_calls()])
    upstream.script[0].body["choices"][0]["message"]["tool_calls"] = CALLS[:1]  # type: ignore[union-attr]  # it is whole
    async with gateway(path, upstream) as (_, client):
        told = await client.ask("the weather in Oslo?", TOOLS[:1], forced="weather")

    assert [(call.name, call.arguments) for call in told.calls] == [("weather", {"city": "Oslo"})]
    asked = upstream.requests[0].body
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert asked["parallel_tool_calls"] is False


async def test_an_answer_and_an_error_have_the_id_that_support_is_told(path: str) -> None:
    async with gateway(path, ScriptedUpstream([completion("hi"), Whole("no", status=400)])) as (_, client):
        raw = await client.raw("hello")
        with pytest.raises(client.error) as refused:
            await client.ask("hello")

    error: Any = refused.value
    assert raw.headers["x-request-id"] == json.loads(raw.http_response.content)["correlation_id"]
    assert error.request_id == client.error_of(error)["correlation_id"]
    assert raw.headers["x-request-id"] != error.request_id


def say(path: str, url: str) -> list[str]:
    """What the clients that block understand, whole and streamed."""
    given: dict[str, Any] = {"model": "m-1", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
    found: list[str] = []
    if path == "/v1/messages":
        with official.anthropic.Anthropic(base_url=url, api_key="acme", max_retries=0) as client:
            found.append(
                "".join(block.text for block in client.messages.create(**given).content if block.type == "text")
            )
            with client.messages.stream(**given) as events:
                found.append(events.get_final_text())
        return found
    with official.openai.OpenAI(base_url=f"{url}/v1", api_key="acme", max_retries=0) as client:
        if path == "/v1/responses":
            asked: dict[str, Any] = {"model": "m-1", "input": "hello"}
            found.append(client.responses.create(**asked).output_text)
            with client.responses.stream(**asked) as events:
                found.append(events.get_final_response().output_text)
        else:
            found.append(client.chat.completions.create(**given).choices[0].message.content)
            chunks = client.chat.completions.create(**given, stream=True)
            found.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    return found


async def test_the_clients_that_block_understand_the_same(path: str) -> None:
    events = Events([ROLE, delta(content="gr"), delta(content="üße"), delta("stop"), TOLD])
    async with at(ScriptedUpstream([completion("grüße", usage=usage(7, 5)), events])) as (_, url):
        found = await anyio.to_thread.run_sync(say, path, url)

    assert found == ["grüße", "grüße"]


VECTORS = Whole({"data": [{"index": 0, "embedding": [0.5, 0.25]}], "usage": usage(3, 0)})


@asynccontextmanager
async def embedding(
    upstream: ScriptedUpstream, **options: Any
) -> AsyncIterator[tuple[StackB, "official.openai.AsyncOpenAI"]]:
    cards = (ModelCard(id="e-1", upstream="e-1", chat=False, embed=True),)
    with anyio.fail_after(30):
        async with (
            served(upstream) as origin,
            upstream_at(f"{origin}/v1", models=cards) as backend,
            stack_b(backend) as node,
            served(node.app) as url,
            official.openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="acme", **options) as client,
        ):
            yield node, client


async def test_embeddings_are_tried_again_and_paid_once() -> None:
    upstream = ScriptedUpstream([Whole("busy", status=503), VECTORS])
    async with embedding(upstream, max_retries=2) as (node, client):
        found = await client.embeddings.create(model="e-1", input="hello")
        spent = await settled(node)

    assert found.data[0].embedding == [0.5, 0.25]
    assert len(upstream.requests) == 2
    assert spent == 3


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"model": "no-such"}, "PermissionDeniedError"), ({"input": ["x"] * 2_049}, "BadRequestError"),
        ({"input": []}, "BadRequestError"), ({"encoding_format": "hex"}, "BadRequestError"),
        ({"extra_body": {"api_base": "http://x"}}, "BadRequestError"),
    ],
    ids=["model", "many", "none", "encoding", "steering"],
)  # fmt: skip
async def test_each_refusal_of_an_embedding_is_the_clients_own_class(asked: Any, error: str) -> None:
    async with embedding(ScriptedUpstream([VECTORS]), max_retries=0) as (_, client):
        with pytest.raises((getattr(official.openai, error), official.openai.UnprocessableEntityError)) as refused:
            await client.embeddings.create(**({"model": "e-1", "input": "hello"} | asked))

    told: Any = refused.value
    assert told.body["code"]
    assert told.body["correlation_id"] == told.request_id


async def test_an_embedding_that_nobody_waits_for_any_more_ends() -> None:
    # It never answers: a stream that is held looks so to somebody who waits for a whole answer.
    upstream = ScriptedUpstream([Events([ROLE], hold_after=0)])
    async with embedding(upstream, max_retries=0) as (node, client):
        with pytest.raises(official.openai.APITimeoutError):
            await client.with_options(timeout=0.3).embeddings.create(model="e-1", input="hello")
        await upstream.gone.wait()
        assert await settled(node) > 0


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_task_that_is_cancelled_ends_the_call(path: str, how: str) -> None:
    upstream = ScriptedUpstream([Events([ROLE, delta("stop")], hold_after=1)])
    async with gateway(path, upstream) as (node, client):
        async with anyio.create_task_group() as group:
            group.start_soon(client.ask if how == "cancelled" else client.stream, "hello")
            await upstream.held.wait()
            group.cancel_scope.cancel()
        await upstream.gone.wait()
        spent = await settled(node)

    assert 0 < spent < 100
