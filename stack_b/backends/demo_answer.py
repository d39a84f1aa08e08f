"""What the demo backend says: turns intents and tool results into tool calls and sentences. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from ports.messages import Json
from stack_b.backends.demo_rules import MAX_INTENTS, Intent, intents

INTRODUCTION: Final = "I am the AgentOS demo backend: a set of rules, not a language model."
ABILITIES: Final = (
    "I can calculate, count words in a text, remember and recall, read a URL and tell the time, when I am offered the "
    "tools for it. Connect a real model to Stack B for anything else."
)
MAX_READ_CHARS: Final = 16_000
"""Of the user's text. The rules are for sentences, not for books."""
MAX_QUOTED_CHARS: Final = 500

_CAN_NOT: Final = {
    "calculator": "calculate", "text_stats": "count", "memory_put": "remember", "memory_search": "recall",
    "http_get": "read", "clock": "tell the time of",
}  # fmt: skip
_DEPTH: Final = 4


class Call(Struct, frozen=True, kw_only=True):
    name: str
    arguments: dict[str, Json]


class Result(Struct, frozen=True, kw_only=True):
    """A tool call of this turn and what came back."""

    call: Call
    output: Json


class Turn(Struct, frozen=True, kw_only=True):
    """What was said since, and with, the last user message."""

    text: str
    results: tuple[Result, ...] = ()
    offered: dict[str, dict[str, Json]] = {}
    """Tool name → JSON Schema of its arguments."""
    forced: str | None = None
    """The tool the client insists on; `*` for any."""
    parallel: bool = True


def next_calls(turn: Turn) -> tuple[Call, ...]:
    """The tools to call now; none when everything asked for is answered or can't be done."""
    if turn.results and turn.forced is not None:
        # The client's insistence is fulfilled; insisting again would never end.
        return ()
    wanted = [_fitted(intent, turn.offered[intent.tool]) for intent in _asked(turn) if intent.tool in turn.offered]
    wanted += _named(turn)
    done = [result.call for result in turn.results]
    pending = [call for call in wanted if call not in done]
    if turn.forced is not None:
        named = turn.forced if turn.forced != "*" else next(iter(turn.offered))
        pending = [call for call in pending if turn.forced in {"*", call.name}]
        pending = pending or [Call(name=named, arguments=filled(turn.offered.get(named, {}), turn.text))]
    if any(call.name == "memory_put" for call in pending):
        # What is recalled may be what is just being remembered.
        pending = [call for call in pending if call.name != "memory_search"]
    return tuple(pending[: MAX_INTENTS if turn.parallel else 1])


def answer(turn: Turn) -> str:
    """The closing text: each result stated, and what could not be done."""
    sentences = [INTRODUCTION]
    asked = _asked(turn)
    for result in turn.results:
        intent = next((intent for intent in asked if _fits(intent, result.call)), None)
        sentences.append(_stated(result, intent))
    for intent in asked:
        if intent.tool not in turn.offered:
            verb = _CAN_NOT[intent.tool]
            sentences.append(f"I could not {verb} {intent.subject!r}: the tool `{intent.tool}` was not offered to me.")
    if len(sentences) == 1:
        sentences += [f'You said: "{_clipped(turn.text)}"' if turn.text else "You said nothing.", ABILITIES]
    return " ".join(sentences)


