"""A backend's bytes → its chunks, with runs of those that differ in their text alone read at once. Pure.

A chunk is decoded once. The next ones that are the same, byte for byte, but for a text in the same place are the same
chunk with another text: nothing of them is parsed but that text. Whatever looks different in any way is decoded again.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from ports.errors import AgentOSError
from ports.http.sse_decoder import SseDecoder
from ports.messages import Json
from stack_b.chunks import Piece, Run, size_of

DONE: Final = b"[DONE]"
MAX_LEARNED: Final = 8
"""Templates that are tried in one stream; where none ever matches, chunks are decoded one by one."""

_DATA: Final = b"data: "
_END: Final = b"\n\n"
_WINDOW: Final = 16 * 1024
"""How much is looked through at once, so that runs between other chunks don't copy what follows them again and again."""
_PLACE: Final = re.compile(rb'"content": ?"')
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f]*+')
_BODY: Final = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
"""What stands between the quotes of a JSON string."""
_TEXT: Final = msgspec.json.Decoder(str)
_CHUNK: Final = msgspec.json.Decoder(dict[str, Json])
_PROBE: Final = "\u2603"


class Template:
    """The bytes of a chunk around its text."""

    __slots__ = ("_after", "_before", "_between", "chunk")

    def __init__(self, chunk: dict[str, Json], before: bytes, after: bytes) -> None:
        self.chunk = chunk
        self._before = _DATA + before
        self._after = after + _END
        self._between = self._after + self._before

    def first(self) -> Run | None:
        """The chunk it was learned from, as the beginning of a run; None where it says more than the next ones will."""
        delta: dict[str, Json] = self.chunk["choices"][0]["delta"]
        if len(delta) > 1:
            return None
        text: str = delta["content"]
        return Run(self.chunk, [text], size_of(text))

    def take(self, data: bytes, at: int) -> tuple[Run | None, int]:
        """The whole chunks of this form that follow each other in `data` from `at` on, and where they end."""
        if not data.startswith(self._before, at):
            return None, at
        start = at + len(self._before)
        *parts, rest = data[start : start + _WINDOW].split(self._between)
        last = _BODY.match(rest)
        assert last is not None  # it matches nothing, too
        if rest.startswith(self._after, last.end()):
            parts.append(last[0])
        raw = b"".join(parts)
        if not _PLAIN.fullmatch(raw):
            parts = _whole(parts)
            raw = b"".join(parts)
        try:
            texts = [_text(part) for part in parts] if b"\\" in raw else list(map(bytes.decode, parts))
        except (UnicodeDecodeError, msgspec.DecodeError):
            return None, at
        if not texts:
            return None, at
        size = len(raw) if b"\\" not in raw else sum(map(size_of, texts))
        return Run(self.chunk, texts, size), at + len(raw) + len(texts) * len(self._between)


class ChunkReader:
    """One stream. `decode` is how one chunk is read and checked; it raises `AgentOSError`."""

    def __init__(self, decode: Callable[[bytes], dict[str, Json]]) -> None:
        self._decode = decode
        self._decoder = SseDecoder()
        self._template: Template | None = None
        self._learned = 0
        self.done = False
        """The backend said that this was all. What follows is not read."""
        self.failure: AgentOSError | None = None
        """What came then can't be read. What came before can, and was given."""

    def feed(self, data: bytes) -> list[Piece]:
        """The chunks that are completed by these bytes, up to the end or a failure."""
        pieces: list[Piece] = []
        at = 0
        while at < len(data) and not self.done and self.failure is None:
            if self._template is not None and self._decoder.between_events:
                run, at = self._template.take(data, at)
                if run is not None:
                    self._learned = 0
                    _append(pieces, run)
                    continue
            end = data.find(_END, at)
            raw = data[at:] if end < 0 else data[at : end + len(_END)]
            at += len(raw)
            self._read(raw, pieces)
        return pieces

    def close(self) -> list[Piece]:
        """What was left when the stream ended."""
        pieces: list[Piece] = []
        self._read(None, pieces)
        return pieces

    def _read(self, raw: bytes | None, pieces: list[Piece]) -> None:
        try:
            self._add(self._decoder.close() if raw is None else self._events(raw), raw or b"", pieces)
        except AgentOSError as error:
            self.failure = error

    def _events(self, raw: bytes) -> list[bytes]:
        if self._decoder.between_events and raw.startswith(_DATA) and raw.find(b"\n") == len(raw) - len(_END):
            # One event on one line, as nearly all are.
            return [raw[len(_DATA) : -len(_END)]]
        return self._decoder.feed(raw)

    def _add(self, events: list[bytes], raw: bytes, pieces: list[Piece]) -> None:
        for event in events:
            if event == DONE:
                self.done = True
                return
            chunk = self._decode(event)
            piece: Piece = chunk
            # What came in another form of the same event, or in parts, teaches nothing.
            if self._learned < MAX_LEARNED and len(raw) == len(event) + len(_DATA) + len(_END):
                learned = learn(event, chunk)
                if learned is not None:
                    self._learned += 1
                    self._template = learned
                    piece = learned.first() or chunk
            pieces.append(piece)


def _append(pieces: list[Piece], run: Run) -> None:
    """To the run before it, where it goes on."""
    last = pieces[-1] if pieces else None
    if isinstance(last, Run) and last.chunk is run.chunk:
        pieces[-1] = Run(run.chunk, last.texts + run.texts, last.size + run.size)
    else:
        pieces.append(run)


def learn(event: bytes, chunk: dict[str, Json]) -> Template | None:
    """The form of a chunk that says a text and nothing else; None where it says more or less."""
    if event.count(b'"content"') != 1 or not _says_only_text(chunk):
        return None
    place = _PLACE.search(event)
    body = _BODY.match(event, place.end()) if place is not None else None
    if place is None or body is None:
        return None
    before, after = event[: place.end()], event[body.end() :]
    [choice] = chunk["choices"]
    form = {**chunk, "choices": [{**choice, "delta": {**choice["delta"], "content": _PROBE}}]}
    try:
        proven = after.startswith(b'"') and _CHUNK.decode(before + _PROBE.encode() + after) == form
    except msgspec.DecodeError:
        return None
    return Template(chunk, before, after) if proven else None


def _says_only_text(chunk: dict[str, Json]) -> bool:
    choices: list[dict[str, Json]] = chunk.get("choices") or []
    if len(choices) != 1 or chunk.get("usage") is not None:
        return False
    [choice] = choices
    delta = choice.get("delta") or {}
    return (
        bool(delta.get("content"))
        and delta.keys() <= {"content", "role"}
        and choice.get("finish_reason") is None
        and choice.get("logprobs") is None
    )


def _whole(parts: list[bytes]) -> list[bytes]:
    """As many of them as are a JSON string's inside, from the first on."""
    for number, part in enumerate(parts):
        if _BODY.fullmatch(part) is None:
            return parts[:number]
    return parts


def _text(part: bytes) -> str:
    return _TEXT.decode(b'"%b"' % part) if b"\\" in part else part.decode()
