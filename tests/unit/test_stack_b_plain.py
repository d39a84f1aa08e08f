"""A request that is nothing but texts and settings: what its shape says of it is what is found by looking."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from adapters.regex_pii.detector import RegexPii
from conformance.people import ACME
from ports.errors import InvalidArgument
from stack_b.budget.estimate import chat_ask, check_thoughts
from stack_b.canonical import ChatCall, texts_in
from stack_b.http.parse import _any_call, chat_call
from stack_b.limits import Limits
from stack_b.policy import decide
from stack_b.redaction.rules import PiiRules
from stack_b.redaction.spans import Texts, is_looked_at
from stack_b.redaction.weight import _weight, check_weight, weight_of_plain

pytestmark = [pytest.mark.anyio]

LIMITS = Limits()
CARD = "4111 1111 1111 1111"
SAID = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "", "user", "messages", CARD, "write to ann@example.com", "\ufdfa\ufdfb", "aW5zaWRlOiBhbm5AZXhhbXBsZS5jb20=",
            '{"to": "ann@example.com"}', "data:text/plain;base64,YW5uQGV4YW1wbGUuY29tIGlzIHdobw==", "A" * 300,
        ]
    ),
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]), "content": SAID}
)
SETTINGS: dict[str, Any] = {
    "n": st.none() | st.integers(1, 4),
    "max_tokens": st.none() | st.integers(1, 1_000),
    "temperature": st.none() | st.floats(0, 2) | st.integers(0, 2),
    "top_p": st.none() | st.floats(0, 1),
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "stream": st.none() | st.booleans(),
    "stream_options": st.none() | st.just({"include_usage": True}),
}
PLAIN = st.fixed_dictionaries(
    {"model": st.sampled_from(["m-1", "x"]), "messages": st.lists(MESSAGE, min_size=1, max_size=4)}, optional=SETTINGS
)
MORE: dict[str, Any] = {
    "user": "ann@example.com",
    "metadata": {"agent_id": "ann@example.com"},
    "presence_penalty": 1e12,
    "stop": [CARD],
    "think": 10**6,
    "tools": [{"type": "function", "function": {"name": "f", "description": CARD}}],
    "messages": [{"role": "user", "content": "hello", "name": "ann@example.com"}],
    "temperature": 1e12,
    "files": [CARD],
}
"""Members that make a body more than plain."""


def looked_through(call: ChatCall) -> ChatCall:
    """The same, with nothing known of it."""
    return replace(call, plain=None)


@given(PLAIN)
def test_what_the_parser_makes_of_it_is_the_same(body: dict[str, Any]) -> None:
    call = chat_call(body, LIMITS)

    assert call.plain is not None
    assert looked_through(call) == _any_call(body, LIMITS)


@given(PLAIN)
def test_its_texts_are_all_that_there_is_to_look_at(body: dict[str, Any]) -> None:
    call = chat_call(body, LIMITS)
    gathered = Texts(call.members)

    assert gathered.found == [text for text in texts_in(call, call.members) or () if is_looked_at(text)]
    assert not gathered.numbers
    assert not gathered.parted


@given(PLAIN)
def test_it_weighs_and_holds_as_much(body: dict[str, Any]) -> None:
    call = chat_call(body, LIMITS)
    texts = texts_in(call, call.members)

    assert texts is not None
    assert weight_of_plain(call.members, texts) == _weight(call.members)
    ask = chat_ask(call, LIMITS)
    assert ask == chat_ask(looked_through(call), LIMITS)
    check_thoughts(looked_through(call), ask)


@given(PLAIN, st.sampled_from([{}, {"email": "block"}, {"email": "reversible"}, {"email": "allow"}]))
async def test_what_is_found_in_it_is_the_same(body: dict[str, Any], modes: dict[str, Any]) -> None:
    call, rules = chat_call(body, LIMITS), PiiRules(modes=modes, key=b"k")

    known = await decide(RegexPii(), ACME, call.members, rules, texts_in(call, call.members))
    looked = await decide(RegexPii(), ACME, call.members, rules)

    assert (known.outcome, known.findings, known.value) == (looked.outcome, looked.findings, looked.value)
    assert bool(known.placeholders) is bool(looked.placeholders)


@pytest.mark.parametrize("name", MORE)
async def test_whoever_says_more_is_looked_through(name: str) -> None:
    body = {"model": "m-1", "messages": [{"role": "user", "content": "hello"}], name: MORE[name]}
    try:
        call = chat_call(body, LIMITS)
    except InvalidArgument:
        return

    assert call.plain is None


def test_of_other_members_nothing_is_known() -> None:
    call = chat_call({"model": "m-1", "messages": [{"role": "user", "content": "hello"}]}, LIMITS)

    assert texts_in(call, call.members) == ("hello",)
    assert texts_in(call, {**call.members}) is None
    changed = replace(call, members={**call.members, "user": CARD})
    assert texts_in(changed, changed.members) is None


def test_what_is_too_heavy_is_refused_with_its_weight() -> None:
    call = chat_call({"model": "m-1", "messages": [{"role": "user", "content": "word " * 100}]}, LIMITS)

    with pytest.raises(InvalidArgument) as refused:
        check_weight(call.members, 500, texts_in(call, call.members))

    assert refused.value.code == "payload_too_large"


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.0, 1.5, "1", "", 1e18, 10**8, 2**63 - 1, [], {}, [1], {"include_usage": True},
    {"include_usage": 1}, {"include_usage": True, "x": CARD},
)  # fmt: skip


@pytest.mark.parametrize("name", ["model", *SETTINGS, "max_completion_tokens", "messages"])
def test_what_is_nearly_plain_is_taken_or_refused_with_the_same_words(name: str) -> None:
    def made(by: Callable[[dict[str, Any], Limits], ChatCall], body: dict[str, Any]) -> object:
        try:
            return looked_through(by(body, LIMITS))
        except InvalidArgument as refused:
            return (refused.code, refused.message, refused.details)

    said = [{"role": role, "content": text} for role in ("user", "tool", "nobody", None) for text in ("hello", *ODD)]
    values = ODD if name != "messages" else (*ODD, *([one] for one in said), [{"role": "user"}], [said[0]] * 20_000)
    for value in values:
        body = {"model": "m-1", "messages": said[:1], name: value}

        assert repr(made(chat_call, body)) == repr(made(_any_call, body)), value
