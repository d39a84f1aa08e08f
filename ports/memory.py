"""Memory port: what agents remember, scoped inside every statement.

Clauses (each has a test in `conformance.memory`):

* MEM-1  After `put`, `get` of the same key gives the value and metadata; `put` again replaces both.
* MEM-2  `get` of an absent key gives None.
* MEM-3  `search` finds items that share words with the query, best first, at most `limit`; case and punctuation do not
         matter, and items that share no word are not found.
* MEM-4  `search` with `metadata` finds only items that hold all the given pairs.
* MEM-5  After `forget` an item is neither got nor found; forgetting an absent key is a no-op. It says whether it was there.
* MEM-6  A caller sees its own tenant's and namespace's items only; equal keys elsewhere are other items.
* MEM-7  A key over `MAX_KEY_CHARS`, empty, or with a NUL or a lone surrogate in it raises `InvalidArgument`, and so does a
         value over `capabilities.max_value_bytes`.
* MEM-8  What was put is there for a port opened anew on the same storage.
"""

from datetime import datetime
from typing import Final, Protocol

from msgspec import Struct

from ports.context import AuthContext
from ports.messages import Json

MAX_KEY_CHARS: Final = 256
MAX_MATCHES: Final = 100


class MemoryItem(Struct, frozen=True, kw_only=True):
    key: str
    value: Json
    metadata: dict[str, str] = {}
    updated_at: datetime


class MemoryWrite(Struct, frozen=True, kw_only=True):
    """What a `put` takes, as data: for whoever makes it true together with something else."""

    key: str
    value: Json
    metadata: dict[str, str] = {}


class Match(Struct, frozen=True, kw_only=True):
    item: MemoryItem
    score: float
    """Higher is better; comparable within one search only."""


class MemoryCapabilities(Struct, frozen=True, kw_only=True):
    durable: bool = False
    semantic: bool = False
    max_value_bytes: int = 64 * 1024


class MemoryPort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many tasks."""

    @property
    def capabilities(self) -> MemoryCapabilities: ...

    async def put(
        self, auth: AuthContext, key: str, value: Json, *, metadata: dict[str, str] | None = None
    ) -> None: ...

    async def get(self, auth: AuthContext, key: str) -> MemoryItem | None: ...

    async def search(
        self, auth: AuthContext, query: str, *, metadata: dict[str, str] | None = None, limit: int = 10
    ) -> tuple[Match, ...]: ...

    async def forget(self, auth: AuthContext, key: str) -> bool: ...
