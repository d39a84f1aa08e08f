"""MemoryPort in this process. Search counts shared words; no index, no ranking beyond that."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final

from adapters.inproc.store import InprocConfig, Store, own, page_size, store
from ports.adapter import AdapterSpec, Given
from ports.clock import Clock
from ports.context import AuthContext
from ports.ids import PrincipalId, TenantId
from ports.memory import MAX_MATCHES, Match, MemoryCapabilities, MemoryItem, MemoryPort, MemoryWrite
from ports.memory_rules import checked
from ports.messages import Json

_CAPABILITIES: Final = MemoryCapabilities()
_WORD: Final = re.compile(r"\w+")


@dataclass(slots=True)
class Items:
    """A table of a `Store`."""

    rows: dict[tuple[TenantId, str, str], MemoryItem] = field(default_factory=dict)
    writers: dict[tuple[TenantId, str, str], PrincipalId] = field(default_factory=dict)
    """In whose name each was last written."""

    def put(self, auth: AuthContext, write: MemoryWrite, now: datetime) -> None:
        self.writers[auth.tenant, auth.namespace, write.key] = auth.principal
        self.rows[auth.tenant, auth.namespace, write.key] = MemoryItem(
            key=write.key, value=own(write.value), metadata=dict(write.metadata), updated_at=now
        )


def check(write: MemoryWrite) -> None:
    checked(write.key, write.value, max_value_bytes=_CAPABILITIES.max_value_bytes)


class InprocMemory:
    """Satisfies `MemoryPort`."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._items = storage.table(Items)
        self._rows = self._items.rows
        self._clock = clock

    @property
    def capabilities(self) -> MemoryCapabilities:
        return _CAPABILITIES

    async def put(self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None) -> None:
        write = MemoryWrite(key=key, value=value, metadata=metadata or {})
        check(write)
        self._items.put(auth, write, self._clock.now())

    async def get(self, auth: AuthContext, key: str) -> MemoryItem | None:
        return own(self._rows.get((auth.tenant, auth.namespace, key)))

    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]:
        size = page_size(limit, MAX_MATCHES)
        wanted = words(query)
        pairs = (metadata or {}).items()
        mine = (item for key, item in self._rows.items() if key[:2] == (auth.tenant, auth.namespace))
        scored = [
            Match(item=item, score=float(len(wanted & words_in(item.value))))
            for item in mine
            if pairs <= item.metadata.items()
        ]
        # The newest first among equals: sorting is stable.
        scored.sort(key=lambda match: match.item.updated_at, reverse=True)
        scored.sort(key=lambda match: match.score, reverse=True)
        return own(tuple(islice((match for match in scored if match.score > 0), size)))

    async def forget(self, auth: AuthContext, key: str) -> bool:
        return self._rows.pop((auth.tenant, auth.namespace, key), None) is not None


def words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def words_in(value: Json) -> frozenset[str]:
    """The words of every text inside a JSON value; members' names are not content."""
    return frozenset().union(*(words(text) for text in texts_in(value)))


def texts_in(value: Json) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part)
    elif isinstance(value, str):
        yield value


@asynccontextmanager
async def open_memory(config: InprocConfig, given: Given) -> AsyncIterator[MemoryPort]:
    yield InprocMemory(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, MemoryPort]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: _CAPABILITIES, open=open_memory
)
