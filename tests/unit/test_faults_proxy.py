"""The proxy of the fault driver breaks lines the way it says."""

import asyncio
import gc
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.faults.proxy import Proxy

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def line() -> AsyncIterator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's end of a line by way of a proxy to a server that says each byte back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    proxy = Proxy(lambda: port, random.Random(1))  # noqa: S311 - a seed to repeat, not a secret
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.start())
    try:
        yield proxy, reader, writer
    finally:
        writer.close()
        await proxy.close()
        server.close()


async def test_a_half_open_line_stays_dead_and_nobody_hears_of_an_end() -> None:
    async with line() as (proxy, reader, writer):
        writer.write(b"a")
        first = await reader.readexactly(1)
        proxy.become("half_open")
        proxy.become("pass")
        writer.write(b"b")
        hearing = asyncio.create_task(reader.read(1))
        # Others are answered meanwhile; what the proxy still waits for is held by nobody else.
        for _ in range(3):
            heard, said = await asyncio.open_connection(*writer.get_extra_info("peername"))
            said.write(b"c")
            await heard.readexactly(1)
            said.close()
            gc.collect()

        assert first == b"a"
        assert not hearing.done()
        hearing.cancel()


async def test_a_line_that_is_cut_ends_and_no_other_begins() -> None:
    async with line() as (proxy, reader, writer):
        writer.write(b"a")
        await reader.readexactly(1)
        proxy.become("cut")
        anew, other = await asyncio.open_connection(*writer.get_extra_info("peername"))

        assert await reader.read() == b""
        assert await anew.read() == b""
        other.close()


@pytest.mark.parametrize("turns", range(6))
async def test_who_connects_as_the_proxy_closes_is_closed(turns: int) -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(lambda: nobody.getsockname()[1], random.Random(1))  # noqa: S311 - a seed to repeat, not a secret
    with nobody, socket.create_connection(("127.0.0.1", proxy.start())) as late:
        for _ in range(turns):  # of the loop: not yet accepted, accepted and not yet served, served
            await asyncio.sleep(0)
        await proxy.close()
        late.setblocking(False)

        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(late, 1), 5) == b""
