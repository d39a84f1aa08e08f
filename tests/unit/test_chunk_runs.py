"""Chunks that differ in their text alone are read, shaped, looked at and written as runs: what comes out is the same as
chunk by chunk, wherever the bytes are split."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.regex_pii import RegexPii
from conformance.people import ACME
from ports.errors import Unavailable
from stack_b.backends import chunk_reader
from stack_b.backends.chunk_reader import ChunkReader, learn
from stack_b.chunks import Piece, Run, written_out
from stack_b.http.surfaces.chat import ChatWire
from stack_b.http.surfaces.messages_out import MessagesWire
from stack_b.http.surfaces.responses_out import ResponsesWire
from stack_b.http.surfaces.wire import Wire
from stack_b.redaction.answer import Answer
from stack_b.redaction.placeholders import Placeholders
from stack_b.redaction.rules import PiiRules
from stack_b.redaction.stream import Lens
from stack_b.streaming import StreamShaper
from tests.support.scripted_upstream import delta, usage

TEXTS = [
    "Hello",
    " world",
    ",",
    " it's",
    "\n\n",
    ' "quoted"',
    " a\\b",
    " Straße",
    " 東京",
    " \U0001f600",
    " tab\there",
    "",
]
RECEIPT: dict[str, Any] = {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}


def decoded(event: bytes) -> dict[str, Any]:
    try:
        chunk: dict[str, Any] = msgspec.json.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unavailable("not JSON", code="upstream_error") from None
    return chunk


def stream_of(texts: list[str], dumps: Callable[[Any], str], **more: Any) -> bytes:
    chunks = [delta(role="assistant", content=""), *(delta(content=text, **more) for text in texts), delta("stop")]
    chunks.append({"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)})
    return "".join(f"data: {dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def compact(value: Any) -> str:
    return msgspec.json.encode(value).decode()


FORMS: list[Callable[[Any], str]] = [compact, json.dumps, lambda value: json.dumps(value, ensure_ascii=False)]


def read(data: bytes, cuts: Iterator[int] | list[int] = ()) -> tuple[list[Piece], ChunkReader]:  # type: ignore[assignment]
    reader = ChunkReader(decoded)
    pieces: list[Piece] = []
    at = 0
    for cut in [*cuts, len(data)]:
        pieces += reader.feed(data[at:cut])
        at = cut
    return pieces, reader


def one_by_one(data: bytes) -> list[dict[str, Any]]:
    events = [line.removeprefix(b"data: ") for line in data.split(b"\n\n") if line]
    return [decoded(event) for event in events if event != b"[DONE]"]


@pytest.mark.parametrize("dumps", FORMS, ids=["compact", "spaced", "unescaped"])
def test_a_run_says_what_its_chunks_say(dumps: Callable[[Any], str]) -> None:
    data = stream_of(TEXTS, dumps)

    pieces, reader = read(data)

    assert list(written_out(pieces)) == one_by_one(data)
    assert reader.done
    runs = [piece for piece in pieces if isinstance(piece, Run)]
    assert sum(len(run.texts) for run in runs) >= len(TEXTS) - 3
    assert all(run.size == sum(len(text.encode()) for text in run.texts) for run in runs)


@pytest.mark.parametrize("dumps", FORMS, ids=["compact", "spaced", "unescaped"])
def test_wherever_the_bytes_are_split_the_chunks_are_the_same(dumps: Callable[[Any], str]) -> None:
    data = stream_of(TEXTS[:8], dumps)
    expected = one_by_one(data)

    for cut in range(len(data)):
        pieces, reader = read(data, [cut])
        assert list(written_out(pieces)) == expected
        assert reader.done


@given(st.lists(st.text(max_size=8), max_size=12), st.lists(st.integers(0, 2_000), max_size=6), st.sampled_from(FORMS))
@settings(max_examples=150, deadline=None)
def test_any_texts_in_any_pieces(texts: list[str], cuts: list[int], dumps: Callable[[Any], str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    data = stream_of(texts, dumps)

    pieces, _ = read(data, sorted(min(cut, len(data)) for cut in cuts))

    assert list(written_out(pieces)) == one_by_one(data)


@pytest.mark.parametrize(
    "odd",
    [
        delta(content="x", reasoning_content="hm"),
        delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{}"}}]),
        delta(content="other", index=1),
        {**delta(content="x"), "usage": usage(1, 2)},
        {**delta(content="x"), "id": "another"},
        {**delta(content="x"), "x": {"content": "not this"}},
        {"choices": []},
        delta("length", content="last"),
    ],
)
def test_what_is_not_the_same_is_read_for_itself(odd: dict[str, Any]) -> None:
    chunks = [delta(content="a"), delta(content="b"), odd, delta(content="c"), odd, delta(content="d"), delta("stop")]
    data = "".join(f"data: {compact(chunk)}\n\n" for chunk in chunks).encode()

    pieces, _ = read(data)

    assert list(written_out(pieces)) == chunks


@pytest.mark.parametrize(
    "bad",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"a\x01b"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\x"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ud800"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}}\n\n',
        b"data: <html>\n\n",
    ],
)
def test_what_can_not_be_read_fails_behind_what_could(bad: bytes) -> None:
    good = b'data: {"choices":[{"index":0,"delta":{"content":"ok"}}]}\n\n'

    pieces, reader = read(good * 3 + bad + good)

    assert [chunk["choices"][0]["delta"]["content"] for chunk in written_out(pieces)] == ["ok"] * 3
    assert reader.failure is not None


def test_a_form_is_proven_before_it_is_used() -> None:
    event = b'{"choices":[{"index":0,"delta":{"content":"a"},"note":"\\"content\\":"}]}'
    nested = b'{"x":{"content":"a"},"choices":[{"index":0,"delta":{"content":"a"}}]}'

    assert learn(event, decoded(event)) is not None
    assert learn(nested, decoded(nested)) is None


def test_forms_that_never_come_again_are_not_learned_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def counted(event: bytes, chunk: dict[str, Any]) -> chunk_reader.Template | None:
        asked.append(event)
        return learn(event, chunk)

    monkeypatch.setattr(chunk_reader, "learn", counted)
    chunks = [{**delta(content="a"), "id": f"c{number}"} for number in range(50)]

    pieces, _ = read("".join(f"data: {compact(chunk)}\n\n" for chunk in chunks).encode())

    assert list(written_out(pieces)) == chunks
    assert len(asked) == chunk_reader.MAX_LEARNED


def test_what_follows_the_end_is_not_read() -> None:
    data = stream_of(["a", "b"], compact)

    pieces, reader = read(data + b"data: <html>\n\n")

    assert reader.done
    assert reader.failure is None
    assert list(written_out(pieces)) == one_by_one(data)


def shaped(data: bytes) -> list[Piece]:
    shaper = StreamShaper("m")
    return [*shaper.take(read(data)[0]), *shaper.finish(RECEIPT, include_usage=False)]


@pytest.mark.parametrize(
    "new", [ChatWire, lambda: MessagesWire(()), lambda: ResponsesWire({})], ids=["chat", "messages", "responses"]
)
def test_every_surface_writes_a_run_as_it_writes_its_chunks(new: Callable[[], Wire]) -> None:
    pieces = shaped(stream_of(TEXTS, compact))
    wire, other = new(), new()

    runs = b"".join(wire.run(piece) if isinstance(piece, Run) else wire.chunk(piece) for piece in pieces) + wire.end()
    chunks = b"".join(other.chunk(chunk) for chunk in written_out(pieces)) + other.end()

    assert any(isinstance(piece, Run) for piece in pieces)
    assert runs == chunks


def test_id_created_and_model_are_constant_in_a_run() -> None:
    wandering = [
        {**delta(content="a"), "id": "1", "created": 1},
        *[{**delta(content="b"), "id": "2", "created": 2}] * 3,
    ]
    data = "".join(f"data: {compact(chunk)}\n\n" for chunk in [*wandering, delta("stop")]).encode()

    chunks = list(written_out(shaped(data)))

    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {("1", 1, "m")}
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant", None, None, None, None]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "text",
    [
        "Write to ann@example.com or call 4111 1111 1111 1111 now, said Ben.",
        "The password: hunter22hunter and then it is over. Nothing more, really nothing.",
        "plain words only, nothing to be found in all of this text, promised",
    ],
)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 200])
async def test_a_run_is_shown_as_its_chunks_are(text: str, length: int) -> None:
    texts = [text[at : at + length] for at in range(0, len(text), length)]
    pieces = shaped(stream_of(texts, compact))
    rules = PiiRules(key=b"k")

    async def shown(given: list[list[Piece]]) -> str:
        answer = Answer(Lens(RegexPii(), ACME, rules, Placeholders(rules)))
        released = [one for some in given for one in await answer.pieces(some)]
        told = written_out([*released, *await answer.rest()])
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in told)

    content = [piece for piece in pieces if isinstance(piece, Run) or piece["choices"][0]["finish_reason"] is None]
    together, apart = await shown([content]), await shown([[chunk] for chunk in written_out(content)])

    assert together == apart
    assert "ann@example.com" not in together
    assert "4111" not in together
    assert "hunter22" not in together


def test_a_run_begins_with_the_first_words() -> None:
    pieces, _ = read(stream_of(["a", "b", "c"], compact))

    assert [piece.texts for piece in pieces if isinstance(piece, Run)] == [["a", "b", "c"]]


def test_what_was_held_for_the_first_words_goes_out_before_a_run() -> None:
    shaper = StreamShaper("m")
    [role, run, *_], _ = read(stream_of(["a", "b"], compact))

    assert isinstance(run, Run)
    assert shaper.take([role]) == []
    assert [chunk["choices"][0]["delta"] for chunk in written_out(shaper.take([run]))] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
    ]


FRAMES = st.one_of(
    st.builds(lambda text: delta(content=text), st.text("ab @.1", max_size=4)),
    st.builds(lambda text, index: delta(content=text, index=index), st.text("ab ", max_size=3), st.integers(0, 1)),
    st.sampled_from(
        [
            delta(role="assistant", content=""),
            delta(role="assistant"),
            delta(role="assistant", content="ab "),
            delta(content=None),
            delta(refusal="no "),
            delta(reasoning_content="hm "),
            delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{}"}}]),
            {"choices": []},
        ]
    ),
)


@pytest.mark.anyio
@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(0, 2_000), max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
async def test_any_frames_in_any_pieces_are_shown_as_one_by_one(
    frames: list[dict[str, Any]], cuts: list[int], found: bool
) -> None:
    data = "".join(f"data: {compact(frame)}\n\n" for frame in frames).encode()
    rules = PiiRules(modes={} if found else dict.fromkeys(RegexPii().capabilities.classes, "allow"), key=b"k")

    async def shown(reads: list[list[Piece]]) -> tuple[dict[tuple[int, str], str], tuple[int, int]]:
        shaper = StreamShaper("m")
        answer = Answer(Lens(RegexPii(), ACME, rules, Placeholders(rules)))
        released = [one for some in reads for one in await answer.pieces(shaper.take(some))]
        told: dict[tuple[int, str], str] = {}
        for chunk in written_out([*released, *await answer.rest()]):
            [choice] = chunk["choices"]
            for name, member in choice["delta"].items():
                if isinstance(member, str) and member:
                    # A role that a backend repeats with every text may be said once.
                    before = "" if name == "role" else told.get((choice["index"], name), "")
                    told[choice["index"], name] = before + member
        return told, shaper.written

    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = ChunkReader(decoded)
    reads = [reader.feed(data[begin:end]) for begin, end in itertools.pairwise(edges)]

    assert await shown(reads) == await shown([[frame] for frame in one_by_one(data)])


def test_a_form_with_escapes_in_it_is_proven_by_reading_it() -> None:
    """The one `"content"` that stands there as such need not be the text's name, where names may be escaped."""
    event = b'{"x":{"content":"a"},"choices":[{"index":0,"delta":{"c\\u006fntent":"a"}}]}'

    assert decoded(event)["choices"][0]["delta"] == {"content": "a"}
    assert learn(event, decoded(event)) is None


@given(
    st.lists(st.one_of(st.text(max_size=8), st.sampled_from(TEXTS)), min_size=1, max_size=20),
    st.lists(st.integers(0, 3_000), max_size=6),
    st.lists(st.integers(0, 19), max_size=4),
    st.sampled_from(FORMS),
)
@settings(max_examples=100, deadline=None)
def test_what_is_decoded_at_once_is_what_is_decoded_text_by_text(
    texts: list[str], cuts: list[int], other: list[int], dumps: Callable[[Any], str]
) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    chunks = [delta(content=text, index=int(number in other)) for number, text in enumerate(texts)]
    data = "".join(f"data: {dumps(chunk)}\n\n" for chunk in chunks).encode()
    at = sorted(min(cut, len(data)) for cut in cuts)

    quick, _ = read(data, at)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunk_reader.Template, "_plain", lambda *_: None)
        general, _ = read(data, at)

    assert quick == general
    assert list(written_out(quick)) == chunks
