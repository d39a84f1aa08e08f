"""Large bodies lie beside their rows: what is over 64 KiB of JSON is a reference in the row, by hash.

Once per tenant, however many rows hold it. A row without large bodies costs nothing more than before. A body that looks
like a reference is put aside whatever its size, so that what looks like one in a row always is one.
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from adapters.postgres.engine import Transaction
from adapters.postgres.rows import BLOB_MARK, WHOLE, Row, packed
from adapters.postgres.statements import load
from ports.errors import Internal
from ports.ids import TenantId
from ports.messages import Json

MAX_INLINE_BYTES: Final = 64 * 1024
_MAX_BYTES_PER_CHARACTER: Final = 4
_SQL: Final = load("blobs")


class Outgoing:
    """The large bodies of one write. Their statement comes after the one that proves the right to write."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        """By hexadecimal hash."""

    def packed(self, value: Json) -> str:
        """`value` as JSON text for its row: itself, or a reference to it. Raises `InvalidArgument` like `packed`."""
        text = packed(value)
        if not _looks_like_reference(value):
            if len(text) * _MAX_BYTES_PER_CHARACTER <= MAX_INLINE_BYTES:
                return text
            raw = text.encode()
            if len(raw) <= MAX_INLINE_BYTES:
                return text
        raw = text.encode()
        digest = hashlib.sha256(raw).hexdigest()
        self.bodies[digest] = raw
        return packed({BLOB_MARK: digest, "bytes": len(raw)})

    def packed_or_null(self, value: Json) -> str | None:
        return None if value is None else self.packed(value)

    async def keep(self, transaction: Transaction, tenant: TenantId, run: uuid.UUID) -> None:
        """Write the bodies, for `run`. In the transaction that wrote the references."""
        await keep_all(transaction, [(tenant, run, self)])


async def keep_all(transaction: Transaction, outgoing: Sequence[tuple[TenantId, uuid.UUID, Outgoing]]) -> None:
    """`keep` for several runs."""
    bodies = [(tenant, digest, run, raw) for tenant, run, one in outgoing for digest, raw in one.bodies.items()]
    # In one order everywhere, so that two writers never wait for each other in a circle.
    for tenant, digest, run, raw in sorted(bodies):
        asked = {"tenant": tenant, "run": run, "sha256": bytes.fromhex(digest), "body": raw}
        await transaction.rows(_SQL["keep"], asked)


async def whole(
    transaction: Transaction,
    tenant: TenantId,
    rows: Sequence[Row],
    columns: tuple[str, ...],
    *,
    at_hand: Mapping[str, bytes] | None = None,
) -> Sequence[Row]:
    """`rows` with the bodies in place of references in `columns`. Asks for those that are not `at_hand`."""
    wanted = {row[column][BLOB_MARK] for row in rows for column in columns if _looks_like_reference(row[column])}
    if not wanted:
        return rows
    bodies = dict(at_hand or {})
    if missing := sorted(wanted - bodies.keys()):
        found = await transaction.rows(_SQL["fetch"], {"tenant": tenant, "hashes": packed(missing)})
        bodies |= {row["sha256"].hex(): row["body"] for row in found}
    if lost := wanted - bodies.keys():
        raise Internal(f"the bodies {sorted(lost)} are referred to and not there")
    # Decoded for each row anew: what one reader does to its value reaches nobody else.
    return [
        {
            **row,
            WHOLE: True,
            **{
                column: msgspec.json.decode(bodies[row[column][BLOB_MARK]])
                for column in columns
                if _looks_like_reference(row[column])
            },
        }
        for row in rows
    ]


def leading(rows: Sequence[Row], column: str, *, most: int) -> Sequence[Row]:
    """The rows from the first on whose large bodies in `column` come to `most` bytes at most; one at least."""
    size = 0
    for place, row in enumerate(rows):
        if _looks_like_reference(row[column]):
            size += row[column]["bytes"]
            if size > most and place > 0:
                return rows[:place]
    return rows


def _looks_like_reference(value: Json) -> bool:
    return isinstance(value, dict) and BLOB_MARK in value
