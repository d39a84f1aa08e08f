"""Answers under policies: whatever the pieces, the same goes out, and nothing of what is denied."""

import json
import random
from typing import Any, Final, TypeAlias

import pytest

from ports.messages import Json
from ports.pii import PiiMode
from ports.policy import Rule
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard
from stack_b.policies.answer import Gate
from stack_b.policies.patterns import Search
from stack_b.policies.width import MAX_WIDTH
from tests.support.answers import two_cuts
from tests.support.in_process import in_process
from tests.support.scripted_upstream import Events, ScriptedUpstream, completion, delta, usage
from tests.support.stack_b import StackB, stack_b
from tests.support.writing_backend import Writing

pytestmark = [pytest.mark.anyio]

Cases: TypeAlias = tuple[str, str]


def tagged(text: str) -> str:
    """In characters that only a machine sees."""
    return "".join(chr(0xE0000 + ord(char)) for char in text)


SEARCHES: Final = (
    (Search(["blue heron"], [], bounded=True), "words"),
    (Search([], [r"AB-\d{2,4}\b", r"\bend$"], bounded=True), "patterns"),
)
TEXTS: Final[tuple[Cases, ...]] = (
    ("no harm in it, and %41 is an A", "no harm in it, and %41 is an A"),
    ("see a Blue\u200b Heron fly", "see a "),
    ("see \uff21\uff22-12\u200b34. blue heron", "see "),
    ("AB-12345 is none, AB-123 is", "AB-12345 is none, "),
    ("ab-1 is none; it is the end", "ab-1 is none; it is the "),
    ("the end of blue&#32;heron", "the end of "),
    ("the endless blue herons", "the endless blue herons"),
    ("so b\u0301l\u0336ue h\u0301eron", "so "),
    ("so blue\u2028heron", "so "),
    ("so " + tagged("blue heron") + " there", "so "),
    ("so b" + tagged("lu") + "e heron", "so "),
    ("so bl" + tagged("x") + "ue heron", "so "),
    ("an 100%2525 of it, &amp;#98;lue %2568eron", "an 100%2525 of it, "),
    ("na\u0308ive cafe\u0301, no harm", "na\u0308ive cafe\u0301, no harm"),
    ("e\u0301 %62lue heron", "e\u0301 "),
)


def through(pieces: tuple[str, ...]) -> tuple[str, str | None]:
    gate = Gate(SEARCHES)
    shown = "".join(gate.feed(piece) for piece in pieces)
    return shown + gate.end(), gate.denied


class TestGate:
    @pytest.mark.parametrize(("text", "shown"), TEXTS)
    def test_wherever_a_text_is_cut_the_same_goes_out(self, text: str, shown: str) -> None:
        whole = through((text,))
        assert whole[0] == shown
        assert (whole[1] is None) == (shown == text)
        for pieces in two_cuts(text):
            assert through(pieces) == whole, pieces
        assert through(tuple(text)) == whole

    @pytest.mark.parametrize(
        ("pattern", "text", "shown"),
        [
            (r"AB-\d{2,4}\b", "so AB-12345 is none", "so AB-12345 is none"),
            (r"AB-\d{2,4}\b", "so AB-1234 is one", "so "),
            ("(?i)ab$", "ab abc ab", "ab abc "),
            ("^ab", "xab ab", "xab ab"),
            ("ab|abcdef", "abc", ""),
        ],
    )
    def test_what_stands_around_a_match_is_known_before_it_is_decided(
        self, pattern: str, text: str, shown: str
    ) -> None:
        searches = ((Search([], [pattern], bounded=True), "it"),)
        for pieces in ((text,), tuple(text), *two_cuts(text)):
            gate = Gate(searches)
            assert "".join(gate.feed(piece) for piece in pieces) + gate.end() == shown, pieces

    def test_what_comes_before_goes_out_in_time(self) -> None:
        gate, shown = Gate(SEARCHES), ""
        window = max(search.width for search, _ in SEARCHES)
        for at, char in enumerate("lorem ipsum " * 100):
            shown += gate.feed(char)
            assert len(shown) >= at - window - 3

    def test_no_window_is_larger_than_what_may_be_held_back(self) -> None:
        search = Search([], ["a{" + str(MAX_WIDTH) + "}"], bounded=True)
        gate = Gate(((search, "x"),))
        shown = "".join(gate.feed("b") for _ in range(2 * MAX_WIDTH))

        assert len(shown) >= MAX_WIDTH - 3

    def test_random_texts_of_odd_pieces(self) -> None:
        draw = random.Random(3)  # noqa: S311 - no secret comes of it
        parts = (
            "blue",
            " ",
            "heron",
            "\u200b",
            "AB-",
            "12",
            "345",
            "end",
            "\u0301",
            "%20",
            "&#32;",
            ".",
            "é",
            "%2520",
            "\U000e0062",
            "lue",
        )
        for _ in range(2_000):
            pieces = tuple(draw.choices(parts, k=draw.randint(1, 9)))
            assert through(pieces) == through(("".join(pieces),)), pieces


