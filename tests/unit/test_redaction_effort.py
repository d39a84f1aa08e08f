"""What a small request costs to look through: never so much that others wait for it."""

import time
from typing import Any, Final

import pytest

from adapters.regex_pii import RegexPii
from conformance.people import ACME
from ports.errors import InvalidArgument
from ports.messages import Json
from ports.pii import Span
from stack_b.inspection.effort import MOST_HERE, effort_of
from stack_b.policies.rules import texts_of
from stack_b.policy import decide
from stack_b.redaction.parts import is_cut
from stack_b.redaction.spans import rewritten
from stack_b.redaction.weight import LEAST, LONGEST_FOLDED, check_weight
from tests.support.stack_b import stack_b

CHAT = "/v1/chat/completions"

MANY = 12_000


class TestMemberNames:
    def test_as_many_names_as_fit_that_become_one_are_numbered_in_no_time(self) -> None:
        names = [f"user{number}@example.com" for number in range(MANY)]
        replacements = dict.fromkeys(names, "[EMAIL]")
        started = time.process_time()

        shown = rewritten(dict.fromkeys(names, 1), replacements)

        assert list(shown)[:3] == ["[EMAIL]", "[EMAIL]_2", "[EMAIL]_3"]
        assert len(shown) == MANY
        # It took 10 s and more to try each number again for each name.
        assert time.process_time() - started < 2

    def test_a_number_that_is_taken_is_left_out(self) -> None:
        given = {"[EMAIL]_2": 0, "a@example.com": 1, "b@example.com": 2, "[EMAIL]": 3, "[EMAIL]_4": 4}
        names = dict.fromkeys(("a@example.com", "b@example.com"), "[EMAIL]")

        shown = rewritten(given, names)

        assert list(shown.values()) == [0, 1, 2, 3, 4]


class TestParts:
    def test_as_many_parts_as_fit_with_something_in_each_are_compared_in_no_time(self) -> None:
        parts = ["a@b.example " for _ in range(MANY)]
        spans = [Span(start=12 * at, end=12 * at + 11, kind="email") for at in range(MANY)]
        started = time.process_time()

        assert not is_cut(spans, parts)

        # It took 5 s and more to compare each with each.
        assert time.process_time() - started < 1

    def test_what_goes_over_an_end_is_seen_and_what_stops_there_is_not(self) -> None:
        parts = ["", "abc", "", "def", ""]

        assert not is_cut([Span(start=0, end=3, kind="email"), Span(start=3, end=6, kind="email")], parts)
        assert is_cut([Span(start=0, end=2, kind="email"), Span(start=2, end=4, kind="email")], parts)


def said(text: Json) -> dict[str, Json]:
    return {"messages": [{"role": "user", "content": text}]}


LIMIT = 10_000
BESIDE = 4 * LEAST
"""The names of `said`, and its role."""


class TestWeight:
    @pytest.mark.parametrize(
        ("most", "one_more"),
        [
            (said("x" * (LIMIT - BESIDE)), said("x" * (LIMIT - BESIDE + 1))),
            # Short ones take as long as longer ones.
            (said(["x"] * ((LIMIT - BESIDE) // LEAST)), said(["x"] * ((LIMIT - BESIDE) // LEAST + 1))),
            (said([1] * ((LIMIT - BESIDE) // LEAST)), said([1] * ((LIMIT - BESIDE) // LEAST + 1))),
            # What one character stands for is looked through in its place.
            (said("\ufdfa" * 500), said("\ufdfa" * (LIMIT // LONGEST_FOLDED))),
        ],
        ids=["text", "texts", "numbers", "expanding"],
    )
    def test_as_much_as_the_limit_is_taken_and_no_more(self, most: Json, one_more: Json) -> None:
        check_weight(most, LIMIT)

        with pytest.raises(InvalidArgument) as refused:
            check_weight(one_more, LIMIT)
        assert (refused.value.code, refused.value.details) == ("payload_too_large", {"inspected_chars": LIMIT})

    def test_media_have_no_weight_and_what_only_stands_there_has(self) -> None:
        def image(data: str) -> Json:
            return said([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}])

        check_weight(image("iVBORw0KGgoA" + "QUJD" * LIMIT), LIMIT)

        with pytest.raises(InvalidArgument):
            check_weight(image("QUJD" * LIMIT), LIMIT)

    @pytest.mark.anyio
    @pytest.mark.parametrize("path", [CHAT, "/v1/policy/check"])
    async def test_a_body_that_is_too_long_to_look_through_is_refused_at_once(self, path: str) -> None:
        body: dict[str, Any] = {"model": "agentos-demo", **said("\ufdfa" * 1_000_000)}
        async with stack_b() as node:
            started = time.process_time()
            answer = await node.post(path, body)

        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
        # Looking through it took 10 s and nearly a gigabyte.
        assert time.process_time() - started < 3


PROSE: Final = "the quick brown fox jumps over it and " * 1_600
DIGITS: Final = "4111 1111 1111 1111 " * 200
"""By which effort is measured."""


async def seconds(text: str) -> float:
    """Of the processor, to look through it for personal data and for what policies name; the least of a few times."""
    members: dict[str, Json] = {"model": "m-1", **said(text)}
    taken: list[float] = []
    for _ in range(5):
        started = time.process_time()
        await decide(RegexPii(), ACME, members)
        texts_of(members)
        taken.append(time.process_time() - started)
    return min(taken)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "sign",
    ["\u00e9", "e\u0301", "\u200b", "\ufdfa", "\U000e0041", "\u202e", "&amp;", "&lt;b&gt;", "%41", "\\n", "\\u0041"],
    ids=["accent", "mark", "joiner", "expanding", "tag", "direction", "html", "html twice", "url", "json", "unicode"],
)
async def test_one_sign_makes_no_prose_dear_that_is_looked_through_where_everybody_waits(sign: str) -> None:
    text = PROSE[:60_000] + sign
    assert effort_of(text) <= MOST_HERE

    # It took up to fifteen times as long, one in a text was enough.
    assert await seconds(text) < 2.5 * await seconds(DIGITS)
