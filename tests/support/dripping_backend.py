"""A backend in this process whose streams drip, so that many are under way while something else happens."""

import asyncio
import contextlib
import json
from typing import Any, Final

from ports.http.body import Receive
from ports.http.edge import Scope, Send

MODEL: Final = "drip-1"
WORDS: Final = "some words come. "
USAGE: Final = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


class DrippingBackend:
    """Answers chats at once; a stream goes on, a chunk every `pace` seconds, until `finish` is set."""

    def __init__(self, *, pace: float) -> None:
        self._pace = pace
        self.finish = asyncio.Event()
        self.open = 0
        self.sent = 0
        """Chunks with words, over all streams."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/models"):
            await self._json(send, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
            return
        request = json.loads(await _body(receive))
        if request.get("stream"):
            await self._stream(send)
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
            await self._json(send, {**_head("chat.completion"), "choices": [choice], "usage": USAGE})

    async def _stream(self, send: Send) -> None:
        self.open += 1
        try:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while not self.finish.is_set():
                self.sent += 1
                await self._words(send, {"content": WORDS}, None)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.finish.wait(), self._pace)
            await self._words(send, {}, "stop")
            await self._event(send, {**_head("chat.completion.chunk"), "choices": [], "usage": USAGE})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            self.open -= 1

    async def _words(self, send: Send, delta: dict[str, str], finish: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        await self._event(send, {**_head("chat.completion.chunk"), "choices": [choice]})

    @staticmethod
    async def _event(send: Send, event: dict[str, Any]) -> None:
        body = b"data: " + json.dumps(event).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})

    @staticmethod
    async def _json(send: Send, value: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(value).encode()})


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-drip", "object": kind, "created": 1_700_000_000, "model": MODEL}


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
