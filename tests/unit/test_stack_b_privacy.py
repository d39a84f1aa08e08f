"""Personal data at the gateway: nothing of it goes upstream or comes back, whichever string it stands in."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from ports.messages import Json
from stack_b.backends.reach import Reach
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta
from tests.support.stack_b import StackB, stack_b
from tests.unit.test_stack_b_gateway import backend

pytestmark = [pytest.mark.anyio]

CANARY: Final = "ann@example.com"

REQUEST: Final[dict[str, Json]] = {
    "messages": [
        {"role": "system", "content": "Be brief.", "name": "system-name"},
        {
            "role": "user",
            "name": "user-name",
            "content": [
                {"type": "text", "text": "a part"},
                {"type": "image_url", "image_url": {"url": "https://img.example/of", "detail": "detailed"}},
                {"type": "file", "file": {"filename": "file-name", "file_data": "some data"}},
            ],
        },
        {
            "role": "assistant",
            "content": "I call.",
            "refusal": "refused",
            "tool_calls": [
                {"id": "call_01", "type": "function", "function": {"name": "send_it", "arguments": '{"to":"x"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_01", "content": "the result"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "send_it",
                "description": "Sends it.",
                "parameters": {
                    "type": "object",
                    "title": "Parameters",
                    "properties": {"to": {"type": "string", "enum": ["one of", "these"], "default": "these"}},
                    "required": ["to-whom"],
                },
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "send_it"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "format-name", "schema": {"title": "A title"}}},
    "stop": ["a stop", "another"],
    "logit_bias": {"50256": -100.0},
    "user": "the-user",
    "metadata": {"some-key": "some value"},
    "prediction": {"type": "content", "content": "predicted"},
    "an_unknown_member": {"deep": [{"deeper": "text"}]},
}
PASSES: Final = {"up": Reach(passes=frozenset({"an_unknown_member", "unknown"}))}
_CHECKED: Final = frozenset({"role"})
"""A closed list of words: there is no room for a value."""


def places(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a string stands in `value`; a path that ends in "" is that of a member's name."""
    if isinstance(value, str):
        yield path
    for key, member in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        if isinstance(key, str) and path:
            yield (*path, key, "")
        if key not in _CHECKED:
            yield from places(member, (*path, key))


def planted(value: Json, path: tuple[str | int, ...], canary: Json) -> Json:
    if not path:
        return canary
    key, *rest = path
    if rest == [""]:
        return {(f"{name} {canary}" if name == key else name): member for name, member in value.items()}
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = planted(value[key], tuple(rest), canary)
    return copy


PLACES: Final = list(places(REQUEST))
# Names of members that the request is read by; without them it is another request, or none.
_READ: Final = {
    "messages", "role", "content", "name", "tool_calls", "tool_call_id", "id", "type", "function", "arguments",
}  # fmt: skip


async def test_a_canary_in_any_string_of_a_request_does_not_go_upstream() -> None:
    upstream = ScriptedUpstream([completion()])
    tried = 0
    async with stack_b(backend(upstream), reaches=PASSES) as node:
        for path in PLACES:
            if path[-1] == "" and path[-2] in _READ:
                continue
            for canary in (CANARY, "arguments: " + json.dumps({"to": CANARY})):
                body = planted(REQUEST, path, canary)
                answer = await node.post("/v1/chat/completions", {"model": "m-1", **body})
                assert answer.status_code in {200, 400}, (path, answer.text)
                tried += answer.status_code == 200
                assert CANARY not in json.dumps([received.body for received in upstream.requests]), path
                upstream.requests.clear()
    assert tried > 60


async def test_a_canary_in_any_string_of_an_embedding_request_does_not_go_upstream() -> None:
    vectors = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
    request: dict[str, Json] = {"input": ["one", "two", "three"], "user": "the-user", "unknown": {"deep": ["text"]}}
    upstream = ScriptedUpstream([Whole(vectors)], models=["m-embed"])
    async with stack_b(backend(upstream), reaches=PASSES) as node:
        for path in places(request):
            body = planted(request, path, CANARY)
            assert (await node.post("/v1/embeddings", {"model": "m-embed", **body})).status_code == 200
        sent = json.dumps([received.body for received in upstream.requests])

    assert "[EMAIL]" in sent
    assert CANARY not in sent


async def test_an_account_number_that_is_a_number_does_not_go_upstream() -> None:
    upstream = ScriptedUpstream([completion()])
    async with stack_b(backend(upstream)) as node:
        await node.chat(model="m-1", metadata={"card": 4111111111111111, "n": 17}, seed=4111111111111111)

    sent = upstream.requests[0].body
    assert sent["metadata"] == {"card": "[PAYMENT_CARD]", "n": 17}
    assert sent["seed"] == 4111111111111111