def filled(schema: Mapping[str, Json], text: str, depth: int = 0) -> Json:
    """The plainest value that satisfies a JSON Schema: its first enum member, the text for a string, and so on."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice) and depth < _DEPTH:
            return filled(schema[choice][0], text, depth + 1)
    kind = schema.get("type", "object" if depth == 0 else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        names = schema.get("required", ()) if depth < _DEPTH else ()
        return {name: filled(properties.get(name, {}), text, depth + 1) for name in names}
    if kind == "array":
        count = schema.get("minItems", 0) if depth < _DEPTH else 0
        return [filled(schema.get("items", {}), text, depth + 1) for _ in range(min(count, MAX_INTENTS))]
    plain: dict[str, Json] = {
        "integer": int(schema.get("minimum", 1)),
        "number": schema.get("minimum", 1),
        "boolean": False,
        "null": None,
    }
    return plain[kind] if kind in plain else text[: schema.get("maxLength", MAX_QUOTED_CHARS)]


def _asked(turn: Turn) -> tuple[Intent, ...]:
    return intents(turn.text[:MAX_READ_CHARS])


def _named(turn: Turn) -> list[Call]:
    """Offered tools that no rule knows, when the user calls them by name: "use get_weather for Paris"."""
    known = _CAN_NOT.keys()
    return [
        Call(name=name, arguments=filled(schema, turn.text.partition(name)[2].strip(" :.,?!") or turn.text))
        for name, schema in turn.offered.items()
        if name not in known and name in turn.text
    ]


def _fitted(intent: Intent, schema: Mapping[str, Json]) -> Call:
    """The intent's arguments as far as the offered schema knows them, and what else it requires."""
    properties = schema.get("properties", {})
    arguments = {name: value for name, value in intent.arguments.items() if name in properties}
    missing = [name for name in schema.get("required", ()) if name not in arguments]
    return Call(
        name=intent.tool,
        arguments=arguments | {name: filled(properties.get(name, {}), intent.subject, 1) for name in missing},
    )


def _fits(intent: Intent, call: Call) -> bool:
    return intent.tool == call.name and all(
        call.arguments.get(name, value) == value for name, value in intent.arguments.items()
    )


def _stated(result: Result, intent: Intent | None) -> str:
    name, output = result.call.name, result.output
    if isinstance(output, dict) and output.get("error"):
        return f"The tool `{name}` failed: {_clipped(_reason(output['error']))}."
    if intent is not None and isinstance(output, dict):
        stated = _STATED[name](intent, output)
        if stated:
            return stated
    return f"The tool `{name}` answered: {_clipped(_text(output))}."


def _calculated(intent: Intent, output: Mapping[str, Json]) -> str:
    if "result" not in output:
        return ""
    sign = "=" if output.get("exact", True) else "≈"
    return f"{intent.subject} {sign} {output['result']}."


def _counted(intent: Intent, output: Mapping[str, Json]) -> str:
    if intent.focus not in output:
        return ""
    count, noun = output[intent.focus], intent.focus.replace("_without_spaces", " other than spaces")
    return f'"{_clipped(intent.subject)}" has {count} {noun.removesuffix("s") if count == 1 else noun}.'


def _remembered(intent: Intent, output: Mapping[str, Json]) -> str:
    return f"I have remembered: {_clipped(intent.subject)}." if output.get("stored", True) else ""


def _recalled(intent: Intent, output: Mapping[str, Json]) -> str:
    matches = output.get("matches")
    if not isinstance(matches, list):
        return ""
    texts = [_clipped(_text(match.get("text"))) for match in matches if isinstance(match, dict)]
    if not texts:
        return f"I remember nothing about {intent.subject!r}."
    return f"About {intent.subject!r} I remember: {'; '.join(texts)}."


def _fetched(intent: Intent, output: Mapping[str, Json]) -> str:
    if "status" not in output:
        return ""
    body = _clipped(" ".join(_text(output.get("text", "")).split()))
    return f'{intent.subject} answered {output["status"]}: "{body}"'


def _told(intent: Intent, output: Mapping[str, Json]) -> str:
    if "local" not in output:
        return ""
    weekday = f"{output['weekday']}, " if "weekday" in output else ""
    return f"In {output.get('timezone', intent.subject)} it is {weekday}{output['local']}."


_STATED: Final = {
    "calculator": _calculated,
    "text_stats": _counted,
    "memory_put": _remembered,
    "memory_search": _recalled,
    "http_get": _fetched,
    "clock": _told,
}


def parsed(content: Json) -> Json:
    """A tool message's content: the JSON in it, or its text."""
    text = joined(content)
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def joined(content: Json) -> str:
    """The text of a message's content, whether a string or parts."""
    if isinstance(content, list):
        parts: Sequence[Json] = [part.get("text", "") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _reason(error: Json) -> str:
    return _text(error.get("message", error)) if isinstance(error, dict) else _text(error)


def _text(value: Json) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _clipped(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "…"
