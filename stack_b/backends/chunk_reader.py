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
_PLAIN_TEXT: Final = re.compile(r'[^"\\\x00-\x1f]*+')
_BODY: Final = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
"""What stands between the quotes of a JSON string."""
_TEXT: Final = msgspec.json.Decoder(str)
_CHUNK: Final = msgspec.json.Decoder(dict[str, Json])
_PROBE: Final = "\u2603"


class Template:
    """The bytes of a chunk around its text."""

    __slots__ = ("_after", "_before", "_between", "_between_texts", "chunk")

    def __init__(self, chunk: dict[str, Json], before: bytes, after: bytes) -> None:
        self.chunk = chunk
        self._before = _DATA + before
        self._after = after + _END
        self._between = self._after + self._before
        self._between_texts = self._between.decode()

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
        window = data[start : start + _WINDOW]
        end = window.rfind(self._after)
        if (plain := self._plain(window, end)) is not None:
            return plain, start + end + len(self._after)
        *parts, rest = window.split(self._between)
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

    def _plain(self, window: bytes, end: int) -> Run | None:
        """Up to `end`, where nothing but chunks of this form stands there, and nothing in their texts is escaped."""
        if end < 0:
            return None
        try:
            texts = window[:end].decode().split(self._between_texts)
        except UnicodeDecodeError:
            return None
        if not _PLAIN_TEXT.fullmatch("".join(texts)):
            return None
        return Run(self.chunk, texts, end - (len(texts) - 1) * len(self._between))


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
            if end >= 0 and data.startswith(_DATA, at) and data.find(b"\n", at) == end and self._decoder.between_events:
                # One event on one line, as nearly all are.
                self._take(data[at + len(_DATA) : end], pieces, teaches=True)
                at = end + len(_END)
                continue
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
        """What came in another form, or in parts, teaches nothing."""
        try:
            events = self._decoder.close() if raw is None else self._decoder.feed(raw)
        except AgentOSError as error:
            self.failure = error
            return
        for event in events:
            if not self.done and self.failure is None:
                self._take(event, pieces, teaches=False)

    def _take(self, event: bytes, pieces: list[Piece], *, teaches: bool) -> None:
        if event == DONE:
            self.done = True
            return
        try:
            chunk = self._decode(event)
        except AgentOSError as error:
            self.failure = error
            return
        piece: Piece = chunk
        if teaches and self._learned < MAX_LEARNED and (learned := learn(event, chunk)) is not None:
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
    if not after.startswith(b'"') or not (b"\\" not in before + after or _is_proven(chunk, before, after)):
        return None
    return Template(chunk, before, after)


def _is_proven(chunk: dict[str, Json], before: bytes, after: bytes) -> bool:
    """Whether what stands between them is the chunk's text. Where nothing is escaped, the one `"content"` is its name."""
    [choice] = chunk["choices"]
    form = {**chunk, "choices": [{**choice, "delta": {**choice["delta"], "content": _PROBE}}]}
    try:
        return bool(_CHUNK.decode(before + _PROBE.encode() + after) == form)
    except msgspec.DecodeError:
        return False


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