# At the gateway.

DENY: Final = {"id": "no", "effect": "deny", "on": ["output"], "keywords": ["blue heron"]}
ENDS: Final = {
    "/v1/chat/completions": '"finish_reason":"content_filter"',
    "/v1/responses": '"incomplete_details":{"reason":"content_filter"}',
    "/v1/messages": '"stop_reason":"refusal"',
}
TOOLS: Final[dict[str, Json]] = {
    "/v1/chat/completions": [{"type": "function", "function": {"name": "pay_bill"}}],
    "/v1/responses": [{"type": "function", "name": "pay_bill", "parameters": {}}],
    "/v1/messages": [{"name": "pay_bill", "input_schema": {"type": "object"}}],
}


def upstream_of(upstream: ScriptedUpstream) -> OpenAiCompatible:
    card = ModelCard(id="m-1", upstream="m-1")
    return OpenAiCompatible(name="up", base_url="http://up/v1", models=(card,), dial_by=in_process(upstream))


async def ask(node: StackB, path: str, **members: Any) -> Any:
    said = {"input": "hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "hi"}]}
    most = {"max_tokens": 50} if path == "/v1/messages" else {}
    return await node.post(path, {"model": "m-1", **said, **most, **members})


def shown_in(path: str, text: str) -> str:
    """Every text of a stream, in order."""
    shown = ""
    for line in text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            if path == "/v1/chat/completions":
                shown += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            elif path == "/v1/responses":
                shown += event["delta"] if event["type"] == "response.output_text.delta" else ""
            elif event["type"] == "content_block_delta":
                shown += event["delta"].get("text", "")
    return shown


@pytest.mark.parametrize("path", sorted(ENDS))
async def test_a_stream_stops_before_what_is_denied_at_every_split_and_surface(path: str) -> None:
    text = "it is a Blue\u200b Heron, I say"
    told = {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)}
    upstream = ScriptedUpstream([completion()])
    async with stack_b(upstream_of(upstream), rules=[DENY]) as node:
        for cut in range(1, len(text), 3):
            pieces = (text[:cut], text[cut:])
            upstream.script[:] = [Events([*(delta(content=piece) for piece in pieces), delta("stop"), told])]
            answer = await ask(node, path, stream=True)

            assert shown_in(path, answer.text) == "it is a ", cut
            assert ENDS[path] in answer.text
            assert "eron" not in answer.text
        settled = (await node.balance()).settled

    assert settled == 12 * len(range(1, len(text), 3))


async def test_each_choice_is_decided_by_itself() -> None:
    bad = {"index": 1, "message": {"role": "assistant", "content": "a blue heron"}, "finish_reason": "stop"}
    whole = completion("fine", usage=usage(7, 5))
    whole.body["choices"].append(bad)
    async with stack_b(upstream_of(ScriptedUpstream([whole])), rules=[DENY]) as node:
        answer = (await node.chat(model="m-1", n=2)).json()

    said = [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]
    assert said == [("fine", "stop"), ("a ", "content_filter")]
    assert answer["policy_outcome"] == {"decision": "blocked", "reasons": ["rule_output:tenant/no"]}


