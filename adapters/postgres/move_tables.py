"""What of a tenant moves, table by table: pure.

What stays in the shared database: the directory (tenants, keys), budgets and usage, the gateway's records and journal. What
stays where it was written: the audit. A log that a tool can copy row by row, that tool can rewrite.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

Key: TypeAlias = Mapping[str, str | int]
"""Columns of a row's key by name, as JSON has them."""

SHARED: Final = "shared"
"""The home of every tenant that has no other."""


class Parent(Struct, frozen=True):
    """A row that must be there before."""

    table: str
    link: tuple[tuple[str, str], ...]
    """(column of the parent's key, column here)."""


class Moved(Struct, frozen=True, kw_only=True):
    """A table whose rows move. All are `tenant_id` and these."""

    name: str
    key: tuple[tuple[str, str], ...]
    """Column and type."""
    parents: tuple[Parent, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """Columns of the link to a parent that are not in the key."""
    rows: int = 500
    """Copied at a time."""
    settles: str = ""
    """Column of the time at which a row was written that is never changed afterwards; empty where rows change."""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for column, _ in self.key)

    @property
    def noted(self) -> tuple[tuple[str, str], ...]:
        """What is noted of a row that changes."""
        return (*self.key, *self.links)


_OF_RUN: Final = Parent("runs", (("id", "run_id"),))
_RUN: Final = ("run_id", "uuid")
_NAMESPACE: Final = ("namespace", "text")

# Parents before children.
TABLES: Final = (
    Moved(name="agents", key=(_NAMESPACE, ("id", "text"), ("version", "integer"))),
    Moved(name="runs", key=(("id", "uuid"),)),
    Moved(
        name="idempotency",
        key=(_NAMESPACE, ("principal", "text"), ("route", "text"), ("key", "text")),
        parents=(_OF_RUN,),
        links=(_RUN,),
    ),
    Moved(name="steps", key=(_RUN, ("n", "integer")), parents=(_OF_RUN,)),
    Moved(name="run_events", key=(_RUN, ("sequence", "integer")), rows=1_000, settles="time"),
    Moved(name="blobs", key=(("sha256", "bytea"),), rows=20),
    Moved(
        name="blob_refs",
        key=(_RUN, ("sha256", "bytea")),
        parents=(_OF_RUN, Parent("blobs", (("sha256", "sha256"),))),
    ),
    Moved(name="memory_items", key=(_NAMESPACE, ("key", "text"))),
    Moved(
        name="memory_words",
        key=(_NAMESPACE, ("word", "text"), ("key", "text")),
        parents=(Parent("memory_items", (("namespace", "namespace"), ("key", "key"))),),
        rows=2_000,
    ),
    Moved(name="queue_messages", key=(("id", "uuid"),)),
    Moved(name="run_rates", key=(("stripe", "smallint"),)),
    Moved(name="run_backlogs", key=(("stripe", "smallint"),)),
    Moved(name="run_slots", key=(("n", "integer"),)),
)
COUNTERS: Final = ("run_rates", "run_backlogs", "run_slots")
"""Few rows, which triggers at the destination change as well: replaced as a whole at the end."""
BY_NAME: Final[Mapping[str, Moved]] = {table.name: table for table in TABLES}


def changed_keys(changes: Iterable[tuple[str, Key]]) -> dict[str, list[Key]]:
    """The rows to bring up to date, by table, parents first, each once: those that changed and the parents of these.

    A parent's own change may be noted after its child's, and in another batch.
    """
    found: dict[str, dict[bytes, Key]] = {table.name: {} for table in TABLES}
    for name, noted in changes:
        table = BY_NAME[name]
        _add(found, name, {column: noted[column] for column in table.columns})
        for parent in table.parents:
            _add(found, parent.table, {theirs: noted[ours] for theirs, ours in parent.link})
    return {name: list(keys.values()) for name, keys in found.items() if keys}


def _add(found: dict[str, dict[bytes, Key]], name: str, key: Key) -> None:
    found[name][msgspec.json.encode(key, order="deterministic")] = key


def children_of(name: str) -> list[tuple[Moved, Parent]]:
    return [(table, parent) for table in TABLES for parent in table.parents if parent.table == name]


def noting(table: Moved) -> str:
    """The query that makes what is noted of a row, which is `$1`."""
    return f"SELECT jsonb_build_object({', '.join(f'{quoted(column)}, ($1).{column}' for column, _ in table.noted)})"


def recordset(columns: Sequence[tuple[str, str]], keys: Sequence[Key]) -> str:
    """`keys` as a table expression with the alias `k`."""
    typed = ", ".join(f"{column} {kind}" for column, kind in columns)
    return f"jsonb_to_recordset({quoted(msgspec.json.encode(keys).decode())}::jsonb) AS k ({typed})"


def same(table: Sequence[str], ours: str, theirs: str) -> str:
    return " AND ".join(f"{ours}.{column} = {theirs}.{column}" for column in table)


def quoted(text: str) -> str:
    """As a literal: `standard_conforming_strings` is on, so that only quotes mean something."""
    return "'" + text.replace("'", "''") + "'"
