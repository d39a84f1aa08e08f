"""Remembering and recalling, over the Memory port, which scopes every item to tenant and namespace."""

import hashlib
from typing import Final

import msgspec
from msgspec.structs import replace

from adapters.builtin_tools.tool import Arguments, Tool, bad_arguments, object_schema
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.memory import MAX_KEY_CHARS, Match, MemoryPort, MemoryWrite
from ports.memory_rules import checked
from ports.messages import Json
from ports.tool import ToolCall, ToolResult, ToolSpec

MAX_TEXT_CHARS: Final = 16_000
MAX_FOUND: Final = 20
_MAX_QUERY_CHARS: Final = 1_000

PUT: Final = ToolSpec(
    name="memory_put",
    description=(
        "Remembers a text for later conversations. Give a key to replace what was remembered under it; without a key a "
        "new item is made. Returns the key."
    ),
    input_schema=object_schema(
        {
            "text": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARS, "description": "what to remember"},
            "key": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS, "description": "a short name for it"},
        },
        required=("text",),
    ),
    effect="idempotent",
    scopes=("tools:invoke", "memory:write"),
)

SEARCH: Final = ToolSpec(
    name="memory_search",
    description="Recalls remembered texts that share words with the query, best first.",
    input_schema=object_schema(
        {
            "query": {
                "type": "string",
                "minLength": 1,
                "maxLength": _MAX_QUERY_CHARS,
                "description": "words to look for",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_FOUND,
                "description": "how many at most; default 5",
            },
        },
        required=("query",),
    ),
    effect="pure",
    scopes=("tools:invoke", "memory:read"),
)


def memory_put(memory: MemoryPort, *, with_result: bool) -> Tool:
    """`with_result`: the run store remembers, in the commit of the step's result. Otherwise the tool does."""

    async def act(auth: AuthContext, arguments: Arguments, call: ToolCall) -> Json:
        key = arguments.get("key") or _key_of(call)
        try:
            await memory.put(auth, key, arguments["text"])
        except InvalidArgument as error:
            raise bad_arguments(error.message) from error
        return {"key": key, "stored": True}

    async def plan(_auth: AuthContext, arguments: Arguments, call: ToolCall) -> ToolResult:
        write = MemoryWrite(key=arguments.get("key") or _key_of(call), value=arguments["text"])
        try:
            checked(write.key, write.value, max_value_bytes=memory.capabilities.max_value_bytes)
        except InvalidArgument as error:
            raise bad_arguments(error.message) from error
        return ToolResult(output={"key": write.key, "stored": True}, writes=(write,))

    return Tool(spec=replace(PUT, effect="transactional"), act=plan) if with_result else Tool(spec=PUT, act=act)


def memory_search(memory: MemoryPort) -> Tool:
    async def act(auth: AuthContext, arguments: Arguments, _call: ToolCall) -> Json:
        # JSON Schema calls 5.0 an integer.
        matches = await memory.search(auth, arguments["query"], limit=int(arguments.get("limit", 5)))
        return fitting(matches, max_bytes=SEARCH.max_output_bytes)

    return Tool(spec=SEARCH, act=act)


def fitting(matches: tuple[Match, ...], *, max_bytes: int) -> dict[str, Json]:
    """The best matches that an output of `max_bytes` holds; `truncated` tells that some were left out."""
    found: list[Json] = []
    free = max_bytes - len(msgspec.json.encode({"matches": [], "truncated": False}))
    for match in matches:
        entry = {"key": match.item.key, "text": match.item.value, "score": round(match.score, 4)}
        free -= len(msgspec.json.encode(entry)) + 1
        if free < 0:
            return {"matches": found, "truncated": True}
        found.append(entry)
    return {"matches": found, "truncated": False}


def _key_of(call: ToolCall) -> str:
    """The same on every attempt of the same step, so that repeating the call remembers nothing twice."""
    return "note_" + hashlib.sha256(call.key.encode()).hexdigest()[:32]