async def test_what_is_denied_is_not_told_by_token_probabilities_or_other_members() -> None:
    whole = completion(
        "a blue heron", usage=usage(7, 5), reasoning_content="think: blue heron", annotations=["blue heron"]
    )
    whole.body["choices"][0] |= {"logprobs": {"content": [{"token": "heron"}]}, "notes": "blue heron"}
    async with stack_b(upstream_of(ScriptedUpstream([whole])), rules=[DENY]) as node:
        answer = await node.chat(model="m-1")
        counted = node.deps.metrics.render().decode()

    assert "heron" not in answer.text
    assert 'agentos_policy_blocks_total{reason="answer"} 1.0' in counted


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_stands_beside_the_choices_is_decided_on_too(*, stream: bool) -> None:
    """Some servers put quotations, search results or reasoning there."""
    beside = {"citations": ["seen: a blue heron"], "provider_notes": "ann@example.com says so", "tier": "fast"}
    whole = completion("fine", usage=usage(7, 5))
    whole.body.update(beside)
    told = {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5), **beside}
    chunks = [
        delta(role="assistant", content=""),
        *(delta(content=text) for text in ("it ", "is ", "fine")),
        delta("stop"),
    ]
    streamed = Events([*({**chunk, **beside} for chunk in chunks), told])
    async with stack_b(upstream_of(ScriptedUpstream([streamed if stream else whole])), rules=[DENY]) as node:
        answer = await node.chat(model="m-1", stream=stream)

    assert "fine" in answer.text
    assert "heron" not in answer.text
    assert "ann@example.com" not in answer.text
    assert "[EMAIL] says so" in answer.text
    assert '"tier":"fast"' in answer.text
    assert "rule_output:tenant/no" in answer.text
    assert "pii_output:email" in answer.text


async def test_a_placeholder_that_is_undone_is_decided_on_as_the_client_reads_it() -> None:
    rule = {**DENY, "keywords": ["ann@example.com"]}
    answers = ScriptedUpstream([completion()])
    async with stack_b(upstream_of(answers), pii_modes={"email": "reversible"}, rules=[rule]) as node:
        await node.chat("to ann@example.com", model="m-1")
        tag = answers.requests[0].body["messages"][0]["content"].removeprefix("to ")
        answers.script[:] = [completion(f"mail {tag} now")]
        answer = (await node.chat("to ann@example.com", model="m-1")).json()

    assert answer["choices"][0]["message"]["content"] == "mail "
    assert answer["choices"][0]["finish_reason"] == "content_filter"


# Calls.

PAYS: Final = {
    "id": "pays-known",
    "effect": "allow",
    "on": ["call"],
    "functions": ["pay_bill"],
    "arguments": [{"path": "to", "values": ["ann", "ben"]}, {"path": "amount", "least": 0, "most": 500}],
}
NO_OTHER: Final = {"id": "no-other", "effect": "deny", "on": ["call"], "functions": ["*"]}


def called(*calls: tuple[str, str], stream: bool) -> Any:
    made = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    if not stream:
        return completion("so", usage=usage(7, 5), tool_calls=made)
    pieces = [delta(content="so")]
    for number, call in enumerate(made):
        function: dict[str, Json] = call["function"]  # type: ignore[assignment]  # it is
        pieces.append(delta(tool_calls=[{"index": number, **call, "function": {"name": function["name"]}}]))
        pieces += [
            delta(tool_calls=[{"index": number, "function": {"arguments": one}}]) for one in function["arguments"]
        ]
    return Events([*pieces, delta("tool_calls"), {"id": "up", "choices": [], "usage": usage(7, 5)}])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", sorted(ENDS))
@pytest.mark.parametrize(
    ("calls", "passes"),
    [
        ([("pay_bill", '{"to": "ann", "amount": 20}')], True),
        ([("pay_bill", '{"to": "mallory", "amount": 20}')], False),
        ([("pay_bill", '{"to": "ann", "amount": 501}')], False),
        ([("pay_bill", '{"to": "ann", "amount": "20"}')], False),
        ([("pay_bill", '{"to": "ann"}')], False),
        ([("pay_bill", '{"to": "mallory", "to": "ann", "amount": 20}')], False),
        ([("pay_bill", '{"to": "ann", "amount": 20}'), ("wipe", "{}")], False),
        ([("Pay_Bill", '{"to": "ann", "amount": 20}')], False),
    ],
)
async def test_a_call_comes_whole_and_permitted_or_not_at_all(
    calls: list[tuple[str, str]], path: str, *, passes: bool, stream: bool
) -> None:
    upstream = ScriptedUpstream([called(*calls, stream=stream)])
    async with stack_b(upstream_of(upstream), rules=[PAYS, NO_OTHER]) as node:
        answer = await ask(node, path, stream=stream, tools=TOOLS[path])
        balance = await node.balance()

    assert answer.status_code == 200, answer.text
    assert ('"decision":"allowed"' in answer.text) is passes
    assert (ENDS[path] not in answer.text) is passes
    # What the request offered is repeated by responses; no call is there.
    assert any(name in answer.text for name in ("call_0", '"arguments"')) is passes
    assert "mallory" not in answer.text
    assert "so" in answer.text
    assert (balance.settled, balance.held) == (12, 0)


