"""The batches of an erasing: windows of a tenant's rows in their order, so that each call looks at a bounded number.

Nothing is indexed by who it is of: these are questions of a day in a year, and no write shall pay for them. How far an
erasing got is in its tombstone, in the transaction of what it removed.
"""

from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from adapters.postgres.engine import Transaction
from adapters.postgres.rows import Row, packed
from adapters.postgres.statements import load
from ports.privacy import DONE, Counts, Erasure

_SQL: Final = load("privacy")
WINDOW: Final = 2_000
"""Rows of a tenant that one call looks at; well within a statement's time."""
RUNS: Final = 200
"""Runs that one call looks at: each may have many events."""
_BEFORE_ALL: Final = "00000000-0000-0000-0000-000000000000"

_STAGES: Final[tuple[tuple[str, str], ...]] = (
    ("runs", "runs"),
    ("request_contents", "texts"),
    ("requests", "requests"),
    ("usage", "usage"),
    ("model_replies", "replies"),
    ("queue_messages", "replies"),
    ("memory_items", "memory"),
    ("api_keys", "keys"),
    ("audit", "audit"),
)
"""In this order, and what each counts as."""
_ORDER: Final = tuple(stage for stage, _ in _STAGES)
FIRST: Final = _ORDER[0]
CLOCKS_APART: Final = timedelta(minutes=5)
"""How far apart the clocks of two databases may be: an erasing begins by one, and its runs are made by another."""


class Rest(Struct, frozen=True, kw_only=True):
    """What is to be known at the end of an erasing, beside its tombstone."""

    beside: Counts = Counts()
    """What went in other databases."""
    directory: bool = True
    """Whether this database is the one that says who is barred, and what is held."""


def nothing_yet() -> dict[str, Any]:
    """Of a tombstone that begins."""
    return {"stage": FIRST, "counts": packed(msgspec.to_builtins(Counts()))}


async def go_on(transaction: Transaction, asked: dict[str, Any], row: Row, rest: Rest) -> Erasure:
    """The next window of the stage that the tombstone names."""
    stage, counts = str(row["stage"]), msgspec.convert(row["counts"], Counts)
    removed, after = await _window(transaction, asked, stage, row["after"])
    name = dict(_STAGES)[stage]
    counts = replace(counts, **{name: getattr(counts, name) + removed})
    if after is not None:
        return await _kept(transaction, asked, stage, counts, after)
    place = _ORDER.index(stage) + 1
    if place < len(_ORDER):
        return await _kept(transaction, asked, _ORDER[place], counts)
    return await _end(transaction, asked, counts, row["begun_at"], rest)


async def _window(
    transaction: Transaction, asked: dict[str, Any], stage: str, after: str | None
) -> tuple[int, str | None]:
    """How many rows that were, and where to go on; None: they were the last."""
    if stage in {"runs", "requests", "usage"}:
        first = "" if stage == "usage" else _BEFORE_ALL
        limit = RUNS if stage == "runs" else WINDOW
        [row] = await transaction.rows(_SQL[f"erase_{stage}"], {**asked, "after": after or first, "limit": limit})
        return row["removed"], None if row["last"] is None else str(row["last"])
    if stage == "audit":
        first_seq = int(after or 0) + 1
        last_seq = first_seq + WINDOW - 1
        [row] = await transaction.rows(_SQL["erase_audit"], {**asked, "first": first_seq, "last": last_seq})
        return row["removed"], None if last_seq >= (row["head"] or 0) else str(last_seq)
    [row] = await transaction.rows(_SQL["erase_rest"], {**asked, "stage": stage, "limit": WINDOW})
    return row["removed"], None if row["removed"] < WINDOW else _BEFORE_ALL


async def _end(
    transaction: Transaction, asked: dict[str, Any], counts: Counts, begun_at: datetime, rest: Rest
) -> Erasure:
    """Unless runs came in between the first call and the moment in which every process knew who was barred."""
    [late] = await transaction.rows(_SQL["late"], {**asked, "begun": begun_at - CLOCKS_APART})
    if late["late"]:
        return await _kept(transaction, asked, FIRST, counts)
    if rest.directory:
        await transaction.rows(_SQL["end"], asked)
    counts = plus(counts, rest.beside)
    await _kept(transaction, asked, FIRST, counts)
    told = ", ".join(f"{name} {count}" for name, count in msgspec.structs.asdict(counts).items())
    [row] = await transaction.rows(_SQL["done"], {**asked, "action": DONE, "detail": told})
    return erasure_of(row)


async def _kept(
    transaction: Transaction, asked: dict[str, Any], stage: str, counts: Counts, after: str | None = None
) -> Erasure:
    kept = {**asked, "stage": stage, "after": after, "counts": packed(msgspec.to_builtins(counts))}
    [row] = await transaction.rows(_SQL["keep"], kept)
    return erasure_of(row)


def plus(one: Counts, other: Counts) -> Counts:
    theirs = msgspec.structs.asdict(other)
    return Counts(**{name: count + theirs[name] for name, count in msgspec.structs.asdict(one).items()})


def erasure_of(row: Row) -> Erasure:
    return Erasure(
        name=row["name"],
        status=row["status"],
        begun_at=row["begun_at"],
        erased_at=row["erased_at"],
        counts=msgspec.convert(row["counts"], Counts),
    )
