"""Followers of one run who are equally far read together: a hundred who wake at once cost one read."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeAlias

from msgspec import Struct

from ports.context import AuthContext
from ports.event import Event
from ports.ids import RunId, TenantId

_Place: TypeAlias = tuple[TenantId, str, RunId, int]


class Page(Struct, frozen=True):
    events: tuple[Event, ...]
    """The same objects for all who read together."""
    more: bool
    """Whether there were events beyond these, which one read does not give."""


class Turn(Struct, frozen=True):
    """A page, as one of those who read together got it."""

    page: Page
    fresh: bool
    """Whether the read began after it was asked for; else what woke the caller may be younger than the page."""


class _Read:
    """One read and whether it has begun."""

    def __init__(self, reading: Coroutine[None, None, Page]) -> None:
        self.begun = False
        self.task = asyncio.create_task(self._run(reading))

    async def _run(self, reading: Coroutine[None, None, Page]) -> Page:
        self.begun = True
        return await reading


class SharedPages:
    def __init__(self, read: Callable[[AuthContext, RunId, int], Coroutine[None, None, Page]]) -> None:
        self._read = read
        self._under_way: dict[_Place, _Read] = {}

    async def read(self, auth: AuthContext, run_id: RunId, after: int) -> Turn:
        """The events after `after`, from a read that was not over yet when this was called."""
        key = (auth.tenant, auth.namespace, run_id, after)
        read = self._under_way.get(key)
        # One that is over is not joined: its page may be old, and awaiting it would not let anybody else run.
        if read is None or read.task.done():
            read = _Read(self._read(auth, run_id, after))
            self._under_way[key] = read
            made = read
            read.task.add_done_callback(lambda _: self._forget(key, made))
        fresh = not read.begun
        # A follower that leaves does not take it from the others.
        return Turn(await asyncio.shield(read.task), fresh)

    def _forget(self, key: _Place, read: _Read) -> None:
        if self._under_way.get(key) is read:
            del self._under_way[key]
        if not read.task.cancelled():
            # Whoever waits raises it; where everybody has left it is nobody's.
            read.task.exception()
