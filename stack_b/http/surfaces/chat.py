"""OpenAI's chat completions: the canonical form is its form, so nothing is translated."""

import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

from ports.errors import AgentOSError
from ports.http import envelope
from ports.messages import Json
from stack_b.canonical import ChatCall
from stack_b.chunks import Run
from stack_b.http.errors import openai_members
from stack_b.http.parse import chat_call
from stack_b.http.surfaces.wire import Wire, escaped
from stack_b.limits import Limits

_DONE: Final = b"data: [DONE]\n\n"
_HOLE: Final = secrets.token_hex(16)
"""A text that no backend writes, to find where texts are."""


def chat(value: dict[str, Json], limits: Limits) -> tuple[ChatCall, Wire]:
    return chat_call(value, limits), ChatWire()


class ChatWire:
    """Satisfies `stack_b.http.surfaces.wire.Wire`."""

    keep_alive = b": keepalive\n\n"
    names: Mapping[str, str] = {}

    _form: dict[str, Json] | None = None
    _before = _after = ""

    def whole(self, answer: dict[str, Json]) -> dict[str, Json]:
        return answer

    def chunk(self, chunk: dict[str, Json]) -> bytes:
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def run(self, run: Run) -> bytes:
        if run.chunk is not self._form:
            self._form = run.chunk
            self._before, self._after = self.chunk(run.with_text(_HOLE)).decode().split(_HOLE)
        texts = (self._after + self._before).join(escaped(run.texts))
        return f"{self._before}{texts}{self._after}".encode()

    def end(self) -> bytes:
        return _DONE

    def failed(self, error: AgentOSError, correlation_id: str) -> bytes:
        return b"data: " + envelope.body_of(error, correlation_id, openai_members(error)) + b"\n\n"
