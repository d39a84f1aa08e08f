"""What is logged is named in `observability.names`, and what is named there is logged."""

import ast
from collections.abc import Iterator
from pathlib import Path

from observability.names import LOG_EVENTS, LOG_FIELDS

ROOT = Path(__file__).parents[2]
SERVICES = ("ports", "adapters", "observability", "stack_a", "stack_b", "deploy")
LEVELS = {"debug", "info", "warning", "error", "exception", "log"}
# Written by the formatter itself, for records that name no event of ours.
OF_THE_FORMATTER = {"library.log", "log.unnamed"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for package in SERVICES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in LEVELS
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in {"logger", "_logger"}
                ):
                    yield str(path.relative_to(ROOT)), node


def event_of(call: ast.Call) -> str | None:
    for argument in call.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            return argument.value
    return None


def test_every_logged_event_is_named_and_every_name_is_logged() -> None:
    logged = {event_of(call) for _, call in calls()}

    assert logged - LOG_EVENTS.keys() == set()
    assert LOG_EVENTS.keys() - OF_THE_FORMATTER - logged == set()


def test_every_field_written_beside_an_event_is_allowed() -> None:
    fields = {
        (where, key.value)
        for where, call in calls()
        for keyword in call.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict)
        for key in keyword.value.keys
        if isinstance(key, ast.Constant)
    }

    assert {(where, name) for where, name in fields if name not in LOG_FIELDS} == set()
