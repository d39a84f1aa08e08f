"""What policies read of a JSON value: every string a backend, a client or a tool would see. Pure."""

from collections.abc import Iterator

from ports.messages import Json
from stack_b.redaction.parts import said_by
from stack_b.redaction.spans import OUTERMOST, is_media


def strings(value: Json, place: tuple[str, str] = OUTERMOST) -> Iterator[str]:
    """Texts, the names of members, and numbers as they are written; the texts of a list's parts also as one.

    Parts are read together by a model, so that nothing is hidden by cutting it in two. `place` is where it stands, as in
    `MEDIA_PLACES`.
    """
    if isinstance(value, str):
        if not is_media(value, place):
            yield value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield name
            yield from strings(member, (place[1], name))
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
    """The functions that a request offers to the model, or forces it to call, by name; a tool without one by its type."""
    names: list[str] = []
    for member in ("tools", "functions"):
        given = members.get(member)
        for tool in given if isinstance(given, list) else ():
            names += names_of(tool)
    for member in ("tool_choice", "function_call"):
        choice = members.get(member)
        if isinstance(choice, dict):
            allowed = choice.get("allowed_tools", choice)
            tools = allowed.get("tools") if isinstance(allowed, dict) else None
            for tool in tools if isinstance(tools, list) else (choice,):
                names += names_of(tool)
    return tuple(dict.fromkeys(names))


def names_of(tool: Json) -> list[str]:
    """Of a tool or a call: every name that somebody might go by; without one, its type."""
    if not isinstance(tool, dict):
        return [""]
    kind = tool.get("type")
    places = (tool.get("function"), tool.get("custom"), tool.get(kind) if isinstance(kind, str) else None, tool)
    names = [str(place["name"]) for place in places if isinstance(place, dict) and isinstance(place.get("name"), str)]
    return list(dict.fromkeys(names)) or [kind if isinstance(kind, str) else ""]
