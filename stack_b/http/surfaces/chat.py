"""OpenAI's chat completions: the canonical form is its form, so nothing is translated."""

from collections.abc import Mapping
from typing import Final

import msgspec

from ports.errors import AgentOSError
from ports.http import envelope
from ports.messages import Json
from stack_b.canonical import ChatCall
from stack_b.http.errors import openai_members
from stack_b.http.parse import chat_call
from stack_b.http.surfaces.wire import Wire
from stack_b.limits import Limits

_DONE: Final = b"data: [DONE]\n\n"


def chat(value: dict[str, Json], limits: Limits) -> tuple[ChatCall, Wire]:
    return chat_call(value, limits), ChatWire()


class ChatWire:
    """Satisfies `stack_b.http.surfaces.wire.Wire`."""

    keep_alive = b": keepalive\n\n"
    names: Mapping[str, str] = {}

    def whole(self, answer: dict[str, Json]) -> dict[str, Json]:
        return answer

    def chunk(self, chunk: dict[str, Json]) -> bytes:
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def end(self) -> bytes:
        return _DONE

    def failed(self, error: AgentOSError, correlation_id: str) -> bytes:
        return b"data: " + envelope.body_of(error, correlation_id, openai_members(error)) + b"\n\n"
