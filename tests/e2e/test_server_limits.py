"""What the server itself refuses before any app sees it, over a real socket."""

import asyncio
import socket

import anyio
import anyio.lowlevel
import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from deploy.roots.http_protocol import BoundedProtocol
from ports.http.limits import MAX_HEADER_BYTES
from tests.support.http_server import served
from tests.support.stack_b import stack_b

pytestmark = [pytest.mark.anyio]


async def test_a_header_block_within_the_limit_is_served_and_names_no_server() -> None:
    with anyio.fail_after(20):
        async with stack_b() as node, served(node.app) as url, httpx.AsyncClient(base_url=url) as client:
            answer = await client.get("/healthz", headers={"x-pad": "p" * (MAX_HEADER_BYTES - 1_024)})

    assert answer.status_code == 200
    assert "server" not in answer.headers


async def test_a_header_block_over_the_limit_is_refused() -> None:
    with anyio.fail_after(20):
        async with stack_b() as node, served(node.app) as url, httpx.AsyncClient(base_url=url) as client:
            answer = await client.get("/healthz", headers={"x-pad": "p" * (MAX_HEADER_BYTES + 1)})

    assert answer.status_code == 400


async def test_a_header_block_without_an_end_is_cut_off() -> None:
    with anyio.fail_after(20):
        async with stack_b() as node, served(node.app) as url:
            host, port = url.removeprefix("http://").split(":")
            async with await anyio.connect_tcp(host, int(port)) as stream:
                await stream.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
                # What the system buffers on the way is far less than this. A server that read on would take it all.
                endless = (b"x-pad: " + b"p" * 1_000 + b"\r\n") * 65_536
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.send(endless)


@pytest.mark.parametrize("pad", [MAX_HEADER_BYTES - 1_024, MAX_HEADER_BYTES + 1])
async def test_a_head_that_begins_behind_another_request_in_one_read_has_the_same_limit(pad: int) -> None:
    first = b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    second = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-pad: " + b"p" * pad
    async with stack_b() as node:
        config = uvicorn.Config(node.app, interface="asgi3", lifespan="off", log_config=None, server_header=False)
        config.load()
        protocol = BoundedProtocol(config, ServerState(), {})
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        with ours:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, theirs)
            protocol.data_received(first + second)
            protocol.data_received(b"\r\n\r\n")
            with anyio.fail_after(20):
                while (said := protocol.server_state.total_requests) < 2 and not protocol.transport.is_closing():
                    await anyio.lowlevel.checkpoint()
            protocol.transport.close()

    assert said == (2 if pad < MAX_HEADER_BYTES else 1)
