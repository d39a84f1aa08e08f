"""Redaction: every text a backend would see, and nothing that isn't text."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.people import ACME
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.pii import PiiCapabilities, Span
from stack_b.policy import decide
from stack_b.redaction.spans import replaced, rewritten, texts

MEDIA = "data:image/png;base64,iVBORw0KGgoA" + "QUJD" * 100
IMAGE: Any = {"type": "image_url", "image_url": {"url": MEDIA}}


class Finds:
    """A detector that finds the given words."""

    capabilities = PiiCapabilities()

    def __init__(self, *words: str) -> None:
        self.words = words

    def elsewhere(self) -> None:
        return None

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        del auth
        return tuple(
            Span(start=text.index(word), end=text.index(word) + len(word), kind="email")
            for word in self.words
            if word in text
        )


class Broken:
    capabilities = PiiCapabilities()

    def elsewhere(self) -> None:
        return None

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        del auth, text
        raise Unavailable("no detector")


def test_spans_become_typed_placeholders() -> None:
    spans = [Span(start=0, end=5, kind="email"), Span(start=9, end=13, kind="payment_card")]

    assert replaced("a@b.c and 1234!", spans) == "[EMAIL] and[PAYMENT_CARD]4!"


@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_what_is_outside_of_the_spans_is_untouched(text: str, cuts: Sequence[int]) -> None:
    edges = sorted({cut for cut in cuts if cut <= len(text)})
    spans = [Span(start=a, end=b, kind="x") for a, b in zip(edges[::2], edges[1::2], strict=False)]

    kept = text
    for span in reversed(spans):
        kept = kept[: span.start] + "[X]" + kept[span.end :]

    assert replaced(text, spans) == kept


def test_every_string_is_looked_at_names_included_and_media_is_not() -> None:
    value = {
        "messages": [
            {"role": "user", "name": "ann-user", "content": [{"type": "text", "text": "the part"}, IMAGE]},
            {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"to":"x"}'}}]},
        ],
        "metadata": {"some-key": "some value"},
        "n": 3,
        "flag": None,
    }

    seen = set(texts(value))

    assert {"ann-user", "the part", '{"to":"x"}', "some-key", "some value"} <= seen
    assert MEDIA not in seen


@pytest.mark.parametrize(
    "text", [MEDIA, "/".join(["4111111111111111"] * 17), "x/" * 120 + "/AKIAIOSFODNN7REALKEY/" + "y/" * 10]
)
@pytest.mark.parametrize(
    "place",
    [
        lambda text: {"messages": [{"role": "user", "content": text}]},
        lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
        lambda text: {"input": [text]},
        lambda text: {"metadata": {"data": text, "url": text}},
        lambda text: {"url": text},
        lambda text: {"image_url": {"url": text}},
        lambda text: {"tools": [{"function": {"parameters": {"source": {"data": text}}}}]},
        lambda text: {
            "tools": [{"function": {"parameters": {"messages": [{"content": [{"file": {"file_data": text}}]}]}}}]
        },
        lambda text: {"metadata": {"image_url": {"url": text}}},
        lambda text: {"messages": [{"role": "user", "image_url": {"url": text}, "content": "x"}]},
        lambda text: {"messages": [{"role": "user", "content": [{"type": "link", "link": {"url": text}}]}]},
        lambda text: {"messages": [{"role": "user", "content": [{"type": "file", "file": {"filename": text}}]}]},
    ],
    ids=[
        "content",
        "part",
        "input",
        "metadata",
        "outermost",
        "no part",
        "schema",
        "schema of parts",
        "about",
        "message",
        "another part",
        "name of a file",
    ],
)
def test_what_looks_like_media_is_a_text_wherever_media_do_not_stand(text: str, place: Callable[[str], Any]) -> None:
    assert text in texts(place(text))


@pytest.mark.parametrize(
    "part",
    [
        lambda text: {"type": "image_url", "image_url": {"url": text}},
        lambda text: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        lambda text: {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
        lambda text: {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{text}"}},
        lambda text: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}},
    ],
    ids=["image", "image by kind", "sound", "file", "source"],
)
def test_what_stands_where_media_do_and_does_not_begin_like_them_is_a_text(part: Callable[[str], Any]) -> None:
    cards = "/".join(["4111111111111111"] * 17)
    said = part(cards)

    seen = texts({"messages": [{"role": "user", "content": [said]}]})

    assert any(cards in text for text in seen)


@pytest.mark.parametrize("kind", ["", "data:application/pdf;base64,", "data:text/plain;base64,"])
@pytest.mark.parametrize(
    "part",
    [
        lambda data: {"type": "file", "file": {"file_data": data}},
        lambda data: {"type": "document", "source": {"type": "base64", "data": data}},
    ],
    ids=["file", "source"],
)
def test_a_file_that_begins_like_a_document_and_is_a_text_is_read(part: Callable[[str], Any], kind: str) -> None:
    data = kind + base64.b64encode(b"%PDF-1.7 as they begin. " + b"it is 4111111111111111 " * 20).decode()

    assert data in texts({"messages": [{"role": "user", "content": [part(data)]}]})


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff\xe0", "image/jpeg"), (b"GIF89a", "image/gif"),
        (b"RIFF\0\1\2\3WEBP", "image/webp"), (b"%PDF-1.7\n\xe2\xe3\xcf\xd3", "application/pdf"),
        (b"RIFF\0\1\2\3WAVE", "audio/wav"), (b"ID3\3", "audio/mpeg"), (b"\xff\xfb\x90", "audio/mpeg"),
        (b"OggS", "audio/ogg"), (b"fLaC", "audio/flac"), (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"\x1a\x45\xdf\xa3", "video/webm"), (b"PK\3\4", "application/zip"),
    ],
)  # fmt: skip
def test_media_are_known_by_their_first_bytes(first: bytes, kind: str) -> None:
    data = f"data:{kind};base64,{base64.b64encode(first + bytes(600)).decode()}"
    places = ("image_url", "url"), ("file", "file_data")
    outer, inner = places[not kind.startswith("image/")]

    assert data not in texts({"messages": [{"role": "user", "content": [{"type": outer, outer: {inner: data}}]}]})


@pytest.mark.parametrize(
    "message",
    [
        lambda part: {"content": [part]},
        lambda part: {"content": [{"type": "tool_result", "content": [part]}]},
        lambda part: {"images": [part]},
    ],
    ids=["part", "part of a result", "images of an answer"],
)
def test_media_are_left_alone_wherever_they_stand_in_a_message(message: Callable[[Any], Any]) -> None:
    assert MEDIA not in texts({"messages": [{"role": "user", **message(IMAGE)}]})


@pytest.mark.parametrize(
    "part",
    [
        lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        lambda data: {"type": "audio", "source": {"type": "base64", "media_type": "audio/wav", "data": data}},
    ],
    ids=["sound", "source"],
)
def test_media_are_left_alone_in_each_kind_of_part(part: Callable[[str], Any]) -> None:
    data = base64.b64encode(b"RIFF\0\1\2\3WAVE" + bytes(600)).decode()

    assert data not in texts({"messages": [{"role": "user", "content": [part(data)]}]})


@pytest.mark.parametrize("name", ["audio", "video"])
def test_sound_and_films_are_left_alone_by_url_and_a_models_own_voice(name: str) -> None:
    data = base64.b64encode(b"OggS" + bytes(600)).decode()
    said = {"content": [{"type": f"{name}_url", f"{name}_url": {"url": data}}], "audio": {"id": "a", "data": data}}

    assert data not in texts({"messages": [{"role": "assistant", **said}]})


def test_two_member_names_that_become_one_placeholder_both_stay() -> None:
    value = {"a@b.c": 1, "d@e.f": 2}

    assert rewritten(value, {"a@b.c": "[EMAIL]", "d@e.f": "[EMAIL]"}) == {"[EMAIL]": 1, "[EMAIL]_2": 2}


@pytest.mark.anyio
async def test_a_decision_says_what_was_found_how_often() -> None:
    value: Any = {"messages": [{"content": "ann@x.org wrote"}, {"content": "ann@x.org again"}]}

    decision = await decide(Finds("ann@x.org"), ACME, value)

    assert decision.outcome.decision == "redacted"
    assert decision.outcome.reasons == ("pii:email",)
    assert [(finding.kind, finding.count) for finding in decision.findings] == [("email", 2)]
    assert decision.value == {"messages": [{"content": "[EMAIL] wrote"}, {"content": "[EMAIL] again"}]}
    assert value["messages"][0]["content"] == "ann@x.org wrote"


def refusal(text: str) -> dict[str, str]:
    return {"type": "refusal", "refusal": text}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("parts", "sent"),
    [
        ([part("mail ann@"), part("x.org now")], [part("mail [EMAIL] now")]),
        ([part("mail ann@"), IMAGE, part("x.org"), part("!")], [part("mail [EMAIL]!"), IMAGE]),
        ([part("a"), part("nn@x.or"), part("g")], [part("[EMAIL]")]),
        ([part("mail ann@x.org"), part("now")], [part("mail [EMAIL]"), part("now")]),
        ([refusal("ann@"), part("x.org")], [refusal("[EMAIL]")]),
        ([{"type": "text", "content": "ann@"}, part("x.org")], [{"type": "text", "content": "[EMAIL]"}]),
    ],
)
async def test_what_is_cut_in_two_by_the_end_of_a_part_is_found(parts: list[Any], sent: list[Any]) -> None:
    value: Any = {"messages": [{"role": "user", "content": parts}, {"role": "user", "content": "hello"}]}

    decision = await decide(Finds("ann@x.org"), ACME, value)

    assert decision.value == {"messages": [{"role": "user", "content": sent}, {"role": "user", "content": "hello"}]}
    assert [(finding.kind, finding.count) for finding in decision.findings] == [("email", 1)]


@pytest.mark.anyio
async def test_texts_that_are_no_parts_are_not_read_as_one() -> None:
    messages = [{"type": "message", "role": "user", "content": text} for text in ("mail ann@", "x.org")]
    value: Any = {"input": ["mail ann@", "x.org"], "messages": messages}

    decision = await decide(Finds("ann@x.org"), ACME, value)

    assert decision.outcome.decision == "allowed"


@pytest.mark.anyio
async def test_nothing_found_leaves_the_value_as_it_is() -> None:
    value = {"messages": [{"content": "nothing here"}]}

    decision = await decide(Finds("ann"), ACME, value)

    assert decision.outcome.decision == "allowed"
    assert decision.value is value


@pytest.mark.anyio
async def test_a_detector_that_can_not_tell_stops_the_request() -> None:
    with pytest.raises(Unavailable):
        await decide(Broken(), ACME, {"messages": [{"content": "hello there"}]})
