"""Whatever place, surface, mode and disguise: what is redacted reaches no backend and no client in clear."""

import base64
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ports.pii import PiiMode
from ports.pii_text import readings
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard
from stack_b.backends.reach import Reach
from stack_b.redaction.nested import MAX_DEPTH
from tests.support.disguises import ANY_TEXT, DIGITS
from tests.support.in_process import in_process
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_b import stack_b
from tests.unit.test_policies_answers import shown_in

pytestmark = [pytest.mark.anyio]

CARD: Final = "4111111111111111"
NUMBER: Final = int(CARD)
CHAT, RESPONSES, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"
TOLD: Final = {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)}


PASSES: Final = {"up": Reach(passes=frozenset({"account", "x", "more", "seed"}))}
"""Members that the backend alone knows."""


def upstream_of(upstream: ScriptedUpstream) -> OpenAiCompatible:
    cards = (ModelCard(id="m-1", upstream="m-1"), ModelCard(id="e-1", upstream="e-1", embed=True))
    return OpenAiCompatible(name="up", base_url="http://up/v1", models=cards, dial_by=in_process(upstream))


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def tells(value: Any) -> bool:
    """Whether a reader of `value` learns the card's number, or most of one end of it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    inside = [
        base64.b64decode(run[: len(run) // 4 * 4]).decode("utf-8", "ignore")
        for run in re.findall(r"[A-Za-z0-9+/]{16,}", text)
    ]
    for one in (text, *inside):
        for reading in readings(one):
            compact = re.sub(r"[ .\n-]", "", reading.text)
            if CARD[:10] in compact or CARD[-10:] in compact:
                return True
    return False


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "pay", "arguments": arguments}}
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    return {"messages": [*said, {"role": "tool", "tool_call_id": "call_1", "content": "done"}]}


def refused(*parts: str) -> dict[str, Any]:
    content = [{"type": "refusal", "refusal": part} for part in parts]
    return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]}


def file(data: str) -> dict[str, Any]:
    return user([{"type": "file", "file": {"filename": "a.txt", "file_data": data}}])


LONG_TEXT: Final = "nothing but words " * 20
PLACES: Final[dict[str, dict[str, Any]]] = {
    "outermost number": {**user("hi"), "account": NUMBER},
    "outermost float": {**user("hi"), "account": float(NUMBER)},
    "outermost text": {**user("hi"), "account": CARD},
    "number in metadata": {**user("hi"), "metadata": {"card": NUMBER}},
    "float in a list": {**user("hi"), "x": {"y": [float(NUMBER)]}},
    "arguments, number": called(json.dumps({"to": "x", "card": NUMBER})),
    "arguments, float": called(json.dumps({"card": float(NUMBER)})),
    "arguments, text": called(json.dumps({"card": CARD})),
    "arguments in arguments": called(json.dumps({"inner": json.dumps({"card": NUMBER, "as": CARD})})),
    "arguments twice": called('{"card": ' + CARD + ', "card": 1}'),
    "tool's result": {"messages": [*called("{}")["messages"][:2], {"role": "tool", "content": json.dumps([NUMBER])}]},
    "refusal": refused(f"not {CARD}"),
    "refusal in parts": refused(f"not {CARD[:7]}", f"{CARD[7:]} no"),
    "refusal member": {
        "messages": [{"role": "assistant", "content": None, "refusal": CARD}, {"role": "user", "content": "x"}]
    },
    "data URL in a text": user(f"see data:text/plain;base64,{b64('it is ' + CARD)} there"),
    "data URL": user(f"data:text/plain;base64,{b64('it is ' + CARD)}"),
    "data URL, plain": user(f"data:text/plain,it%20is%20{CARD}"),
    "data URL of JSON": user(f"data:application/json;base64,{b64(json.dumps({'card': NUMBER}))}"),
    "data URL, around and in it": user(f"data:text/plain;name={CARD};base64,{b64('it is ' + CARD)}"),
    "file, around and in it": file(f"data:{CARD};base64,{b64('it is ' + CARD)}"),
    "file": file(f"data:text/plain;charset=utf-8;base64,{b64(LONG_TEXT + CARD)}"),
    "file of any kind": file(f"data:application/octet-stream;base64,{b64(LONG_TEXT + CARD)}"),
    "file without a kind": file(b64(LONG_TEXT + CARD)),
    "image that is a text": user(
        [{"type": "image_url", "image_url": {"url": f"data:text/html;base64,{b64(LONG_TEXT + CARD)}"}}]
    ),
    "short base64": user(b64(f"it is {CARD}")),
    "JSON": user(json.dumps({"a": [1, {"card": NUMBER}], "b": "é\n"}, indent=1)),
}  # fmt: skip


@pytest.mark.parametrize("body", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("mode", ["redact", "reversible", "block"])
async def test_no_place_of_a_request_passes_it(body: dict[str, Any], mode: PiiMode) -> None:
    upstream = ScriptedUpstream([completion("fine", usage=usage(7, 5))])
    async with stack_b(upstream_of(upstream), reaches=PASSES, pii_modes={"payment_card": mode}) as node:
        answer = await node.post(CHAT, {"model": "m-1", **body})

    assert answer.status_code == (403 if mode == "block" else 200), answer.text
    assert not any(tells(request.body) for request in upstream.requests)
    assert len(upstream.requests) == (0 if mode == "block" else 1)


SURFACES: Final[dict[str, tuple[str, Callable[[str], dict[str, Any]]]]] = {
    "responses": (RESPONSES, lambda text: {"input": text}),
    "responses, instructions": (RESPONSES, lambda text: {"input": "hi", "instructions": text}),
    "responses, parts": (
        RESPONSES,
        lambda text: {"input": [{"role": "user", "content": [{"type": "input_text", "text": text}]}]},
    ),
    "responses, refusal": (
        RESPONSES,
        lambda text: {
            "input": [
                {"role": "user", "content": "hi"},
                {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": text}]},
            ]
        },
    ),
    "responses, call": (
        RESPONSES,
        lambda text: {
            "input": [
                {"role": "user", "content": "hi"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps({"x": text})},
                {"type": "function_call_output", "call_id": "c", "output": text},
            ]
        },
    ),
    "messages": (MESSAGES, lambda text: {**user(text), "max_tokens": 9}),
    "messages, system": (MESSAGES, lambda text: {**user("hi"), "system": text, "max_tokens": 9}),
    "messages, use": (
        MESSAGES,
        lambda text: {
            "max_tokens": 9,
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"x": text}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": text}]},
            ],
        },
    ),
    "chat": (CHAT, user),
    "embeddings": (EMBEDDINGS, lambda text: {"input": [text, "other"], "more": text}),
}
EMBEDDED: Final = Whole(
    {"object": "list", "data": [{"embedding": [0.5], "index": 0}, {"embedding": [0.5], "index": 1}]}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    surface=st.sampled_from(sorted(SURFACES)),
    disguise=st.sampled_from(sorted(ANY_TEXT | DIGITS)),
    mode=st.sampled_from(["redact", "reversible"]),
    deep=st.integers(0, 2),
)
async def test_no_surface_passes_it_in_any_disguise(surface: str, disguise: str, mode: PiiMode, deep: int) -> None:
    path, write = SURFACES[surface]
    text = f"it is {(ANY_TEXT | DIGITS)[disguise](CARD)} they said"
    for _ in range(deep):
        text = json.dumps({"in": text}, ensure_ascii=False)
    upstream = ScriptedUpstream([EMBEDDED if path == EMBEDDINGS else completion("fine", usage=usage(7, 5))])
    async with stack_b(upstream_of(upstream), reaches=PASSES, pii_modes={"payment_card": mode}) as node:
        answer = await node.post(path, {"model": "e-1" if path == EMBEDDINGS else "m-1", **write(text)})

    assert answer.status_code == 200, answer.text
    [request] = upstream.requests
    assert not tells(request.body)
    if deep:
        for one in re.findall(r'"arguments": "((?:[^"\\]|\\.)*)"', json.dumps(request.body)):
            json.loads(json.loads(f'"{one}"'))


@pytest.mark.parametrize("mode", ["redact", "reversible"])
async def test_arguments_stay_json_and_a_number_comes_back_as_one(mode: PiiMode) -> None:
    given = (
        '{ "to": "Ann",\n "card": '
        + CARD
        + ', "note": "card '
        + CARD
        + '", "n": 1.50, "big": 12345678901234567890123 }'
    )
    upstream = ScriptedUpstream([completion("fine")])
    async with stack_b(upstream_of(upstream), reaches=PASSES, pii_modes={"payment_card": mode}) as node:
        await node.post(CHAT, {"model": "m-1", **called(given)})
        sent = upstream.requests[0].body["messages"][1]["tool_calls"][0]["function"]["arguments"]
        upstream.script[:] = [calling(sent)]
        answer = await node.post(CHAT, {"model": "m-1", **called(given)})
        upstream.script[:] = [
            Events(
                [delta(tool_calls=calling(sent).body["choices"][0]["message"]["tool_calls"]), delta("tool_calls"), TOLD]
            )
        ]
        streamed = await node.post(CHAT, {"model": "m-1", "stream": True, **called(given)})

    stands = json.loads(sent)["card"]
    assert sent.replace(f'"{stands}"', CARD).replace(json.loads(sent)["note"], f"card {CARD}") == given
    shown = json.loads(answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
    expected = NUMBER if mode == "reversible" else "[PAYMENT_CARD]"
    assert shown["card"] == expected
    assert shown["note"] == (f"card {CARD}" if mode == "reversible" else "card [PAYMENT_CARD]")
    assert shown["big"] == 12345678901234567890123
    calls = [call for call in re.findall(r'"arguments":("(?:[^"\\]|\\.)*")', streamed.text) if "Ann" in call]
    assert [json.loads(json.loads(call))["card"] for call in calls] == [expected]


def calling(arguments: str) -> Whole:
    call = {"index": 0, "id": "call_2", "type": "function", "function": {"name": "pay", "arguments": arguments}}
    return completion("", tool_calls=[call])


def test_json_in_json_is_kept_so_deep() -> None:
    assert MAX_DEPTH == 4


@pytest.mark.parametrize(
    "body",
    [
        {**user("hi"), "seed": NUMBER},
        {**user("hi"), "account": 4111111111111112, "x": [4111111111111112.5, 1e300, -1, True, None]},
        called('{"a": 1.50,  "b": [12345678901234567890123], "a": "\\u00e9"}'),
        user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoA" + "QUJD" * 100}}]),
        file("data:text/plain;base64," + b64(LONG_TEXT)),
        user("data:text/plain;base64,%%%, data:,x and 64, then &amp;lt; 100%25 \\\\u0041"),
        refused("no", "and no"),
    ],
)
async def test_what_is_clean_is_sent_as_it_is(body: dict[str, Any]) -> None:
    upstream = ScriptedUpstream([completion("fine", usage=usage(7, 5))])
    async with stack_b(upstream_of(upstream), reaches=PASSES) as node:
        answer = await node.post(CHAT, {"model": "m-1", **body})

    assert answer.json()["policy_outcome"]["decision"] == "allowed"
    assert {name: upstream.requests[0].body[name] for name in body} == body


async def test_a_text_in_a_data_url_stays_one() -> None:
    upstream = ScriptedUpstream([completion("fine")])
    async with stack_b(upstream_of(upstream), reaches=PASSES) as node:
        await node.post(CHAT, {"model": "m-1", **file(f"data:text/plain;base64,{b64('it is ' + CARD)}")})

    sent = upstream.requests[0].body["messages"][0]["content"][0]["file"]["file_data"]
    head, _, payload = sent.partition(",")
    assert head == "data:text/plain;base64"
    assert base64.b64decode(payload) == b"it is [PAYMENT_CARD]"


@pytest.mark.parametrize("number", ["4111111111111111.0", "4.111111111111111e15", "4111111111111111"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_number_that_a_model_gives_a_tool_is_looked_at_however_it_is_written(
    number: str, *, stream: bool
) -> None:
    arguments = f'{{"to": {{"account": {number}}}}}'
    call = {"id": "call_1", "type": "function", "function": {"name": "pay", "arguments": arguments}}
    script = (
        Events([delta(tool_calls=[{"index": 0, **call}]), delta("tool_calls"), TOLD]) if stream else calling(arguments)
    )
    async with stack_b(upstream_of(ScriptedUpstream([script])), reaches=PASSES) as node:
        answer = await node.post(CHAT, {"model": "m-1", "stream": stream, **user("hi")})

    assert answer.status_code == 200, answer.text
    assert "PAYMENT_CARD" in answer.text
    assert number not in answer.text


def in_texts(times: int) -> str:
    """Deep JSON in deep JSON."""
    text = CARD
    for _ in range(times):
        text = '{"a":' * 63 + json.dumps(text) + "}" * 63
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        "[" * 700 + CARD + "]" * 700,
        "[" * 100_000,
        '{"a": "\\ud800 ' + CARD + '"}',
        '{"a": "\\ud800", "n": ' + CARD + ', "b": 1e999}',
        '{"n": ' + "4" * 5_000 + "}",
        in_texts(6),
    ],
    ids=["deep", "deeper", "surrogate", "infinite", "long", "texts in texts"],
)
async def test_json_that_is_made_to_hurt_is_answered_and_tells_nothing(arguments: str) -> None:
    upstream = ScriptedUpstream([calling(arguments)])
    async with stack_b(upstream_of(upstream), reaches=PASSES) as node:
        answer = await node.post(CHAT, {"model": "m-1", **called(arguments)})

    assert answer.status_code == 200, answer.text
    assert not tells(answer.text)
    assert not tells(upstream.requests[0].body)


SAID: Final[dict[str, dict[str, Any]]] = {
    "refusal": {"refusal": f"not {CARD}"},
    "number": {"account": NUMBER},
    "float": {"account": {"x": float(NUMBER)}},
    "parts": {"parts": [{"type": "refusal", "refusal": CARD[:5]}, {"type": "text", "text": CARD[5:]}]},
    "data URL": {"file": {"file_data": f"data:text/plain;base64,{b64(LONG_TEXT + CARD)}"}},
    "data URL, around and in it": {"file": {"file_data": f"data:text/plain;n={CARD};base64,{b64(LONG_TEXT + CARD)}"}},
    "JSON": {"note": {"x": json.dumps({"card": NUMBER})}},
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID.keys())
@pytest.mark.parametrize("stream", [False, True])
async def test_no_place_of_an_answer_shows_it(said: dict[str, Any], *, stream: bool) -> None:
    whole = completion("fine", usage=usage(7, 5), **said)
    script = Events([delta(content="fine"), delta(**said), delta("stop"), TOLD]) if stream else whole
    async with stack_b(upstream_of(ScriptedUpstream([script]))) as node:
        answer = await node.post(CHAT, {"model": "m-1", "stream": stream, **user("hi")})

    assert answer.status_code == 200
    assert "fine" in answer.text
    assert not tells(answer.text)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["note", CARD, "prompt_tokens_details"])
async def test_no_usage_tells_it(path: str, name: str, *, stream: bool) -> None:
    said = usage(7, 5) | ({name: {"cached_tokens": 1, "of": CARD}} if name != CARD else {name: 1, "n": NUMBER})
    last = {**TOLD, "usage": said}
    script = Events([delta(content="fine"), delta("stop"), last]) if stream else completion("fine", usage=said)
    asked = {"input": "hi"} if path == RESPONSES else {**user("hi"), "max_tokens": 9}
    async with stack_b(upstream_of(ScriptedUpstream([script]))) as node:
        more = {"stream_options": {"include_usage": True}} if stream and path == CHAT else {}
        answer = await node.post(path, {"model": "m-1", "stream": stream, **asked, **more})
        settled = (await node.balance()).settled

    assert answer.status_code == 200
    assert "fine" in answer.text
    assert not tells(answer.text)
    assert settled == 12


@pytest.mark.parametrize("stream", [False, True])
async def test_a_denied_word_in_a_usage_is_left_out_with_it(*, stream: bool) -> None:
    deny = {"id": "no", "effect": "deny", "on": ["output"], "keywords": ["heron"]}
    said = usage(7, 5) | {"note": "a h\u0301eron"}
    script = (
        Events([delta(content="fine"), delta("stop"), {**TOLD, "usage": said}])
        if stream
        else completion("fine", usage=said)
    )
    async with stack_b(upstream_of(ScriptedUpstream([script])), rules=[deny]) as node:
        answer = await node.post(CHAT, {"model": "m-1", "stream": stream, **user("hi")})

    assert "fine" in answer.text
    assert "eron" not in answer.text


async def test_nothing_beside_embeddings_tells_it() -> None:
    data = [{"embedding": [0.5], "index": 0, "text": CARD, "object": CARD}]
    script = Whole(
        {"object": CARD, "data": data, "note": CARD, "n": NUMBER, "usage": {"prompt_tokens": 3, "note": CARD}}
    )
    async with stack_b(upstream_of(ScriptedUpstream([script]))) as node:
        answer = await node.post(EMBEDDINGS, {"model": "e-1", "input": "hi"})

    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["embedding"] == [0.5]
    assert not tells(answer.text)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([CHAT, RESPONSES, MESSAGES]),
    disguise=st.sampled_from(sorted(ANY_TEXT | DIGITS)),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    member=st.sampled_from(["content", "refusal"]),
)
async def test_no_stream_shows_it_in_any_disguise(path: str, disguise: str, cuts: list[int], member: str) -> None:
    text = f"it is {(ANY_TEXT | DIGITS)[disguise](CARD)} they said"
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    upstream = ScriptedUpstream(
        [Events([*(delta(**dict[str, Any]({member: piece})) for piece in pieces), delta("stop"), TOLD])]
    )
    asked = {"input": "hi"} if path == RESPONSES else {**user("hi"), "max_tokens": 9}
    async with stack_b(upstream_of(upstream), reaches=PASSES) as node:
        answer = await node.post(path, {"model": "m-1", "stream": True, **asked})

    assert answer.status_code == 200
    assert not tells(answer.text)
    if member == "content":
        assert "it is [PAYMENT_CARD]" in shown_in(path, answer.text)
