"""An ASGI app behind a pair of sockets: real HTTP between a backend's client and a server of this process, and no port."""

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.server import ServerState

from deploy.roots.http_protocol import BoundedProtocol
from ports.http.edge import App
from stack_b.backends.connection import Connection
from stack_b.backends.dial import Dial


def in_process(app: App) -> Dial:
    """Reaches `app`, whatever the URL says."""
    config = uvicorn.Config(
        app, interface="asgi3", lifespan="off", log_config=None, access_log=False, server_header=False
    )
    config.load()
    state = ServerState()

    async def connected(protocol: Callable[[], Connection]) -> Connection:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        await loop.connect_accepted_socket(lambda: BoundedProtocol(config, state, {}), theirs)
        _, connection = await loop.create_connection(protocol, sock=ours)
        return connection

    return connected
