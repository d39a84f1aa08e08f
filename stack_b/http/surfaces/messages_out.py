"""The canonical answer → Anthropic's message, whole or as events. Pure."""

from collections.abc import Mapping
from typing import Final

import msgspec

from ports.errors import AgentOSError, Unavailable
from ports.messages import Json
from stack_b.chunks import Run, index_of
from stack_b.http.errors import anthropic_error
from stack_b.http.surfaces.wire import detail, escaped, event, receipt_in, said, stem_of, untranslated

_STOP: Final = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""Of a finish reason; of any other: `end_turn`."""


_DELTA: Final = (
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":"'
)
_DELTA_END: Final = '"}}\n\n'
"""Around a text's delta: the event of `_said`, written out."""


class MessagesWire:
    """Satisfies `stack_b.http.surfaces.wire.Wire`: one message, and how far its events have come."""

    keep_alive = event("ping", {})
    names: Mapping[str, str] = {}

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._answer: dict[str, Json] = {}
        """Of the answer, what is not in its choices."""
        self._begun = False
        self._stop: tuple[str, str | None] = ("end_turn", None)
        self._refused = False
        self._blocks = 0
        """How many blocks are closed; the next one has this index."""
        self._text_open = False

    # A whole answer.

    def whole(self, answer: dict[str, Json]) -> dict[str, Json]:
        self._answer = answer
        choice = answer["choices"][0]
        message = choice["message"]
        content: list[dict[str, Json]] = [
            {"type": "text", "text": text} for member in ("content", "refusal") if (text := said(message, member))
        ]
        self._refused = bool(said(message, "refusal"))
        for number, call in enumerate(message.get("tool_calls") or ()):
            content.append({**self._tool_use(call, number), "input": _input(call, answer)})
        self._note_stop(choice)
        reason, sequence = self._stop
        return {
            **self._opening(answer),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(answer["usage"]),
            **receipt_in(answer),
        }

    # A stream.

    def chunk(self, chunk: dict[str, Json]) -> bytes:
        events = b""
        if not self._begun:
            self._begun = True
            # Backends count at the end: the true usage is in the `message_delta`, which clients let win.
            usage = {"input_tokens": 0, "output_tokens": 0}
            empty: dict[str, Json] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
            events += event("message_start", {"message": {**self._opening(chunk), **empty}})
        self._answer |= {name: value for name, value in chunk.items() if name != "choices"}
        for choice in chunk["choices"]:
            if choice.get("index"):
                continue
            delta = choice.get("delta") or {}
            for member in ("content", "refusal"):
                if text := said(delta, member):
                    self._refused = self._refused or member == "refusal"
                    events += self._said(text)
            for number, call in enumerate(delta.get("tool_calls") or ()):
                events += self._called(call, number)
            self._note_stop(choice)
        return events

    def run(self, run: Run) -> bytes:
        if index_of(run.chunk):
            return b""
        events = b""
        texts = [text for text in run.texts if text]
        if texts and not (self._begun and self._text_open):
            # What comes before the first text is written once.
            events, texts = self.chunk(run.with_text(texts[0])), texts[1:]
        if not texts:
            return events
        before = _DELTA % self._blocks
        joined = f"{_DELTA_END}{before}".join(escaped(texts))
        return events + f"{before}{joined}{_DELTA_END}".encode()

    def end(self) -> bytes:
        reason, sequence = self._stop
        closing = {
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": _usage(self._answer["usage"]),
            **receipt_in(self._answer),
        }
        return self._text_done() + event("message_delta", closing) + event("message_stop", {})

    def failed(self, error: AgentOSError, correlation_id: str) -> bytes:
        return event("error", anthropic_error(error, correlation_id))

    def _said(self, text: str) -> bytes:
        events = b""
        if not self._text_open:
            self._text_open = True
            events += self._event("content_block_start", content_block={"type": "text", "text": ""})
        return events + self._event("content_block_delta", delta={"type": "text_delta", "text": text})

    def _text_done(self) -> bytes:
        return self._block_done() if self._text_open else b""

    def _called(self, call: dict[str, Json], number: int) -> bytes:
        """A tool call comes whole, see `streaming`."""
        events = self._text_done()
        events += self._event("content_block_start", content_block={**self._tool_use(call, number), "input": {}})
        arguments = _arguments(call)
        if arguments:
            _input(call, self._answer)
            events += self._event("content_block_delta", delta={"type": "input_json_delta", "partial_json": arguments})
        return events + self._block_done()

    def _block_done(self) -> bytes:
        events = self._event("content_block_stop")
        self._text_open = False
        self._blocks += 1
        return events

    def _event(self, kind: str, **members: Json) -> bytes:
        return event(kind, {"index": self._blocks, **members})

    # What both are made of.

    def _opening(self, answer: dict[str, Json]) -> dict[str, Json]:
        stem = stem_of(answer, answer.get("correlation_id", "0"))
        return {"id": f"msg_{stem}", "type": "message", "role": "assistant", "model": answer.get("model")}

    def _tool_use(self, call: dict[str, Json], number: int) -> dict[str, Json]:
        name = (call.get("function") or {}).get("name") or ""
        return {
            "type": "tool_use",
            "id": call.get("id") or f"toolu_{stem_of(self._answer, '0')}_{number}",
            "name": name,
        }

    def _note_stop(self, choice: dict[str, Json]) -> None:
        finish = choice.get("finish_reason")
        if finish is None:
            return
        # Some backends say which of the strings they stopped at.
        hit = choice.get("stop_reason")
        if finish == "stop" and isinstance(hit, str) and hit in self._stops:
            self._stop = ("stop_sequence", hit)
        else:
            self._stop = ("refusal" if self._refused else _STOP.get(finish, "end_turn"), None)


def _arguments(call: dict[str, Json]) -> str:
    arguments: str = (call.get("function") or {}).get("arguments") or ""
    return arguments


def _input(call: dict[str, Json], answer: dict[str, Json]) -> dict[str, Json]:
    """A call's arguments as the object they must be.

    Raises:
        Unavailable: `upstream_error`: the model wrote something else, and this dialect has no place for that.
    """
    try:
        return msgspec.json.decode(_arguments(call) or "{}", type=dict[str, Json])
    except msgspec.DecodeError:
        error = Unavailable("the model called a tool with arguments that are not a JSON object", code="upstream_error")
        error.surface = receipt_in(answer)
        raise error from None


def _usage(usage: dict[str, Json]) -> dict[str, Json]:
    """Here, what a cache gave or took is counted beside the input, not in it."""
    read = detail(usage, "prompt_tokens_details", "cached_tokens")
    written = detail(usage, "prompt_tokens_details", "cache_write_tokens")
    thinking = detail(usage, "completion_tokens_details", "reasoning_tokens")
    return {
        **untranslated(usage),
        "input_tokens": max(0, usage["prompt_tokens"] - read - written),
        "output_tokens": usage["completion_tokens"],
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        **({"output_tokens_details": {"thinking_tokens": thinking}} if thinking else {}),
    }
