"""A backend's chunks → the chunks a client gets. Pure: chunks in, chunks out.

* `id`, `created` and `model` are constant, and the first delta of each choice has its `role`.
* Nothing is released before there is content, so that a failure before it keeps its status and may fall back.
* Tool calls are gathered and released whole, before the choice's finish chunk.
* Finish chunks are held until the end, when the usage is known; the receipt rides on the last of them.
* A usage chunk goes out only to clients that asked for one, although the backend is always asked.
"""

from typing import Final

from ports.errors import Unavailable
from ports.messages import Json
from stack_b.backends.protocol import OUTCOME_UNKNOWN
from stack_b.chunks import Piece, Run, index_of
from stack_b.chunks import size_of as size_of_text
from stack_b.usage import size_of

_CHUNK: Final = "chat.completion.chunk"
_PLACES: Final = ("function", "custom")
_IN_PIECES: Final = frozenset({"arguments", "input"})


class _Choice:
    """What is known of one choice of the answer."""

    def __init__(self) -> None:
        self.has_role = False
        self.calls: dict[int, dict[str, Json]] = {}
        self.finish: dict[str, Json] | None = None


class StreamShaper:
    """One answer's worth of chunks, from one backend."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._head: dict[str, Json] = {}
        self._choices: dict[int, _Choice] = {}
        self._preamble: list[dict[str, Json]] = []
        self._begun = False
        self._run: tuple[dict[str, Json], dict[str, Json]] | None = None
        """The form of the last run, as the backend and as the client has it."""
        self.reported: dict[str, Json] | None = None
        """The backend's own usage, once it has come."""
        self.content_bytes = 0
        """Of everything the backend wrote: text, refusals, reasoning, tool calls."""

    def take(self, pieces: dict[str, Json] | list[Piece]) -> list[Piece]:
        """What may be sent to the client now that these have come."""
        if isinstance(pieces, dict):
            return list(self.feed(pieces))
        ready: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Run):
                ready += self._go_on(piece)
            else:
                ready += self.feed(piece)
        return ready

    def feed(self, chunk: dict[str, Json]) -> list[dict[str, Json]]:
        """The same for one chunk."""
        if not self._head:
            self._head = {
                "id": chunk.get("id") or "chatcmpl-0",
                "object": _CHUNK,
                "created": chunk.get("created") or 0,
                "model": self._model,
            }
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.reported = usage
        ready: list[dict[str, Json]] = []
        for choice in chunk.get("choices") or ():
            ready += self._take(chunk, choice)
        if not ready or self._begun:
            return ready
        if not any(_speaks(piece) for piece in ready):
            self._preamble += ready
            return []
        self._begun = True
        released, self._preamble = [*self._preamble, *ready], []
        return released

    @property
    def written(self) -> tuple[int, int]:
        """Bytes of content, and what the backend itself says by now of its tokens."""
        told = (self.reported or {}).get("completion_tokens")
        return self.content_bytes, told if isinstance(told, int) else 0

    @property
    def open(self) -> bool:
        """Whether there is more to come of what has begun."""
        return any(choice.finish is None for choice in self._choices.values())

    def _go_on(self, run: Run) -> list[Piece]:
        """A run. What begins with it, the answer or a choice, begins with its first chunk."""
        known = self._choices.get(index_of(run.chunk))
        if known is None or not known.has_role:
            first, *rest = run.texts
            begun: list[Piece] = list(self.feed(run.with_text(first)))
            return [*begun, self._same(Run(run.chunk, rest, run.size - size_of_text(first)))] if rest else begun
        released: list[Piece] = [*self._preamble, self._same(run)]
        # A run is of chunks like one that had a text.
        self._begun, self._preamble = True, []
        return released

    def _same(self, run: Run) -> Run:
        """More of what was let through before, or is let through with it."""
        self.content_bytes += run.size
        if self._run is None or self._run[0] is not run.chunk:
            [choice] = run.chunk["choices"]
            form = self._piece(run.chunk, {**choice, "delta": {"content": ""}, "finish_reason": None})
            self._run = (run.chunk, form)
        return Run(self._run[1], run.texts, run.size)

    def complete(self) -> None:
        """Check that every choice came to its end.

        Raises:
            Unavailable: `upstream_error`: a truncated answer must not look like a whole one.
        """
        if not self._choices or any(choice.finish is None for choice in self._choices.values()):
            raise Unavailable(
                "the backend's answer ended without a finish reason", code="upstream_error", details=OUTCOME_UNKNOWN
            )

    def cut(self) -> None:
        """The answer ends here, for want of budget. A call that was not whole by now is none."""
        if not self._choices:
            self._choices[0] = _Choice()
        for index, known in self._choices.items():
            if known.finish is None:
                delta: dict[str, Json] = {} if known.has_role else {"role": "assistant"}
                known.finish = self._piece({}, {"index": index, "delta": delta, "finish_reason": "length"})

    def finish(self, receipt: dict[str, Json], *, include_usage: bool) -> list[dict[str, Json]]:
        """The last chunks, after `complete`."""
        last = [choice.finish for _, choice in sorted(self._choices.items()) if choice.finish is not None]
        last[-1] = {**last[-1], **receipt}
        closing = [*self._preamble, *last]
        if include_usage:
            closing.append({**self._head, "choices": [], "usage": receipt["usage"]})
        return closing

    def _take(self, chunk: dict[str, Json], raw: dict[str, Json]) -> list[dict[str, Json]]:
        index = raw.get("index") or 0
        known = self._choices.setdefault(index, _Choice())
        delta: dict[str, Json] = dict(raw.get("delta") or {})
        self.content_bytes += size_of(delta)
        for fragment in delta.pop("tool_calls", None) or ():
            _gather(known.calls, fragment)
        finish_reason = raw.get("finish_reason")
        ready: list[dict[str, Json]] = []
        if not known.has_role and (delta or finish_reason or known.calls):
            delta = {"role": "assistant", **delta}
        if delta:
            known.has_role = True
            ready.append(self._piece(chunk, {**raw, "delta": delta, "finish_reason": None}))
        if finish_reason is not None:
            if known.calls:
                calls = [{"index": number, **call} for number, call in sorted(known.calls.items())]
                ready.append(self._piece({}, {"index": index, "delta": {"tool_calls": calls}, "finish_reason": None}))
                known.calls = {}
            known.finish = self._piece(chunk, {**raw, "delta": {}})
        return ready

    def _piece(self, chunk: dict[str, Json], choice: dict[str, Json]) -> dict[str, Json]:
        """A chunk with one choice; members of the backend's chunk that we don't know are kept."""
        extra = {name: value for name, value in chunk.items() if name != "usage"} if "usage" in chunk else chunk
        return {**extra, **self._head, "choices": [choice]}


def _speaks(piece: dict[str, Json]) -> bool:
    """Whether a chunk has something for the reader beyond the role."""
    delta = piece["choices"][0]["delta"]
    return any(value for name, value in delta.items() if name != "role")


def _gather(calls: dict[int, dict[str, Json]], fragment: dict[str, Json]) -> None:
    """Join a tool call's fragments: names once, arguments, or the text of a custom tool, in pieces."""
    number = fragment.get("index") or 0
    known = calls.get(number)
    if known is None:
        known = calls[number] = {name: value for name, value in fragment.items() if name not in {"index", *_PLACES}}
    for name, value in fragment.items():
        if name in _PLACES:
            _join(known.setdefault(name, {}), value or {})
        elif name != "index" and value:
            known.setdefault(name, value)
    if "custom" not in known:
        _join(known.setdefault("function", {}), {"arguments": ""})


def _join(known: dict[str, Json], more: dict[str, Json]) -> None:
    for name, value in more.items():
        if name in _IN_PIECES:
            known[name] = (known.get(name) or "") + (value or "")
        elif value and not known.get(name):
            known[name] = value
