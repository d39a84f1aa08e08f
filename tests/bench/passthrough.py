"""A relay of bytes in the gateway's own server: `python -m tests.bench.passthrough <port> <upstream's port>`.

The same HTTP server and the same connections to the upstream as Stack B, and nothing in between: what it costs is what a
stream costs before anything is done to it.
"""

import sys
from typing import Final

from deploy.roots.server import run, serve
from ports.http.body import Receive
from ports.http.edge import Scope, Send
from stack_b.backends.connection import Patience
from stack_b.backends.dial import dial, split_url
from stack_b.backends.pool import Pool

_PATIENCE: Final = Patience(first=30.0, next=30.0)


class Relay:
    def __init__(self, upstream: int) -> None:
        self._host = f"127.0.0.1:{upstream}"
        self._pool = Pool(dial(split_url(f"http://{self._host}"), None), connect_s=5.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        head = f"POST {scope['path']} HTTP/1.1\r\nhost: {self._host}\r\ncontent-length: {len(body)}\r\n\r\n"
        answer = await self._pool.ask(head.encode() + body, _PATIENCE)
        try:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            while piece := await answer.piece():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            answer.release()


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


if __name__ == "__main__":
    run(serve(Relay(int(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1])))
