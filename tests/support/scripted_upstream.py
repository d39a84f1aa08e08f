"""An OpenAI-shaped server that does what a test tells it: answers, streams step by step, fails, breaks off, stays silent.

An ASGI app, so that it serves in process (`httpx.ASGITransport` can't pace a stream) or over a real socket
(`tests.support.http_server`). What it was sent is in `requests`.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ports.http.body import Receive
from ports.http.edge import Scope, Send

Json: TypeAlias = Any  # JSON of a test


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: Json


@dataclass(frozen=True)
class Whole:
    """One whole answer."""

    body: Json
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Events:
    """A stream: each item one event's data (a dict becomes JSON). `hold` waits after that many events."""

    events: Sequence[Json]
    done: bool = True
    hold_after: int | None = None


@dataclass
class ScriptedUpstream:
    """Answers each call with the next of `script`; the last one again and again."""

    script: list[Whole | Events] = field(default_factory=list)
    models: Sequence[str] = ("m-1",)
    requests: list[Received] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a stream has come to its hold."""
    resume: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a caller left a held stream."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"].endswith("/models"):
            data = [{"id": model, "object": "model"} for model in self.models]
            await _whole(send, Whole({"object": "list", "data": data}))
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append(Received(scope["path"], headers, json.loads(body)))
        step = self.script[0] if len(self.script) == 1 else self.script.pop(0)
        if isinstance(step, Whole):
            await _whole(send, step)
        else:
            await self._stream(step, receive, send)

    async def _stream(self, step: Events, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, event in enumerate(step.events):
            if number == step.hold_after and await self._hold(receive):
                return
            text = event if isinstance(event, str) else json.dumps(event)
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
        if step.hold_after == len(step.events) and await self._hold(receive):
            return
        tail = b"data: [DONE]\n\n" if step.done else b""
        await send({"type": "http.response.body", "body": tail})

    async def _hold(self, receive: Receive) -> bool:
        """Wait to be resumed; whether the caller left meanwhile."""
        self.held.set()
        first = await _first(self.resume.wait, lambda: _disconnected(receive))
        if first == 1:
            self.gone.set()
        return first == 1


async def _first(*waits: Callable[[], Awaitable[object]]) -> int:
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(number for number, task in enumerate(tasks) if task in done)
    finally:
        for task in tasks:
            task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole(send: Send, step: Whole) -> None:
    body = step.body.encode() if isinstance(step.body, str) else json.dumps(step.body).encode()
    headers = [(b"content-type", b"application/json"), *((n.encode(), v.encode()) for n, v in step.headers)]
    await send({"type": "http.response.start", "status": step.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def completion(text: str = "hi", *, usage: Json = None, **message: Json) -> Whole:
    """A chat completion; without `usage` the backend reports none."""
    reply = {"role": "assistant", "content": text, **message}
    body = {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m-1-2024",
        "choices": [{"index": 0, "message": reply, "finish_reason": "stop"}],
        "system_fingerprint": "fp_kept",
    }
    return Whole(body if usage is None else {**body, "usage": usage})


def usage(prompt: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
    }


def delta(finish_reason: str | None = None, *, index: int = 0, **members: Json) -> dict[str, Json]:
    """One chunk of a stream."""
    choice = {"index": index, "delta": members, "finish_reason": finish_reason}
    return {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [choice]}
