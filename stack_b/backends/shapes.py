"""The least that a backend's answer must look like. Lenient: only members the gateway reads are named."""

from typing import Annotated

from msgspec import Meta, Struct

# A backend's word is money: a count that no model can reach is an answer that can't be trusted.
_Tokens = Annotated[int, Meta(ge=0, le=100_000_000)]


class UsageShape(Struct, frozen=True, gc=False):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None


class _Function(Struct, frozen=True, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Custom(Struct, frozen=True, gc=False):
    name: str | None = None
    input: str | None = None


class _ToolCall(Struct, frozen=True, gc=False):
    function: _Function | None = None
    custom: _Custom | None = None
    index: int | None = None


class _Message(Struct, frozen=True, gc=False):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct, frozen=True, gc=False):
    message: _Message
    finish_reason: str | None = None


class CompletionShape(Struct, frozen=True, gc=False):
    choices: Annotated[list[_Choice], Meta(min_length=1)]
    usage: UsageShape | None = None


class _ChunkChoice(Struct, frozen=True):
    index: int | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class ChunkShape(Struct, frozen=True):
    id: str | None = None
    created: int | None = None
    choices: list[_ChunkChoice] | None = None
    usage: UsageShape | None = None


class _Vector(Struct, frozen=True):
    embedding: list[float] | str
    index: int | None = None


class EmbeddingsShape(Struct, frozen=True):
    data: list[_Vector]
    usage: UsageShape | None = None