async def test_what_a_tenant_blocks_is_refused_for_good_and_checked_without_a_call() -> None:
    upstream = ScriptedUpstream([completion()])
    body = {"model": "m-1", "messages": [{"role": "user", "content": f"to {CANARY}"}]}
    async with stack_b(backend(upstream), pii_modes={"email": "block"}) as node:
        refused = await node.post("/v1/chat/completions", body)
        streamed = await node.post("/v1/chat/completions", {**body, "stream": True})
        embedded = await node.post("/v1/embeddings", {"model": "m-1", "input": CANARY})
        checked = await node.post("/v1/policy/check", body)
        balance = await node.balance()
        counted = node.deps.metrics.render().decode()

    for answer in (refused, streamed):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["retryable"]) == (403, "policy_blocked", False)
        assert answer.headers["x-should-retry"] == "false"
        assert error["policy_outcome"] == {"decision": "blocked", "reasons": ["pii:email"]}
        assert CANARY not in answer.text
    assert embedded.status_code in {403, 404}
    assert (checked.status_code, checked.json()["policy_outcome"]["decision"]) == (200, "blocked")
    assert upstream.requests == []
    assert balance.held == balance.settled == 0
    assert "policy_block" in counted


async def test_what_a_tenant_allows_goes_there_and_back() -> None:
    upstream = ScriptedUpstream([completion(f"so {CANARY} and +49 30 901820")])
    async with stack_b(backend(upstream), pii_modes={"email": "allow"}) as node:
        answer = (await node.chat(f"to {CANARY}", model="m-1")).json()

    assert upstream.requests[0].body["messages"][0]["content"] == f"to {CANARY}"
    assert answer["choices"][0]["message"]["content"] == f"so {CANARY} and [PHONE]"
    assert answer["policy_outcome"] == {"decision": "redacted", "reasons": ["pii_output:phone"]}


async def sent_placeholder(node: StackB, upstream: ScriptedUpstream) -> str:
    """What the backend saw in place of the canary."""
    await node.chat(CANARY, model="m-1")
    placeholder: str = upstream.requests.pop().body["messages"][0]["content"]
    return placeholder


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_reversible_value_is_hidden_from_the_backend_and_undone_in_the_answer(*, stream: bool) -> None:
    upstream = ScriptedUpstream([completion()])
    async with stack_b(backend(upstream), pii_modes={"email": "reversible"}) as node:
        tag = await sent_placeholder(node, upstream)
        arguments = json.dumps({"to": tag})
        call: dict[str, Any] = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "send", "arguments": arguments},
        }
        if stream:
            pieces = [f"Dear {tag}, and bob@example.com"[at : at + 3] for at in range(0, 60, 3)]
            upstream.script = [
                Events(
                    [
                        *(delta(content=piece) for piece in pieces),
                        delta(tool_calls=[{"index": 0, **call}]),
                        delta("tool_calls"),
                    ]
                )
            ]
        else:
            upstream.script = [completion(f"Dear {tag}, and bob@example.com", tool_calls=[call])]
        answer = await node.chat(f"to {CANARY}", model="m-1", stream=stream)
        theirs = await node.chat("no address here", "globex", model="m-1", stream=stream)

    assert CANARY not in json.dumps([received.body for received in upstream.requests])
    assert CANARY in answer.text
    assert tag not in answer.text
    assert CANARY not in theirs.text
    if stream:
        frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for frame in frames for choice in frame["choices"]]
        content = "".join(one.get("content") or "" for one in deltas)
        calls = [one for each in deltas for one in each.get("tool_calls") or ()]
        assert deltas[0]["role"] == "assistant"
    else:
        message = answer.json()["choices"][0]["message"]
        content, calls = message["content"], message["tool_calls"]
    assert content == f"Dear {CANARY}, and [EMAIL]"
    assert json.loads(calls[0]["function"]["arguments"]) == {"to": CANARY}


async def test_a_blocked_answer_ends_with_content_filter_and_is_paid() -> None:
    upstream = ScriptedUpstream(
        [Events([delta(content="this is bob@exa"), delta(content="mple.com, and more "), delta("stop")])]
    )
    async with stack_b(backend(upstream), pii_modes={"email": "block"}) as node:
        answer = await node.chat("who is it?", model="m-1", stream=True)
        balance = await node.balance()

    frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames) == "this is "
    assert frames[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert frames[-1]["policy_outcome"] == {"decision": "blocked", "reasons": ["pii_output:email"]}
    assert "[DONE]" in answer.text
    assert balance.settled > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_every_surface_undoes_and_takes_out(path: str, *, stream: bool) -> None:
    body: dict[str, Json] = {"model": "m-1", "stream": stream}
    if path == "/v1/messages":
        body |= {"messages": [{"role": "user", "content": f"to {CANARY}"}], "max_tokens": 64}
    else:
        body |= {"input": f"to {CANARY}"}
    upstream = ScriptedUpstream([completion()])
    async with stack_b(backend(upstream), pii_modes={"email": "reversible"}) as node:
        tag = await sent_placeholder(node, upstream)
        text = f"Dear {tag},\nand bob@example.com"
        cut = text.index("_")
        upstream.script = [
            Events([delta(content=text[:cut]), delta(content=text[cut:]), delta("stop")])
            if stream
            else completion(text)
        ]
        answer = await node.post(path, body)

    assert CANARY not in json.dumps(upstream.requests[0].body)
    assert CANARY in answer.text
    assert "[EMAIL]" in answer.text
    assert tag[1:-1] not in answer.text
    assert "bob@example.com" not in answer.text
