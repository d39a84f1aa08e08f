"""What the adapters of this family share: named storages in this process, ids, waiting.

Ports opened with the same `name` see the same data, for as long as the process lives; `drop` forgets one. A storage
belongs to one event loop at a time: every change is made between two awaits, which is all the locking there is.
"""

import asyncio
import copy
import secrets
import uuid
from datetime import datetime, timedelta
from types import NoneType
from typing import Any, Final, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from ports.clock import Clock
from ports.errors import InvalidArgument
from ports.ids import minted

TableT = TypeVar("TableT")
ValueT = TypeVar("ValueT")


class InprocConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str = "default"
    """Which storage of this process."""


class Signal:
    """Tells everybody who waits at this moment that something changed."""

    def __init__(self) -> None:
        # In order: who waited first is woken first, in every process alike.
        self._waiting: dict[asyncio.Event, None] = {}

    def fire(self) -> None:
        for waiter in self._waiting:
            waiter.set()

    async def wait(self, clock: Clock | None = None, timeout: timedelta | None = None) -> None:
        """Until the next `fire`, or until `timeout` has passed on `clock`."""
        waiter = asyncio.Event()
        self._waiting[waiter] = None
        try:
            if clock is None or timeout is None:
                await waiter.wait()
            else:
                await first_of(waiter, clock, timeout)
        finally:
            del self._waiting[waiter]


async def first_of(waiter: asyncio.Event, clock: Clock, timeout: timedelta) -> None:
    """Until `waiter` is set or `timeout` has passed, whichever comes first. Leaves no task behind."""
    tasks = [asyncio.ensure_future(waiter.wait()), asyncio.ensure_future(clock.sleep(timeout))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Store:
    """One storage. Each adapter keeps its rows in a table of its own class, made at first use."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = secrets.token_hex(8)
        self._tables: dict[type[Any], Any] = {}  # the key's type is the value's, which a dict can't say
        self._last_id = 0

    def table(self, kind: type[TableT]) -> TableT:
        if kind not in self._tables:
            self._tables[kind] = kind()
        return cast(TableT, self._tables[kind])

    def mint(self, prefix: str, now: datetime) -> str:
        """A new id with a UUIDv7 inside. Ids of one store sort by creation, also when the clock goes back."""
        made = uuid7_int(now, secrets.randbits(74))
        self._last_id = max(made, self._last_id + 1)
        return minted(prefix, uuid.UUID(int=self._last_id))


_VERSION_AND_VARIANT: Final = (7 << 76) | (2 << 62)


def uuid7_int(now: datetime, random_bits: int) -> int:
    """The UUIDv7 of `now` with these 74 random bits, as an integer."""
    milliseconds = int(now.timestamp() * 1_000)
    return (milliseconds << 80) | _VERSION_AND_VARIANT | ((random_bits >> 62) << 64) | (random_bits & ((1 << 62) - 1))


_STORES: Final[dict[str, Store]] = {}


def store(name: str) -> Store:
    """The storage `name` of this process, made at first use."""
    if name not in _STORES:
        _STORES[name] = Store(name)
    return _STORES[name]


def drop(name: str) -> None:
    """Forget the storage `name` and all it holds."""
    _STORES.pop(name, None)


_IMMUTABLE: Final = frozenset({NoneType, bool, int, float, str, bytes, datetime, timedelta, frozenset})
"""Types whose values nobody can change, and that hold none that somebody could: members of a set have a hash."""


def own(value: ValueT) -> ValueT:
    """A copy that shares nothing mutable: what a caller does to its JSON afterwards must not reach the storage.

    What can't be changed is shared, which makes this far cheaper than `copy.deepcopy`: most of a message is that.
    """
    return cast(ValueT, _owned(value))


def _owned(value: Any) -> Any:  # of whatever a message may hold
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind is dict:
        return {key: _owned(item) for key, item in value.items()}
    if kind is list:
        return [_owned(item) for item in value]
    if kind is tuple:
        return tuple([_owned(item) for item in value])
    if isinstance(value, Struct) and value.__struct_config__.frozen:
        copied = {}
        for name in value.__struct_fields__:
            held = getattr(value, name)
            if type(held) not in _IMMUTABLE and (item := _owned(held)) is not held:
                copied[name] = item
        return replace(value, **copied) if copied else value
    return copy.deepcopy(value)


def page_size(limit: int, most: int) -> int:
    """`limit` where it makes sense, `most` where it asks for more. Raises `InvalidArgument` below 1."""
    if limit < 1:
        raise InvalidArgument(f"limit must be at least 1, not {limit}")
    return min(limit, most)
