"""A server process, to test how one follows another: `python -m tests.support.small_server <port> <door> <word> [<file>]`.

It answers every request with its word, `/slow` after a while. It is ready when the file exists; at once when none is named.
"""

import os
import sys
from pathlib import Path

import anyio

from deploy.roots.server import run, serve
from ports.http.body import Receive
from ports.http.edge import App, Scope, Send

SLOW_S = 0.5


def app(word: str, ready: anyio.Path | None) -> App:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        unready = scope["path"] == "/readyz" and ready is not None and not await ready.exists()
        if scope["path"] == "/slow":
            await anyio.sleep(SLOW_S)
        await send({"type": "http.response.start", "status": 503 if unready else 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{word} {os.getpid()}".encode()})

    return answer


if __name__ == "__main__":
    port, door, word, *more = sys.argv[1:]
    run(serve(app(word, anyio.Path(more[0]) if more else None), host="127.0.0.1", port=int(port), handover=Path(door)))
