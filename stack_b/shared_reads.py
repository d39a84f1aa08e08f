"""Reads that many requests want at the same moment: one is made, and all have its answer.

What is kept for seconds is stale for all at once. Without this, a few hundred requests would each ask the database for the
same row, on its few connections, and some would wait too long for one.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from ports.errors import AgentOSError
from stack_b.replay import again

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class SharedReads(Generic[KeyT, ValueT]):
    def __init__(self) -> None:
        self._under_way: dict[KeyT, asyncio.Task[ValueT]] = {}

    async def of(self, key: KeyT, read: Callable[[], Coroutine[Any, Any, ValueT]]) -> ValueT:
        """What `read` answers, or the answer of the one under way for `key`. It goes on whoever of its callers leaves."""
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(read())
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        try:
            return await asyncio.shield(task)
        except AgentOSError as error:
            # An exception belongs to whoever raises it.
            raise again(error) from error

    def _ended(self, key: KeyT, done: asyncio.Task[ValueT]) -> None:
        del self._under_way[key]
        if not done.cancelled():
            done.exception()  # its callers have it, or have left
