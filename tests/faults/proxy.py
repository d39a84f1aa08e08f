"""A TCP proxy between one service and its database, that can break the ways networks do."""

import asyncio
import random
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
    stay dead; `delay` and `drip` slow down."""

    def __init__(self, target: Callable[[], int], draw: random.Random) -> None:
        self._target = target
        self._draw = draw
        self._mode: Mode = "pass"
        self._open: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        """Of connections that are open: a dead one waits for nothing, and the loop would let it be collected."""
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def become(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "cut":
            for writer in self._open:
                writer.transport.abort()
        elif mode == "half_open":
            self._dead |= self._open

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.become("cut")
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._mode == "half_open":
                self._dead.add(writer)
            if self._mode != "cut":
                with suppress(OSError):
                    await self._join(reader, writer)
        finally:
            self._open.discard(writer)
            self._dead.discard(writer)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target())
        pumps = [
            asyncio.create_task(self._pump(reader, back, writer)), asyncio.create_task(self._pump(there, writer, writer))
        ]  # fmt: skip
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            back.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, line: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            if self._mode == "delay":
                await asyncio.sleep(self._draw.uniform(*_DELAY_S))
            if line in self._dead:
                continue
            if self._mode == "drip":
                for start in range(0, len(data), _DRIP_BYTES):
                    sink.write(data[start : start + _DRIP_BYTES])
                    await asyncio.sleep(_DRIP_S)
            else:
                sink.write(data)
            await sink.drain()
        if line in self._dead:
            # Nobody hears of an end either.
            await asyncio.Event().wait()
