"""Providers of the tests, each speaking as its namesake does: bodies, streams, refusals. What is said is the kit's."""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, TypeAlias

from msgspec import Struct

from conformance.provider import WORDS

Json: TypeAlias = Any  # JSON of a provider


class Say(Struct, frozen=True, kw_only=True):
    """An answer, in nobody's dialect yet."""

    text: str = ""
    calls: Sequence[tuple[str, str, str]] = ()
    prompt: int = 1
    completion: int = 1
    cache_read: int = 0
    cache_write: int = 0
    vectors: Sequence[Sequence[float]] = ()

    @property
    def fresh(self) -> int:
        return self.prompt - self.cache_read - self.cache_write


class Speaker:
    """One provider's dialect."""

    name: ClassVar[str]
    options: ClassVar[dict[str, str]] = {}
    model: ClassVar[str]
    embed_model: ClassVar[str | None] = None
    media_type: ClassVar[str] = "text/event-stream"
    reports_cache_write: ClassVar[bool] = True

    def wants_stream(self, request: bytes) -> bool:
        return b"stream" in request.partition(b"\r\n")[0].lower()

    def whole(self, say: Say) -> Json:
        raise NotImplementedError

    def pieces(self, say: Say) -> Iterator[bytes]:
        """Of a stream; the first of them holds a part of the text."""
        raise NotImplementedError

    def refusal(self, status: int, *, too_long: bool) -> Json:
        raise NotImplementedError


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


class Anthropic(Speaker):
    name = "anthropic"
    model = "claude-test"

    def wants_stream(self, request: bytes) -> bool:
        return b'"stream":true' in request.replace(b" ", b"")

    def whole(self, say: Say) -> Json:
        texts = [{"type": "text", "text": say.text}] if say.text else []
        uses = [
            {"type": "tool_use", "id": call, "name": name, "input": json.loads(text)} for call, name, text in say.calls
        ]
        return self._message(say) | {"content": [*texts, *uses], "stop_reason": self._reason(say)}

    def pieces(self, say: Say) -> Iterator[bytes]:
        first, rest = _halves(say.text)
        start = self._event("message_start", message=self._message(say) | {"content": []})
        yield start + self._block(0, {"type": "text", "text": ""}) + self._delta(0, type="text_delta", text=first)
        yield self._delta(0, type="text_delta", text=rest) + self._event("content_block_stop", index=0)
        for at, (call, name, arguments) in enumerate(say.calls, 1):
            yield self._block(at, {"type": "tool_use", "id": call, "name": name, "input": {}})
            for part in _halves(arguments):
                yield self._delta(at, type="input_json_delta", partial_json=part)
            yield self._event("content_block_stop", index=at)
        usage = {"output_tokens": say.completion}
        yield self._event("message_delta", delta={"stop_reason": self._reason(say)}, usage=usage)
        yield self._event("message_stop")

    def refusal(self, status: int, *, too_long: bool) -> Json:
        said = f"prompt is too long: 300000 tokens > 200000 maximum {WORDS}" if too_long else WORDS
        return {"type": "error", "error": {"type": f"error_{status}", "message": said}}

    def _message(self, say: Say) -> Json:
        usage = {
            "input_tokens": say.fresh,
            "output_tokens": say.completion,
            "cache_read_input_tokens": say.cache_read,
            "cache_creation_input_tokens": say.cache_write,
        }
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": self.model, "usage": usage}

    def _reason(self, say: Say) -> str:
        return "tool_use" if say.calls else "end_turn"

    def _event(self, kind: str, **members: Json) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()

    def _block(self, at: int, block: Json) -> bytes:
        return self._event("content_block_start", index=at, content_block=block)

    def _delta(self, at: int, **delta: str) -> bytes:
        return self._event("content_block_delta", index=at, delta=delta)


