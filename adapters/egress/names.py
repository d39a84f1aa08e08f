"""The addresses of names, as the system's resolver knows them; of each tenant's names so many at a time.

A question to a resolver can't be taken back: whoever's name server does not answer has a thread wait for as long as the
system likes. So a place is free again when the answer is there, and not when nobody waits for it any more.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias, TypeVar

from adapters.egress.shares import Shares
from ports.ids import TenantId

MAX_NAMES: Final = 64
MAX_NAMES_OF_A_TENANT: Final = 4

Resolve: TypeAlias = Callable[[str, int], Awaitable[tuple[str, ...]]]
"""Host name and port in, textual addresses out. Raises `OSError` when there are none."""

FoundT = TypeVar("FoundT")

# Of their own: those of the loop are few, and others wait for them.
_THREADS: Final = ThreadPoolExecutor(MAX_NAMES, thread_name_prefix="resolve")


async def resolve_by_system(host: str, port: int) -> tuple[str, ...]:
    """The addresses of `host`, without duplicates."""
    found = await asyncio.get_running_loop().run_in_executor(
        _THREADS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Lookups:
    """What becomes of names, whether somebody waits for it or not."""

    def __init__(self) -> None:
        self._shares = Shares(MAX_NAMES_OF_A_TENANT)
        self._under_way: set[asyncio.Future[Any]] = set()

    async def of(self, tenant: TenantId, look: Callable[[], Coroutine[Any, Any, FoundT]]) -> FoundT:
        """What `look` comes to, once the tenant has a place for it."""
        places = self._shares.of(tenant)
        await places.acquire()
        looking = asyncio.create_task(look())
        self._under_way.add(looking)

        def over(_: asyncio.Future[FoundT]) -> None:
            self._under_way.discard(looking)
            places.release()

        looking.add_done_callback(over)
        return await asyncio.shield(looking)

    def close(self) -> None:
        for looking in self._under_way:
            looking.cancel()
