"""What policies read of a JSON value: every string a backend, a client or a tool would see. Pure."""

from collections.abc import Iterator
from typing import Final

from ports.messages import Json
from stack_b.members import kinds_in
from stack_b.redaction.media import OUTERMOST, Place, is_media
from stack_b.redaction.parts import said_by


def strings(value: Json, place: Place = OUTERMOST) -> Iterator[str]:
    """Texts, the names of members, and numbers as they are written; the texts of a list's parts also as one.

    Parts are read together by a model, so that nothing is hidden by cutting it in two. `place` is where it stands.
    """
    if isinstance(value, str):
        if not is_media(value, place):
            yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield name
            yield from strings(member, (*place, name))
    elif isinstance(value, list):
        yield from _together(value)
        for item in value:
            yield from strings(item, place)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _together(items: list[Json]) -> Iterator[str]:
    said = [item if isinstance(item, str) else said_by(item)[1] for item in items]
    texts = [text for text in said if text is not None]
    if len(texts) > 1:
        yield "".join(texts)


def offered(members: dict[str, Json]) -> tuple[str, ...]:
    """The functions that a request offers to the model, or forces it to call, by name; a tool without one by its type.

    What the provider runs goes by its kind: the type of a tool, or a member that no client's tool has.
    """
    names: list[str] = []
    for member in _OFFERS:
        given = members.get(member)
        for tool in given if isinstance(given, list) else ():
            names += _offers(tool) if member in _TOOLS else _entered(tool)
    for member in ("tool_choice", "function_call"):
        choice = members.get(member)
        if isinstance(choice, str) and choice not in _NO_NAMES:
            names.append(choice)
        if isinstance(choice, dict):
            allowed = choice.get("allowed_tools", choice)
            tools = allowed.get("tools") if isinstance(allowed, dict) else None
            for tool in tools if isinstance(tools, list) else (choice,):
                names += names_of(tool)
            names += _named(choice)
    return tuple(dict.fromkeys(names))


_NO_NAMES: Final = frozenset({"any", "auto", "none", "required"})
"""What a choice says that names no function."""
_TOOLS: Final = ("tools", "functions")
_OFFERS: Final = (*_TOOLS, "mcp_servers", "plugins")
_LISTS: Final = frozenset({
    "allowedFunctionNames", "allowed_function_names", "allowed_tools", "functionDeclarations", "function_declarations",
    "functions", "tool_names", "tools",
})  # fmt: skip
"""Where tools stand inside of another one, as objects or as names only."""
_SCHEMAS: Final = frozenset({
    "input_schema", "inputSchema", "parameters", "parametersJsonSchema", "parameters_json_schema", "schema",
})  # fmt: skip
"""What describes arguments and offers nothing."""


def _offers(tool: Json) -> Iterator[str]:
    """Every name that it may go by, and those of the tools inside it. A provider's own is its kind."""
    kinds = kinds_in(tool) if isinstance(tool, dict) else ()
    yield from (name for name in names_of(tool) if name or not kinds)
    yield from kinds
    if isinstance(tool, dict):
        yield from _named(tool)


def _entered(server: Json) -> Iterator[str]:
    """The names in an entry of a list that is a provider's: its other members are no tools."""
    yield from names_of(server)
    if isinstance(server, dict):
        if isinstance(server.get("type"), str):
            yield from kinds_in({"type": server["type"]})
        yield from _named(server)


def _named(value: Json, where: str = "") -> Iterator[str]:
    """The names inside of it. `where`: the member that it stands in."""
    if isinstance(value, list):
        for item in value:
            if where not in _LISTS:
                yield from _named(item)
            elif isinstance(item, str):
                yield item
            else:
                yield from _offers(item) if isinstance(item, dict) else _named(item, where)
    elif isinstance(value, dict):
        name = value.get("name")
        if isinstance(name, str):
            yield name
        for member, inside in value.items():
            if member not in _SCHEMAS:
                yield from _named(inside, member)


def names_of(tool: Json) -> list[str]:
    """Of a tool or a call: every name that somebody might go by; without one, its type."""
    if not isinstance(tool, dict):
        return [""]
    kind = tool.get("type")
    places = (tool.get("function"), tool.get("custom"), tool.get(kind) if isinstance(kind, str) else None, tool)
    names = [str(place["name"]) for place in places if isinstance(place, dict) and isinstance(place.get("name"), str)]
    return list(dict.fromkeys(names)) or [kind if isinstance(kind, str) else ""]
