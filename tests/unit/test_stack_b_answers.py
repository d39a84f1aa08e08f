"""Answers: however a model cuts its text, the client reads the same, and nothing it shouldn't."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.regex_pii import RegexPii, find
from conformance.people import ACME, GLOBEX
from ports.model import PolicyOutcome
from ports.pii import PiiMode
from ports.pii_rules import seam
from stack_b.chunks import written_out
from stack_b.redaction.answer import Answer
from stack_b.redaction.rules import rules_for
from stack_b.redaction.stream import MAX_HELD, TextStream
from tests.support.answers import asked, lens, rules, told, two_cuts

CARD = "4111 1111 1111 1111"
KEY = "sk-" + "aB3dE5gH7jK9mN1pQ3sT5vW7"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIB ann word\nOgIB\n-----END RSA PRIVATE KEY-----"

REVERSIBLE = rules(email="reversible", payment_card="reversible", secret="reversible")

TEXTS = (
    "Bearer ann@x.org今天" + CARD,
    f"Write to ann@example.com or pay with {CARD}, both are fine.",
    "IBAN: DE89 3704 0044 0532 0130 00, call +49 (0)30 901820 now; her ssn was really 536221234!",
    "password = hunter2x and Bearer abc123def456, see postgres://app:hunter2@db/x today",
    f"key {KEY} and\n{PEM}\nthat was it",
    "ann&#64;example.com, ann\\u0040example.com, a\u200bnn@example.com; 4111\u00a01111\u00a01111\u00a01111 ok",
    "今天天气很好,请联系ann@example.com谢谢,再见。 version 1.2.3 and 17 rows of 1,234,567",
    "(212) 555-0142 is a number, US 12 is none; AND THEN GB29 NWBK 6016 1331 9268 19 WAS IT",
)

PIECES = (
    "ann@example.com", CARD, "4111111111111111", "DE89 3704 0044 0532 0130 00", "+49 30 901820", "536-22-1234", KEY,
    "ssn is ", "536221234", "password: ", "hunter2x", "the plain words ", " ", "\n", ", ", ". ", "-", "1", "12 345 ",
    "US", "tok ", "Ünï ", "今天", "&#64;", "%40", "\\u0040", "\u200b", "@", "[", "]", "[EMAIL]", "-----BEGIN ",
    "-----END ", "Bearer ",
)  # fmt: skip
DISTORTED: Final[dict[str, tuple[Callable[[str], str], str]]] = {
    "another case": (str.lower, "ann@x.org"),
    "no brackets": (lambda tag: tag.strip("[]"), "ann@x.org"),
    "Markdown": (lambda tag: re.sub(r"([_\[\]])", r"\\\1", tag), "ann@x.org"),
    "in brackets": (lambda tag: f"({tag})", "(ann@x.org)"),
    "one bracket": (lambda tag: tag[:-1], "ann@x.org"),
    "most of it": (lambda tag: tag[:-6], "[EMAIL]"),
    "its kind": (lambda tag: tag[:7], "[EMAIL]"),
    "a part of its kind": (lambda tag: tag[:4], "[EMAIL]"),
    "most of it, and more": (lambda tag: tag[:-6] + " so", "[EMAIL] so"),
    "a footnote": (lambda _: "[1]", "[1]"),
    "a remark": (lambda _: "[E is not]", "[E is not]"),
}


def unsplit(text: str) -> str:
    """The text with everything taken out that is found in it as a whole."""
    for span in reversed(find(text)):
        text = text[: span.start] + f"[{span.kind.upper()}]" + text[span.end :]
    return text


@pytest.mark.anyio
@pytest.mark.parametrize("text", TEXTS)
async def test_every_cut_of_a_text_gives_what_the_whole_text_gives(text: str) -> None:
    through = lens(rules())
    expected = unsplit(text)

    for cut in range(len(text) + 1):
        assert await told(through, (text[:cut], text[cut:])) == expected, text[:cut]
    assert await told(through, list(text)) == expected


@pytest.mark.anyio
async def test_every_two_cuts_of_an_answer_undo_its_placeholders_and_show_no_part_of_them() -> None:
    sent, placeholders = await asked(f"ann@x.org pays with {CARD}", REVERSIBLE)
    mail, card = sent.partition(" pays with ")[::2]
    answer = f"{mail}: {card}. Not b@x.io {mail}{card}"
    through = lens(REVERSIBLE, placeholders)

    for pieces in two_cuts(answer):
        assert await told(through, pieces) == f"ann@x.org: {CARD}. Not [EMAIL] ann@x.org{CARD}"


@pytest.mark.anyio
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.lists(st.integers(0, 200), max_size=8))
async def test_any_pieces_of_any_text_give_what_the_whole_text_gives(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]

    assert await told(lens(rules()), pieces) == unsplit(text)


@pytest.mark.anyio
async def test_a_value_has_one_placeholder_in_all_requests_of_a_tenant_and_another_in_those_of_others() -> None:
    first, _ = await asked("ann@x.org", REVERSIBLE)
    second, _ = await asked("to ann@x.org and bob@x.org", REVERSIBLE)
    theirs = replace(REVERSIBLE, key=b"theirs")

    other, _ = await asked("ann@x.org", theirs)

    assert first in second
    assert len({first, other, second.partition(" and ")[2]}) == 3
    assert find(second) == ()


def test_two_tenants_of_a_node_have_two_keys() -> None:
    mine, theirs = (rules_for(one.tenant, {}, b"node").tag("email", "ann@x.org") for one in (ACME, GLOBEX))

    assert mine != theirs


@pytest.mark.anyio
async def test_a_placeholder_in_the_place_of_a_secret_is_undone_and_what_is_beside_it_is_not() -> None:
    tag, placeholders = await asked("password = hunter2x", REVERSIBLE)
    tag = tag.removeprefix("password = ")
    answer = f"postgres://app:{tag}@db/x but postgres://app:{tag}9@db/x"

    assert await told(lens(REVERSIBLE, placeholders), list(answer)) == (
        "postgres://app:hunter2x@db/x but postgres://app:[SECRET]@db/x"
    )


@pytest.mark.anyio
async def test_a_placeholder_of_another_request_is_not_undone() -> None:
    elsewhere, _ = await asked("ann@x.org", REVERSIBLE)
    _, ours = await asked("bob@x.org", REVERSIBLE)

    assert await told(lens(REVERSIBLE, ours), [f"so {elsewhere} it is"]) == f"so {elsewhere} it is"


@pytest.mark.anyio
@pytest.mark.parametrize(("write", "read"), DISTORTED.values(), ids=DISTORTED.keys())
async def test_a_placeholder_that_a_model_distorts_does_not_reach_the_client(
    write: Callable[[str], str], read: str
) -> None:
    tag, placeholders = await asked("ann@x.org", REVERSIBLE)
    written = write(tag)

    for cut in range(len(written) + 1):
        assert await told(lens(REVERSIBLE, placeholders), (written[:cut], written[cut:])) == read


@pytest.mark.anyio
async def test_a_stretch_without_blanks_is_held_only_so_long_and_cuts_nothing_in_two() -> None:
    through = lens(rules())
    stretch = "/".join(["ab12"] * MAX_HELD) + "/ann@example.com/" + "x" * 40

    stream = TextStream(through)
    early = (await stream.feed(stretch[: MAX_HELD + 1])).text
    rest = (await stream.feed(stretch[MAX_HELD + 1 :])).text + (await stream.end()).text

    assert early
    assert early + rest == stretch.replace("ann@example.com", "[EMAIL]")
    for step in (1_000, 8_191, 8_192, 8_193):
        pieces = [stretch[at : at + step] for at in range(0, len(stretch), step)]
        assert await told(through, pieces) == early + rest


@pytest.mark.anyio
async def test_a_placeholder_where_a_long_stretch_is_cut_stays_whole() -> None:
    tag, placeholders = await asked("ann@x.org", REVERSIBLE)
    through = lens(REVERSIBLE, placeholders)

    for before in range(MAX_HELD - 1_024 - len(tag), MAX_HELD - 1_024 + 2):
        stretch = "/" * before + tag + "/" * MAX_HELD
        assert await told(through, [stretch]) == stretch.replace(tag, "ann@x.org")


@pytest.mark.anyio
@pytest.mark.parametrize(("end", "after"), [("-----END RSA PRIVATE KEY-----\nover", "\nover"), ("", "")])
async def test_a_key_longer_than_what_is_held_is_dropped_to_its_end(end: str, after: str) -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIB plain words\n" * 2_000
    text = f"this is it: {key}{end}"

    for step in (7, 5_000, len(text)):
        pieces = [text[at : at + step] for at in range(0, len(text), step)]
        assert await told(lens(rules()), pieces) == "this is it: [SECRET]" + after


def test_seams_of_a_text_stay_where_they_are_when_it_goes_on() -> None:
    assert seam("plain words") == 6
    for text in TEXTS:
        places = {seam(text[:end]) for end in range(len(text) + 1)}
        for end in range(len(text) + 1):
            assert seam(text[:end]) in {0, *(place for place in places if place <= end)}


def choice(index: int = 0, **message: Any) -> dict[str, Any]:
    return {"index": index, "message": {"role": "assistant", **message}, "finish_reason": "stop"}


def chunk(index: int = 0, /, **delta: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": None}]}


async def streamed(answer: Answer, *chunks: dict[str, Any]) -> list[dict[str, Any]]:
    released = [piece for one in chunks for piece in await answer.pieces([one])]
    return [piece["choices"][0] for piece in written_out([*released, *await answer.rest()])]


@pytest.mark.anyio
async def test_every_choice_and_every_text_of_a_whole_answer_is_looked_at() -> None:
    answer = Answer(lens(rules()))
    parts = [{"type": "text", "text": "of bob@x.org"}]

    shown = await answer.whole(
        {
            "id": "c",
            "choices": [
                choice(content="ann@x.org wrote", reasoning_content=f"card {CARD}", refusal=None),
                choice(1, content=parts, annotations=[{"url": "mailto:cat@x.org"}], audio={"transcript": "dan@x.org"}),
            ],
        }
    )

    first, second = (one["message"] for one in shown["choices"])
    assert first == {
        "role": "assistant", "content": "[EMAIL] wrote", "reasoning_content": "card [PAYMENT_CARD]", "refusal": None
    }  # fmt: skip
    assert second["content"] == [{"type": "text", "text": "of [EMAIL]"}]
    assert second["annotations"] == [{"url": "mailto:[EMAIL]"}]
    assert second["audio"] == {"transcript": "[EMAIL]"}
    assert {finding.kind: finding.count for finding in answer.findings} == {"email": 4, "payment_card": 1}


@pytest.mark.anyio
@pytest.mark.parametrize("part_by_part", [False, True])
async def test_a_models_own_voice_is_left_alone_where_it_stands_and_nowhere_else(part_by_part: bool) -> None:
    voice = "T2dnUwAA" + "/4111111111111111/" * 20
    said: dict[str, Any] = {"audio": {"data": voice}, "other": {"data": voice}, "x": {"audio": {"data": voice}}}
    answer = Answer(lens(rules()))

    if part_by_part:
        shown: dict[str, Any] = {}
        for one in await streamed(answer, chunk(0, **said)):
            shown |= one["delta"]
    else:
        shown = (await answer.whole({"id": "c", "choices": [choice(**said)]}))["choices"][0]["message"]

    assert shown["audio"] == {"data": voice}
    assert "4111111111111111" not in json.dumps([shown["other"], shown["x"]])


@pytest.mark.anyio
async def test_each_choice_of_a_stream_holds_its_own() -> None:
    shown = await streamed(
        Answer(lens(rules())),
        chunk(0, role="assistant", content="ann"),
        chunk(1, role="assistant", content="plain words "),
        chunk(0, content="@x.o"),
        chunk(1, content="and bob"),
        chunk(0, content="rg"),
    )

    texts = {0: "", 1: ""}
    for one in shown:
        texts[one["index"]] += one["delta"].get("content") or ""
    assert texts == {0: "[EMAIL]", 1: "plain words and bob"}
    assert [one["index"] for one in shown if "role" in one["delta"]] == [1, 0]


@pytest.mark.anyio
async def test_arguments_of_a_call_are_looked_at_as_what_the_tool_will_read() -> None:
    sent, placeholders = await asked(f"ann@x.org and {PEM}", REVERSIBLE)
    mail, key = sent.split(" and ")
    given = {"to": mail, "key": key, "cc": "bob@x.org", "n": 4111111111111111, "id": mail, "type": [mail]}
    text = json.dumps(given).replace("bob@x.org", "\\u0062ob@x.org")
    called = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "send", "arguments": text}}

    *said, calls = await streamed(
        Answer(lens(REVERSIBLE, placeholders)), chunk(content="to bob@"), chunk(tool_calls=[called])
    )

    assert "".join(one["delta"]["content"] for one in said) == "to bob@"
    [function] = [one["function"] for one in calls["delta"]["tool_calls"]]
    assert function["name"] == "send"
    assert json.loads(function["arguments"]) == {
        "to": "ann@x.org", "key": PEM, "cc": "[EMAIL]", "n": "[PAYMENT_CARD]", "id": "ann@x.org",
        "type": ["ann@x.org"],
    }  # fmt: skip


@pytest.mark.anyio
async def test_arguments_with_nothing_to_find_stay_as_they_were_written() -> None:
    text = '{ "a" : 1.50 , "b":"\\u00e9" }'
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": text}}]

    shown = await Answer(lens(rules())).whole({"choices": [choice(content=None, tool_calls=calls)]})

    assert shown["choices"][0]["message"]["tool_calls"] == calls


@pytest.mark.anyio
async def test_members_whose_names_become_one_placeholder_are_all_there() -> None:
    given = {"ann@x.org": 1, "bob@x.org": 2, "[EMAIL]": 3, "[EMAIL]_2": 4}
    text = json.dumps(given)
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": text}}]
    reply = {"choices": [choice(content=None, tool_calls=calls, annotations=[given])], "ann@x.org": 1, "bob@x.org": 2}

    shown = await Answer(lens(rules())).whole(reply)

    message = shown["choices"][0]["message"]
    for members in (json.loads(message["tool_calls"][0]["function"]["arguments"]), *message["annotations"]):
        assert sorted(members.values()) == [1, 2, 3, 4]
        assert len(members) == 4
        assert "@x.org" not in json.dumps(members)
    assert (shown["[EMAIL]"], shown["[EMAIL]_2"]) == (1, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [0, 7, 12, 20])
async def test_what_blocks_ends_the_choice_there_whole_or_streamed(cut: int) -> None:
    given = rules(email="block")
    text = "this is ann@x.org and more"
    whole, stream = Answer(lens(given)), Answer(lens(given))

    told_whole = await whole.whole({"choices": [choice(content=text), choice(1, content="fine")]})
    shown = await streamed(stream, chunk(content=text[:cut]), chunk(content=text[cut:]), chunk(content=" even more"))
    last = await stream.closing([{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}])
    [end] = written_out(last)

    assert told_whole["choices"][0]["message"]["content"] == "this is "
    assert [one["finish_reason"] for one in told_whole["choices"]] == ["content_filter", "stop"]
    assert "".join(one["delta"].get("content") or "" for one in shown) == "this is "
    assert end["choices"][0]["finish_reason"] == "content_filter"
    asked_outcome = PolicyOutcome(decision="allowed")
    for answer in (whole, stream):
        assert answer.outcome(asked_outcome) == PolicyOutcome(decision="blocked", reasons=("pii_output:email",))


@pytest.mark.anyio
async def test_token_probabilities_do_not_spell_what_was_taken_out() -> None:
    spelled = {"content": [{"token": "ann@x.org"}]}
    piece = chunk(content="to ann@x.org ")
    piece["choices"][0]["logprobs"] = spelled

    shown = await streamed(Answer(lens(rules())), piece)
    whole = await Answer(lens(rules())).whole({"choices": [{**choice(content="to ann@x.org"), "logprobs": spelled}]})

    assert "".join(one["delta"]["content"] for one in shown) == "to [EMAIL] "
    assert [one["logprobs"] for one in shown] == [None] * len(shown)
    assert whole["choices"][0]["logprobs"] is None


@pytest.mark.anyio
async def test_where_everything_is_allowed_nothing_is_touched() -> None:
    modes: dict[str, PiiMode] = dict.fromkeys(RegexPii().capabilities.classes, "allow")
    answer = Answer(lens(rules(**modes)))
    piece = chunk(content="ann@x.org")

    assert await answer.pieces([piece]) == [piece]
    assert await answer.closing([piece]) == [piece]
    assert await answer.rest() == []
