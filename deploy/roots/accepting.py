"""Connections that wait together are accepted together.

The event loop's own server accepts one in each of its turns. Under load a turn is as long as all requests that are ready
take, tens of milliseconds, so that of many clients who come at once the last one waited seconds, connected and unheard.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from socket import IPPROTO_TCP, TCP_NODELAY, socket
from typing import Final

AT_ONCE: Final = 64
"""Connections in one turn, of one listener; what they ask for is work as well."""


class Accepting:
    """Takes from the queues of `listeners`, beside the servers that own them."""

    def __init__(self, listeners: Iterable[int], protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """`listeners`: their file descriptors, which stay their owners'."""
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[socket] = []
        for number in listeners:
            # One of our own: the loop looks at each descriptor for one reason only.
            with socket(fileno=number) as owned:
                listener = owned.dup()
                owned.detach()
            listener.setblocking(False)
            self._listeners.append(listener)
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    async def close(self) -> None:
        """Take nothing more. Connections that were taken are at their protocols afterwards."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, listener: socket) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _address = listener.accept()
            except OSError:
                # Mostly that there is none left. Whatever else it is, the server that owns the listener sees it too.
                return
            task = self._loop.create_task(self._taken(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _taken(self, connection: socket) -> None:
        try:
            with suppress(OSError):
                connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            # Its client is gone already.
            connection.close()
