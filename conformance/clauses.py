"""Every promise by id: read from the docstrings of the ports, so that the kit and the specification can't disagree."""

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final, TypeVar

import pytest
from msgspec import Struct

PORT_MODULES: Final = (
    "administration", "agent", "audit", "auth", "budget", "clock", "egress", "event", "gateway_configuration",
    "maintenance", "memory", "model", "pii", "privacy", "provider", "queue", "reply_journal", "request_log", "run_intake",
    "run_state", "secrets", "tenant", "tool",
)  # fmt: skip

DEFERRED: Final[Mapping[str, str]] = {
    "INT-1": "an inbound port with one implementation: tested with Stack A",
    "INT-2": "an inbound port with one implementation: tested with Stack A",
    "INT-3": "an inbound port with one implementation: tested with Stack A",
}
"""Clauses the kit has no test for, and why. `tests/architecture` refuses any other gap."""

_ENTRY: Final = re.compile(r"^\* ([A-Z]{3}-\d+) +(.*)$")

TestT = TypeVar("TestT", bound=Callable[..., object])


class Clause(Struct, frozen=True, kw_only=True):
    id: str
    port: str
    text: str


def clauses_in(port: str, docstring: str) -> list[Clause]:
    """The numbered clauses of a port's docstring, in order. A clause goes on until an unindented line."""
    found: list[Clause] = []
    for line in docstring.splitlines():
        if entry := _ENTRY.match(line):
            found.append(Clause(id=entry[1], port=port, text=entry[2].strip()))
        elif found and line.startswith("  "):
            last = found.pop()
            found.append(Clause(id=last.id, port=port, text=f"{last.text} {line.strip()}"))
        elif found:
            break
    return found


def _all_clauses() -> dict[str, Clause]:
    found: dict[str, Clause] = {}
    for port in PORT_MODULES:
        for one in clauses_in(port, import_module(f"ports.{port}").__doc__ or ""):
            assert one.id not in found, f"{one.id} is defined twice"
            found[one.id] = one
    return found


CLAUSES: Final[Mapping[str, Clause]] = _all_clauses()


def clause(*ids: str) -> Callable[[TestT], TestT]:
    """Say which clauses a contract test proves. An unknown id fails at import."""
    for one in ids:
        if one not in CLAUSES:
            raise LookupError(f"no port has a clause {one!r}")
    mark = pytest.mark.clause(*ids)

    def marked(test: TestT) -> TestT:
        marked_test: TestT = mark(test)
        return marked_test

    return marked


def clauses_of(test: object) -> frozenset[str]:
    """The ids `clause` put on a test function."""
    marks: list[pytest.Mark] = getattr(test, "pytestmark", [])
    return frozenset(str(one) for mark in marks if mark.name == "clause" for one in mark.args)
