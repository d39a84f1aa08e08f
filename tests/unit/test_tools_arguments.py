from typing import Final

import msgspec
import pytest

from adapters.builtin_tools.arguments import ArgumentCheck
from adapters.builtin_tools.memory import fitting
from adapters.builtin_tools.tool import object_schema
from conformance.clock import EPOCH
from ports.errors import InvalidArgument
from ports.memory import Match, MemoryItem
from ports.messages import Json

CHECK: Final = ArgumentCheck(
    object_schema(
        {"query": {"type": "string", "maxLength": 5}, "limit": {"type": "integer", "minimum": 1}}, required=("query",)
    )
)


def refusal_of(arguments: Json) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refusal:
        CHECK(arguments)
    assert refusal.value.code == "tool_bad_arguments"
    return refusal.value


def test_arguments_that_fit_are_given_back() -> None:
    assert CHECK({"query": "abc", "limit": 2}) == {"query": "abc", "limit": 2}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({}, "the object lacks query"),
        ({"query": "abc", "other": 1}, "the object may only have query, limit"),
        ({"query": "abc", "limit": 0}, "limit must have minimum 1"),
        ({"query": "abc", "limit": True}, "limit must have type 'integer'"),
        ({"query": "abcdef"}, "query must have maxLength 5"),
        ({"query": 7}, "query must have type 'string'"),
        ([], "must be a JSON object"),
    ],
)
def test_a_refusal_names_the_place_and_the_rule(arguments: Json, hint: str) -> None:
    assert hint in refusal_of(arguments).message


def test_a_refusal_never_quotes_what_was_sent() -> None:
    assert "tell-no-one" not in refusal_of({"query": "tell-no-one", "limit": "tell-no-one"}).message


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "\udfff!"])
def test_text_that_no_store_takes_is_refused(text: str) -> None:
    refusal_of({"query": text})


def test_arguments_nested_too_deep_are_refused() -> None:
    nested: Json = "x"
    for _ in range(100):
        nested = [nested]

    refusal_of({"query": nested})


def test_matches_that_do_not_fit_the_output_are_left_out_and_it_says_so() -> None:
    matches = tuple(
        Match(item=MemoryItem(key=f"k{n}", value="\x01" * 100, updated_at=EPOCH), score=1.0) for n in range(5)
    )

    found = fitting(matches, max_bytes=2_000)

    assert [entry["key"] for entry in found["matches"]] == ["k0", "k1", "k2"]
    assert len(msgspec.json.encode(found)) <= 2_000
    assert found["truncated"] is True
    assert fitting(matches, max_bytes=200_000)["truncated"] is False
