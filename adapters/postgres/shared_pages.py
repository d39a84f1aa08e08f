"""Followers of one run who are equally far read together: a hundred who wake at once cost one read."""

import asyncio
import copy
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ports.context import AuthContext
from ports.event import Event
from ports.ids import RunId, TenantId

_Place: TypeAlias = tuple[TenantId, str, RunId, int]


class Page(Struct, frozen=True):
    events: tuple[Event, ...]
    ours: bool
    """Whether it was read for who asked; else for another, who began a moment earlier."""


class SharedPages:
    def __init__(self, read: Callable[[AuthContext, RunId, int], Coroutine[Any, Any, tuple[Event, ...]]]) -> None:
        self._read = read
        self._under_way: dict[_Place, asyncio.Task[tuple[Event, ...]]] = {}

    async def read(self, auth: AuthContext, run_id: RunId, after: int) -> Page:
        """The events after `after`, from a read that was not over yet when this was called."""
        key = (auth.tenant, auth.namespace, run_id, after)
        task = self._under_way.get(key)
        # One that is over is not joined: its page may be old, and awaiting it would not let anybody else run.
        if ours := task is None or task.done():
            task = asyncio.create_task(self._read(auth, run_id, after))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        # A follower that leaves does not take it from the others.
        events = await asyncio.shield(task)
        if not ours:
            # What one reader does to an event reaches nobody else.
            events = tuple(replace(event, data=copy.deepcopy(event.data)) for event in events)
        return Page(events, ours)

    def _forget(self, key: _Place, done: asyncio.Task[tuple[Event, ...]]) -> None:
        if self._under_way.get(key) is done:
            del self._under_way[key]
        if not done.cancelled():
            # Whoever waits raises it; where everybody has left it is nobody's.
            done.exception()