NO_WIPE: Final = {"id": "no", "effect": "deny", "on": ["offer", "call"], "functions": ["wipe"]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("call", "passes"),
    [
        ({"type": "custom", "custom": {"name": "wipe", "input": "all of it"}}, False),
        ({"type": "custom", "custom": {"name": "wipe", "input": ""}, "function": {"name": "get_x"}}, False),
        ({"type": "custom", "custom": {"name": "note", "input": "all of it"}}, True),
    ],
)
async def test_a_custom_tool_is_called_by_its_name_as_any_other(
    call: dict[str, Any], *, passes: bool, stream: bool
) -> None:
    call = {"id": "call_0", **call}
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
    first = {**call, "index": 0, "custom": {**call["custom"], "input": ""}}
    pieces = [{"index": 0, "custom": {"input": part}} for part in call["custom"]["input"]]
    chunks = [delta(role="assistant", tool_calls=[first]), *(delta(tool_calls=[one]) for one in pieces)]
    said = Events([*chunks, delta("tool_calls"), {"choices": [], "usage": usage(5, 7)}])
    upstream = ScriptedUpstream([said if stream else completion(usage=usage(5, 7), **message)])
    async with stack_b(upstream_of(upstream), rules=[NO_WIPE]) as node:
        answer = await node.chat(model="m-1", stream=stream)

    assert ('"call_0"' in answer.text) is passes
    assert ('"finish_reason":"content_filter"' in answer.text) is not passes
    assert ('"input":"all of it"' in answer.text) is passes


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_denied_in_an_answer_is_denied_in_arguments_text(*, stream: bool) -> None:
    upstream = ScriptedUpstream([called(("note", '{"text": "a blue\\u0020heron"}'), stream=stream)])
    async with stack_b(upstream_of(upstream), rules=[DENY]) as node:
        answer = await ask(node, "/v1/chat/completions", stream=stream)

    assert '"finish_reason":"content_filter"' in answer.text
    assert "heron" not in answer.text


async def test_a_function_call_of_the_old_form_is_decided_too() -> None:
    message = {"content": None, "function_call": {"name": "wipe", "arguments": "{}"}}
    old = completion("", usage=usage(7, 5), **message)
    pieces = [delta(function_call={"name": "wi"}), delta(function_call={"name": "pe", "arguments": "{}"})]
    streamed = Events([*pieces, delta("function_call"), {"id": "up", "choices": [], "usage": usage(7, 5)}])
    upstream = ScriptedUpstream([old, streamed])
    for modes in (
        {},
        dict.fromkeys(("email", "phone", "payment_card", "iban", "secret", "us_ssn", "ip_address"), "allow"),
    ):
        upstream.script[:] = [old, streamed]
        async with stack_b(upstream_of(upstream), pii_modes=modes, rules=[NO_OTHER]) as node:  # type: ignore[arg-type]
            for stream in (False, True):
                answer = await node.chat(model="m-1", stream=stream)
                assert "wipe" not in answer.text
                assert '"finish_reason":"content_filter"' in answer.text


