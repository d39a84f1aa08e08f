"""A TCP proxy between one service and its database, that can break the ways networks do."""

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["pass", "cut", "delay", "half_open", "drip"]

_CHUNK: Final = 65_536
_DELAY_S: Final = (0.02, 0.25)
_DRIP_BYTES: Final = 32
_DRIP_S: Final = 0.002


class Proxy:
    """Listens on a port of its own. `cut` closes what is open and refuses; `half_open` swallows, and those connections
    stay dead; `delay` and `drip` slow down.

    On plain sockets: what a server of asyncio has accepted and not yet handed over would outlive the proxy's end."""

    def __init__(self, target: Callable[[], int], draw: random.Random) -> None:
        self._target = target
        self._draw = draw
        self._mode: Mode = "pass"
        self._listener: socket.socket | None = None
        self._serving: dict[socket.socket, asyncio.Task[None]] = {}
        """By the client's end, which is closed when the task has ended."""
        self._dead: set[socket.socket] = set()

    def start(self) -> int:
        """Begin to listen, in the running loop. The port."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
        port: int = self._listener.getsockname()[1]
        return port

    def become(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "cut":
            for task in self._serving.values():
                task.cancel()
        elif mode == "half_open":
            self._dead.update(self._serving)

    async def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        self.become("cut")
        await asyncio.gather(*self._serving.values(), return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            client, _ = listener.accept()
            if self._mode == "cut":
                client.close()
            else:
                self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        _prepare(client)
        if self._mode == "half_open":
            self._dead.add(client)
        task = self._serving[client] = asyncio.create_task(self._serve(client))

        def ended(_: asyncio.Task[None]) -> None:
            # Not by the task itself: one that is cancelled before its first step does nothing.
            del self._serving[client]
            self._dead.discard(client)
            client.close()

        task.add_done_callback(ended)

    async def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), socket.socket() as service:
            _prepare(service)
            await asyncio.get_running_loop().sock_connect(service, ("127.0.0.1", self._target()))
            pumps = [
                asyncio.create_task(self._pump(client, service, client)),
                asyncio.create_task(self._pump(service, client, client)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, source: socket.socket, sink: socket.socket, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, _CHUNK):
            if self._mode == "delay":
                await asyncio.sleep(self._draw.uniform(*_DELAY_S))
            if line in self._dead:
                continue
            if self._mode == "drip":
                for start in range(0, len(data), _DRIP_BYTES):
                    await loop.sock_sendall(sink, data[start : start + _DRIP_BYTES])
                    await asyncio.sleep(_DRIP_S)
            else:
                await loop.sock_sendall(sink, data)
        if line in self._dead:
            # Nobody hears of an end either.
            await asyncio.Event().wait()


def _prepare(end: socket.socket) -> None:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