class Bedrock(Speaker):
    """Bedrock's Converse API. Its streams are frames, with two sums each."""

    name = "bedrock"
    options: ClassVar[dict[str, str]] = {"region": "eu-test-1"}
    model = "anthropic.claude-3-haiku-20240307-v1:0"
    media_type = "application/vnd.amazon.eventstream"

    def whole(self, say: Say) -> Json:
        texts = [{"text": say.text}] if say.text else []
        uses = [
            {"toolUse": {"toolUseId": call, "name": name, "input": json.loads(text)}} for call, name, text in say.calls
        ]
        return {
            "output": {"message": {"role": "assistant", "content": [*texts, *uses]}},
            "stopReason": self._reason(say),
            "usage": self._usage(say),
            "metrics": {"latencyMs": 1},
        }

    def pieces(self, say: Say) -> Iterator[bytes]:
        first, rest = _halves(say.text)
        yield self._frame("messageStart", role="assistant") + self._delta(0, text=first)
        yield self._delta(0, text=rest) + self._frame("contentBlockStop", contentBlockIndex=0)
        for at, (call, name, arguments) in enumerate(say.calls, 1):
            start = {"toolUse": {"toolUseId": call, "name": name}}
            yield self._frame("contentBlockStart", contentBlockIndex=at, start=start)
            for part in _halves(arguments):
                yield self._delta(at, toolUse={"input": part})
            yield self._frame("contentBlockStop", contentBlockIndex=at)
        yield self._frame("messageStop", stopReason=self._reason(say))
        yield self._frame("metadata", usage=self._usage(say), metrics={"latencyMs": 1})

    def refusal(self, status: int, *, too_long: bool) -> Json:  # noqa: ARG002 - its status says it
        return {"message": f"Input is too long for requested model. {WORDS}" if too_long else WORDS}

    def _usage(self, say: Say) -> Json:
        return {
            "inputTokens": say.fresh,
            "outputTokens": say.completion,
            "totalTokens": say.prompt + say.completion,
            "cacheReadInputTokens": say.cache_read,
            "cacheWriteInputTokens": say.cache_write,
        }

    def _reason(self, say: Say) -> str:
        return "tool_use" if say.calls else "end_turn"

    def _delta(self, at: int, **delta: Json) -> bytes:
        return self._frame("contentBlockDelta", contentBlockIndex=at, delta=delta)

    def _frame(self, kind: str, **members: Json) -> bytes:
        payload = json.dumps(members).encode()
        told = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
        headers = b"".join(
            struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
            for name, value in told.items()
        )
        prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
        frame = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
        return frame + struct.pack("!I", zlib.crc32(frame))


class Gemini(Speaker):
    name = "gemini"
    model = "gemini-test"
    embed_model = "gemini-embedding-001"
    reports_cache_write = False

    def whole(self, say: Say) -> Json:
        if say.vectors:
            return {"embeddings": [{"values": list(vector)} for vector in say.vectors]}
        texts = [{"text": say.text}] if say.text else []
        return self._answer(say, [*texts, *self._uses(say)], "STOP")

    def pieces(self, say: Say) -> Iterator[bytes]:
        first, rest = _halves(say.text)
        yield self._event(self._answer(say, [{"text": first}]))
        yield self._event(self._answer(say, [{"text": rest}]))
        for use in self._uses(say):
            yield self._event(self._answer(say, [use]))
        yield self._event(self._answer(say, [{"text": ""}], "STOP"))

    def refusal(self, status: int, *, too_long: bool) -> Json:
        said = "The input token count (3000000) exceeds the maximum number of tokens allowed (1048576)."
        message = f"{said} {WORDS}" if too_long else WORDS
        return {"error": {"code": status, "message": message, "status": "INVALID_ARGUMENT"}}

    def _uses(self, say: Say) -> list[Json]:
        return [
            {"functionCall": {"id": call, "name": name, "args": json.loads(text)}} for call, name, text in say.calls
        ]

    def _answer(self, say: Say, parts: list[Json], reason: str | None = None) -> Json:
        usage = {
            "promptTokenCount": say.prompt,
            "candidatesTokenCount": say.completion,
            "totalTokenCount": say.prompt + say.completion,
            "cachedContentTokenCount": say.cache_read,
        }
        candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
        if reason is not None:
            candidate["finishReason"] = reason
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": self.model, "responseId": "r-1"}

    def _event(self, body: Json) -> bytes:
        return f"data: {json.dumps(body)}\n\n".encode()


SPEAKERS: Final = (Anthropic, Bedrock, Gemini)
