"""From the wire to the canonical request: what is taken, and what is refused with which member."""

from typing import Any

import pytest

from ports.errors import InvalidArgument
from stack_b.http.parse import chat_call, embed_call
from stack_b.limits import Limits
from stack_b.members import STEERING, WIDENING

LIMITS = Limits()
HELLO = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "t"}}


def chat(**members: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [HELLO], **members}


def test_what_a_backend_may_know_is_kept_and_what_is_ours_is_not() -> None:
    call = chat_call(
        chat(
            n=2,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0.5,
            reasoning_effort="low",
        ),
        LIMITS,
    )

    assert call.members == {"messages": [HELLO], "temperature": 0.5, "reasoning_effort": "low"}
    assert (call.model, call.choices, call.max_tokens) == ("m", 2, 5)
    assert (call.stream, call.include_usage) == (True, True)


def test_both_spellings_of_the_limit_may_agree() -> None:
    assert chat_call(chat(max_tokens=7, max_completion_tokens=7), LIMITS).max_tokens == 7
    assert chat_call(chat(max_completion_tokens=7), LIMITS).max_tokens == 7
    assert chat_call(chat(max_tokens=None), LIMITS).max_tokens is None


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"messages": [HELLO]}, "$"),
        (chat(model=""), "$.model"),
        (chat(model=7), "$.model"),
        (chat(messages=[]), "$.messages"),
        (chat(messages="hello"), "$.messages"),
        (chat(messages=[{"role": "king", "content": "x"}]), "$.messages[0].role"),
        (chat(messages=[{"role": "user", "content": 7}]), "$.messages[0].content"),
        (
            chat(messages=[{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "t"}}]}]),
            "$.messages[0]",
        ),
        (chat(messages=[HELLO] * 2_049), "$.messages"),
        (chat(tools=[TOOL] * 129), "$.tools"),
        (chat(tools=[TOOL] * 100, functions=[{"name": "f"}] * 29), "$.tools"),
        (chat(functions="f"), "$.functions"),
        (chat(stop=["a"] * 5), "$.stop"),
        (chat(stop=7), "$.stop"),
        (chat(n=9), "$.n"),
        (chat(n=0), "$.n"),
        (chat(logit_bias={str(n): 1 for n in range(301)}), "$.logit_bias"),
        (chat(max_tokens=-1), "$.max_tokens"),
        (chat(max_tokens=0), "$.max_tokens"),
        (chat(max_tokens=2**40), "$.max_tokens"),
        (chat(max_tokens="100"), "$.max_tokens"),
        (chat(max_tokens=True), "$.max_tokens"),
        (chat(max_tokens=1.5), "$.max_tokens"),
        (chat(max_completion_tokens=131_073), "$.max_completion_tokens"),
        (chat(max_tokens=5, max_completion_tokens=6), "$.max_tokens"),
        (chat(temperature="hot"), "$.temperature"),
        (chat(temperature=2.5), "$.temperature"),
        (chat(stream="yes"), "$.stream"),
        (chat(stream_options={"include_usage": 1}), "$.stream_options.include_usage"),
        *((chat(**{name: None}), f"$.{name}") for name in (*STEERING, *WIDENING)),
    ],
)
def test_a_chat_that_is_not_taken_names_the_member(body: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        chat_call(body, LIMITS)

    assert refused.value.code == "validation_failed"
    assert refused.value.details["path"].startswith(path)


def test_one_text_or_many_are_embedded_in_the_encoding_asked_for() -> None:
    one = embed_call({"model": "m", "input": "a", "user": "u"}, LIMITS)
    many = embed_call({"model": "m", "input": ["a", "b"], "encoding_format": "base64"}, LIMITS)

    assert (one.inputs, one.encoding, one.members) == (("a",), "float", {"user": "u"})
    assert (many.inputs, many.encoding) == (("a", "b"), "base64")


@pytest.mark.parametrize(
    "given",
    [[], "", ["a", ""], [1, 2, 3], [[1, 2]], ["a", 7], None, {"a": 1}, ["a"] * 2_049],
    ids=["none", "empty", "one-empty", "tokens", "token-lists", "mixed", "null", "object", "too-many"],
)
def test_an_embedding_without_plain_text_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        embed_call({"model": "m", "input": given}, LIMITS)

    assert refused.value.code == "validation_failed"
    assert refused.value.details["path"].startswith("$.input")
