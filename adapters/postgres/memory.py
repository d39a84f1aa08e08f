"""MemoryPort over PostgreSQL, found by words."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.homes import at_homes
from adapters.postgres.rows import Row, packed, page_size, scope_of
from adapters.postgres.statements import load
from adapters.postgres.words import words, words_in
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.memory import MAX_MATCHES, Match, MemoryCapabilities, MemoryItem, MemoryPort, MemoryWrite
from ports.memory_rules import checked
from ports.messages import Json

_SQL: Final = load("memory")
_CAPABILITIES: Final = MemoryCapabilities(durable=True)


class PostgresMemory:
    """Satisfies `MemoryPort`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def capabilities(self) -> MemoryCapabilities:
        return _CAPABILITIES

    async def put(self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None) -> None:
        write = MemoryWrite(key=key, value=value, metadata=metadata or {})
        async with self._database.transaction(auth.tenant) as transaction:
            await remember(transaction, auth, (write,))

    async def get(self, auth: AuthContext, key: str) -> MemoryItem | None:
        async with self._database.transaction(auth.tenant) as transaction:
            row = await transaction.row(_SQL["get"], {**scope_of(auth), "key": key})
        return None if row is None else _item(row)

    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        size = page_size(limit, MAX_MATCHES)
        wanted = words(query)
        if not wanted:
            return ()
        asked = {**scope_of(auth), "words": packed(sorted(wanted)), "metadata": packed(metadata or {}), "limit": size}
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["search"], asked)
        return tuple(Match(item=_item(row), score=row["score"]) for row in rows)

    async def forget(self, auth: AuthContext, key: str) -> bool:
        async with self._database.transaction(auth.tenant) as transaction:
            return await transaction.row(_SQL["forget"], {**scope_of(auth), "key": key}) is not None


async def remember(transaction: Transaction, auth: AuthContext, writes: Sequence[MemoryWrite]) -> None:
    """Put all of `writes`. In the order of their keys, so that no two transactions wait for each other."""
    latest = {write.key: write for write in writes}
    for key in sorted(latest):
        write = latest[key]
        body = checked(key, write.value, max_value_bytes=_CAPABILITIES.max_value_bytes)
        said = sorted(words_in(write.value))
        scope = {**scope_of(auth), "key": key}
        item = {
            **scope,
            "value": body,
            "metadata": packed(write.metadata),
            "count": len(said),
            "principal": auth.principal,
        }
        await transaction.rows(_SQL["put"], item)
        await transaction.rows(_SQL["index"], {**scope, "words": packed(said)})


def _item(row: Row) -> MemoryItem:
    return MemoryItem(key=row["key"], value=row["value"], metadata=row["metadata"], updated_at=row["updated_at"])


@asynccontextmanager
async def open_memory(config: PostgresConfig, _given: Given) -> AsyncIterator[MemoryPort]:
    async with open_database(config) as database:
        yield PostgresMemory(database)


SPEC: Final[AdapterSpec[PostgresConfig, MemoryPort]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: _CAPABILITIES, open=at_homes(open_memory)
)
