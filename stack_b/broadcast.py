"""What is said once, for any number of listeners, whenever they come."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

T = TypeVar("T")


class Broadcast(Generic[T]):
    """Keeps all that was said: who listens hears it from the beginning, and then as it comes."""

    def __init__(self) -> None:
        self._said: list[T] = []
        self._ended = False
        self._news: asyncio.Event | None = None

    def tell(self, item: T) -> None:
        self._said.append(item)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    async def listen(self) -> AsyncGenerator[T, None]:
        at = 0
        while True:
            while at < len(self._said):
                yield self._said[at]
                at += 1
            if self._ended:
                return
            if self._news is None:
                self._news = asyncio.Event()
            await self._news.wait()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None
