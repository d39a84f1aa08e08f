"""Reads that many requests want at the same moment: one is made, and all have its answer.

What is kept for seconds is stale for all at once. Without this, a few hundred requests would each ask the database for the
same row, on its few connections, and some would wait too long for one.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeAlias, TypeVar

from ports.errors import AgentOSError, again

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")
Read: TypeAlias = Callable[[], Coroutine[Any, Any, ValueT]]


class SharedReads(Generic[KeyT, ValueT]):
    def __init__(self) -> None:
        self._under_way: dict[KeyT, asyncio.Task[ValueT]] = {}

    async def of(self, key: KeyT, read: Read[ValueT]) -> ValueT:
        """What `read` answers, or the answer of the one under way for `key`. It goes on whoever of its callers leaves."""
        try:
            return await asyncio.shield(self._started(key, read))
        except AgentOSError as error:
            # An exception belongs to whoever raises it.
            raise again(error) from error

    def ahead(self, key: KeyT, read: Read[ValueT]) -> None:
        """Begin it, unless it is under way, and wait for nothing. Where it fails, who needs it tries again and is told."""
        self._started(key, read)

    async def close(self) -> None:
        """Whatever is being read is nobody's any more."""
        reading = list(self._under_way.values())
        for task in reading:
            task.cancel()
        if reading:
            await asyncio.wait(reading)

    def _started(self, key: KeyT, read: Read[ValueT]) -> asyncio.Task[ValueT]:
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(read())
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: KeyT, done: asyncio.Task[ValueT]) -> None:
        del self._under_way[key]
        if not done.cancelled():
            done.exception()  # its callers have it, or have left
