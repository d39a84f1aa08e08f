"""An ASGI app on a real socket of loopback, in this process, for clients that are not ours."""

import asyncio
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import anyio
import uvicorn

from deploy.roots.http_protocol import BoundedProtocol
from ports.http.edge import App


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The test run's signals are its own."""
        yield


@asynccontextmanager
async def served(app: App, *, protocol: type[BoundedProtocol] = BoundedProtocol) -> AsyncIterator[str]:
    """The base URL; on the way out the server ends at once, open streams included."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=protocol,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # As the product's server: nothing stands between it and the app.
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        with anyio.fail_after(10):
            while not server.started:  # noqa: ASYNC110 - uvicorn offers a flag and no event
                await anyio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        with anyio.fail_after(10, shield=True):
            await task