@pytest.mark.parametrize("choices", [1, 2])
@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("by", ["policy", "pii"])
async def test_what_nobody_will_see_is_not_paid_where_closing_it_stops_the_bill(
    by: str, choices: int, *, stops: bool
) -> None:
    backend = Writing(tokens=500, stops_billing=stops, text="a blue heron, says ann@example.com now. ")
    modes: dict[str, PiiMode] = {} if by == "policy" else {"email": "block"}
    async with stack_b(backend, rules=[DENY] if by == "policy" else [], pii_modes=modes) as node:
        answer = await node.chat(model="m-1", stream=True, n=choices, max_tokens=500)
        balance = await node.balance()

    chunks = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line[6:7] == "{"]
    ends = [one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]]
    assert ends == ["content_filter"] * choices
    assert answer.text.rstrip().endswith("data: [DONE]")
    if stops:
        assert backend.written < 100 * choices
    else:
        assert (backend.written, backend.closed) == (500 * choices, 0)
    assert balance.held == 0
    if not stops:
        assert balance.settled == backend.reported


@pytest.mark.parametrize(
    ("condition", "arguments", "applies"),
    [
        ({"path": "to", "patterns": ["[a-z]+@acme\\.test"]}, '{"to": "ann@acme.test"}', True),
        ({"path": "to", "patterns": ["[a-z]+@acme\\.test"]}, '{"to": "ann@acme.test.evil"}', False),
        ({"path": "to", "patterns": ["[a-z]+@acme\\.test"]}, '{"to": "Ann@acme.test"}', False),
        ({"path": "a.*.b", "values": [1]}, '{"a": [{"b": 1}, {"b": 1}]}', True),
        ({"path": "a.*.b", "values": [1]}, '{"a": [{"b": 1}, {"b": 2}]}', False),
        ({"path": "on", "values": [True]}, '{"on": 1}', False),
        ({"path": "a.*", "most": 5}, '{"a": {"x": 1, "y": 9}}', False),
        ({"path": "to", "values": ["x"]}, "[]", False),
        ({"path": "to", "values": ["x"]}, '{"to": "x"', False),
        ({"path": "to", "values": ["x"]}, "", False),
    ],
)
class TestArguments:
    def test_an_allow_is_read_narrowly(self, condition: Any, arguments: str, *, applies: bool) -> None:
        assert rule("allow", condition).takes(arguments) is applies


@pytest.mark.parametrize(
    ("condition", "arguments", "applies"),
    [
        ({"path": "to", "patterns": [".*evil.*"]}, '{"to": "the EV\\u200bIL one"}', True),
        ({"path": "a.*.b", "values": [1]}, '{"a": [{"b": 2}, {"b": 1}]}', True),
        ({"path": "amount", "least": 500}, '{"amount": "900"}', True),
        ({"path": "amount", "least": 500}, '{"amount": 1}', False),
        ({"path": "to", "values": ["x"]}, '{"to": "y"}', False),
        ({"path": "to", "values": ["x"]}, '{"to": "x", "to": "y"}', True),
        ({"path": "to", "values": ["x"]}, "not JSON", True),
        ({"path": "to", "values": ["x"]}, "{}", False),
        ({"path": "to", "values": ["mallory"]}, '{"to": " Mallory"}', True),
        ({"path": "to", "values": ["mallory"]}, '{"to": "ｍａｌｌｏｒｙ"}', True),
        ({"path": "to", "values": ["mallory"]}, '{"to": ["ann", "mallory"]}', True),
        ({"path": "to", "values": ["mallory"]}, '{"to": {"name": "mallory"}}', True),
        ({"path": "to", "values": ["mallory"]}, '{"to": ["ann"]}', False),
        ({"path": "amount", "values": [500]}, '{"amount": "500.0"}', True),
        ({"path": "force", "values": [True]}, '{"force": "true"}', True),
        ({"path": "force", "values": [True]}, '{"force": 1}', False),
        ({"path": "id", "patterns": ["5\\d"]}, '{"id": 55}', True),
        ({"path": "amount", "most": 10}, '{"amount": [50, 5]}', True),
    ],
)
def test_a_deny_is_read_widely(condition: Any, arguments: str, *, applies: bool) -> None:
    assert rule("deny", condition).takes(arguments) is applies


def rule(effect: str, condition: Any) -> Any:
    import msgspec

    from stack_b.policies.rules import CompiledRule

    said = {"id": "one", "effect": effect, "on": ["call"], "functions": ["f"], "arguments": [condition]}
    return CompiledRule("p", msgspec.convert(said, Rule), "call")
