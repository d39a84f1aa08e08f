"""The canonical answer → OpenAI's response, whole or as events. Pure."""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from ports.errors import AgentOSError
from ports.http import envelope
from ports.messages import Json
from stack_b.chunks import Run, index_of
from stack_b.http.errors import openai_members
from stack_b.http.surfaces.wire import detail, escaped, event, receipt_in, said, stem_of, untranslated

Status = Literal["in_progress", "completed", "incomplete", "failed"]

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Of a finish reason. All others say that the model was done."""


_DELTA: Final = 'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
"""How a text's delta begins: the event of `_said`, written out."""


class ResponsesWire:
    """Satisfies `stack_b.http.surfaces.wire.Wire`: one response, and how far its events have come."""

    keep_alive = b": keepalive\n\n"
    names: Mapping[str, str] = {"max_tokens": "max_output_tokens", "messages": "input"}

    def __init__(self, echo: dict[str, Json]) -> None:
        self._echo = echo
        self._number = 0
        self._head: dict[str, Json] = {}
        self._answer: dict[str, Json] = {}
        """Of the answer, what is not in its choices."""
        self._finish: str | None = None
        self._output: list[dict[str, Json]] = []
        self._message: dict[str, Json] | None = None
        """The message that grows now; it is the last of the output."""

    # A whole answer.

    def whole(self, answer: dict[str, Json]) -> dict[str, Json]:
        self._begin(answer)
        choice = answer["choices"][0]
        self._finish = choice.get("finish_reason")
        message = choice["message"]
        parts = [
            _part(kind, text)
            for member, kind in (("content", "output_text"), ("refusal", "refusal"))
            if (text := said(message, member))
        ]
        if parts:
            self._output.append(self._new_message() | {"status": self._ended(), "content": parts})
        for call in message.get("tool_calls") or ():
            self._output.append(self._new_call(call))
        return self._closed()

    # A stream.

    def chunk(self, chunk: dict[str, Json]) -> bytes:
        events = b"" if self._head else self._opened(chunk)
        self._answer |= {name: value for name, value in chunk.items() if name != "choices"}
        for choice in chunk["choices"]:
            if choice.get("index"):
                continue
            delta = choice.get("delta") or {}
            for member, kind in (("content", "output_text"), ("refusal", "refusal")):
                if text := said(delta, member):
                    events += self._said(kind, text)
            for call in delta.get("tool_calls") or ():
                events += self._called(call)
            self._finish = choice.get("finish_reason") or self._finish
        return events

    def run(self, run: Run) -> bytes:
        if index_of(run.chunk):
            return b""
        events = b""
        texts = [text for text in run.texts if text]
        content = self._message["content"] if self._message is not None else []
        if texts and not (content and content[-1]["type"] == "output_text"):
            # What comes before the first text is written once.
            events, texts = self.chunk(run.with_text(texts[0])), texts[1:]
        if not texts or self._message is None:
            return events
        self._message["content"][-1]["text"] += "".join(texts)
        place = msgspec.json.encode(self._where()).decode()[1:-1]
        first, self._number = self._number, self._number + len(texts)
        deltas = [
            f'{_DELTA}{place},"delta":"{text}","logprobs":[],"sequence_number":{number}}}\n\n'
            for number, text in enumerate(escaped(texts), start=first)
        ]
        return events + "".join(deltas).encode()

    def end(self) -> bytes:
        events = self._message_done()
        response = self._closed()
        return events + self._event(f"response.{response['status']}", response=response)

    def failed(self, error: AgentOSError, correlation_id: str) -> bytes:
        """The response failed, for clients that read responses; then an error, which the SDKs raise."""
        members = envelope.members_of(error, correlation_id, openai_members(error))
        events = b""
        if self._head:
            failure = {"code": members["code"], "message": members["message"]}
            events = self._event("response.failed", response=self._response("failed") | {"error": failure})
        flat = {name: members.get(name) for name in ("code", "message", "param")}
        return events + self._event("error", **flat, error=members)

    # The events of a message.

    def _opened(self, chunk: dict[str, Json]) -> bytes:
        self._begin(chunk)
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _said(self, kind: str, text: str) -> bytes:
        events = b""
        if self._message is None:
            self._message = self._new_message()
            events += self._event("response.output_item.added", output_index=len(self._output), item=self._message)
            self._message = self._message | {"content": []}
            self._output.append(self._message)
        content = self._message["content"]
        if not content or content[-1]["type"] != kind:
            events += self._part_done()
            content.append(_part(kind, ""))
            events += self._event("response.content_part.added", **self._where(), part=dict(content[-1]))
        name, member = _NAMES[kind]
        content[-1][member] += text
        more: dict[str, Json] = {"logprobs": []} if kind == "output_text" else {}
        return events + self._event(f"response.{name}.delta", **self._where(), delta=text, **more)

    def _part_done(self) -> bytes:
        if self._message is None or not self._message["content"]:
            return b""
        part = self._message["content"][-1]
        name, member = _NAMES[part["type"]]
        more: dict[str, Json] = {"logprobs": []} if member == "text" else {}
        done = self._event(f"response.{name}.done", **self._where(), **{member: part[member]}, **more)
        return done + self._event("response.content_part.done", **self._where(), part=part)

    def _message_done(self) -> bytes:
        if self._message is None:
            return b""
        events = self._part_done()
        self._message["status"] = self._ended()
        events += self._event("response.output_item.done", output_index=len(self._output) - 1, item=self._message)
        self._message = None
        return events

    def _where(self) -> dict[str, Json]:
        assert self._message is not None
        return {
            "item_id": self._message["id"],
            "output_index": len(self._output) - 1,
            "content_index": len(self._message["content"]) - 1,
        }

    # The events of a function call: it comes whole, see `streaming`.

    def _called(self, call: dict[str, Json]) -> bytes:
        events = self._message_done()
        item = self._new_call(call)
        index, arguments = len(self._output), item["arguments"]
        self._output.append(item)
        where = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        events += self._event("response.output_item.added", output_index=index, item=begun)
        if arguments:
            events += self._event("response.function_call_arguments.delta", **where, delta=arguments)
        events += self._event("response.function_call_arguments.done", **where, name=item["name"], arguments=arguments)
        return events + self._event("response.output_item.done", output_index=index, item=item)

    # What both are made of.

    def _begin(self, answer: dict[str, Json]) -> None:
        self._answer = {name: value for name, value in answer.items() if name != "choices"}
        stem = stem_of(answer, answer.get("correlation_id", "0"))
        self._head = {"id": f"resp_{stem}", "created_at": answer.get("created") or 0, "stem": stem}

    def _new_message(self) -> dict[str, Json]:
        return {
            "id": f"msg_{self._head['stem']}_{len(self._output)}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }

    def _new_call(self, call: dict[str, Json]) -> dict[str, Json]:
        number = len(self._output)
        function = call.get("function") or {}
        return {
            "id": f"fc_{self._head['stem']}_{number}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.get("id") or f"call_{self._head['stem']}_{number}",
            "name": function.get("name") or "",
            "arguments": function.get("arguments") or "",
        }

    def _closed(self) -> dict[str, Json]:
        reason = _INCOMPLETE.get(self._finish or "")
        details = None if reason is None else {"reason": reason}
        return self._response(self._ended()) | {"incomplete_details": details}

    def _ended(self) -> Status:
        return "incomplete" if self._finish in _INCOMPLETE else "completed"

    def _response(self, status: Status) -> dict[str, Json]:
        usage = self._answer.get("usage")
        response: dict[str, Json] = {
            "id": self._head["id"],
            "object": "response",
            "created_at": self._head["created_at"],
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._answer.get("model"),
            "output": list(self._output),
            **self._echo,
            "usage": None if usage is None else _usage(usage),
            **receipt_in(self._answer),
        }
        tier = self._answer.get("service_tier")
        return response if tier is None else {**response, "service_tier": tier}

    def _event(self, kind: str, **members: Json) -> bytes:
        number, self._number = self._number, self._number + 1
        return event(kind, {**members, "sequence_number": number})


_NAMES: Final = {"output_text": ("output_text", "text"), "refusal": ("refusal", "refusal")}
"""By type of part: how its events begin, and which member holds its text."""


def _part(kind: str, text: str) -> dict[str, Json]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: dict[str, Json]) -> dict[str, Json]:
    return {
        **untranslated(usage),
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": detail(usage, "prompt_tokens_details", "cached_tokens"),
            "cache_write_tokens": detail(usage, "prompt_tokens_details", "cache_write_tokens"),
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": detail(usage, "completion_tokens_details", "reasoning_tokens")},
        "total_tokens": usage["total_tokens"],
    }
