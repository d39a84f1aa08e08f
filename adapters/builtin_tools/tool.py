"""What a built-in tool is, and the two ways in which one refuses."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from ports.context import AuthContext
from ports.errors import InvalidArgument, Unavailable
from ports.messages import Json
from ports.tool import ToolCall, ToolSpec

Arguments: TypeAlias = dict[str, Json]
"""Already checked against the tool's schema."""

Act: TypeAlias = Callable[[AuthContext, Arguments, ToolCall], Awaitable[Json]]
"""Gives the output; or, of a `transactional` tool, a `ToolResult` with what it would write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    spec: ToolSpec
    act: Act


def object_schema(properties: dict[str, Json], *, required: tuple[str, ...] = ()) -> dict[str, Json]:
    """The JSON Schema (draft 2020-12) of an object with these members and no others."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def bad_arguments(message: str) -> InvalidArgument:
    """The arguments can't be understood; the same call can never succeed."""
    return InvalidArgument(message, code="tool_bad_arguments")


def failed(message: str) -> Unavailable:
    """The arguments were understood, and the tool has no answer to them."""
    return Unavailable(message, code="tool_failed")
