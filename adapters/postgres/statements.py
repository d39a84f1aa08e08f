"""Named statements from `sql/*.sql`.

A statement begins with `-- name: <name>` and ends where the next one begins. Parameters are `:name`; a cast of one is
written `CAST(:name AS type)`. They are numbered as the driver wants them once, when a module is loaded.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from msgspec import Struct

_MARK: Final = "-- name:"
_PARAMETER: Final = re.compile(r"(?<![:\w]):(\w+)(?![:\w])")
"""Neither a cast with two colons nor a time of day."""


class Statement(Struct, frozen=True):
    sql: str
    """With `$1`, `$2`, …"""
    names: tuple[str, ...]
    """What `$1`, `$2`, … are called."""

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """The values in their order; those that the statement has no use for are left out."""
        return [parameters[name] for name in self.names]


def statement(source: str) -> Statement:
    """`source` with its `:name` parameters numbered."""
    names = tuple(dict.fromkeys(_PARAMETER.findall(source)))
    return Statement(_PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", source), names)


def parse(source: str) -> dict[str, str]:
    """Statement texts by name, in order."""
    found: dict[str, str] = {}
    for block in source.split(_MARK)[1:]:
        name, _, body = block.partition("\n")
        if name.strip() in found:
            raise ValueError(f"statement {name.strip()!r} is there twice")
        found[name.strip()] = body.strip().rstrip(";")
    return found


def load(file: str) -> dict[str, Statement]:
    """The statements of `sql/<file>.sql`."""
    source = (files("adapters.postgres") / "sql" / f"{file}.sql").read_text(encoding="utf-8")
    return {name: statement(body) for name, body in parse(source).items()}


def constant(text: str) -> str:
    """`text` as a constant within a statement, whatever the server takes a backslash for."""
    if "\0" in text:
        # The server would take the statement to end there.
        raise ValueError("a constant holds no NUL")
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
