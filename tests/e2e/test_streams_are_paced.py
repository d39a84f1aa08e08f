"""What a backend writes is read by the client before the backend writes on: word by word, on every surface."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from ports.http.body import Receive
from ports.http.edge import Scope, Send
from stack_b.backends.protocol import ModelCard
from tests.support.http_server import served
from tests.support.scripted_upstream import delta, usage
from tests.support.stack_b import stack_b, upstream_at

pytestmark = [pytest.mark.anyio]

WORDS = [f"word{letter} " for letter in "abcdefghijklmnopqrst"]
HELLO: Any = [{"role": "user", "content": "hello"}]
ASKED: dict[str, Any] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 100},
}


class Patient:
    """Writes a word once it is told that the last one was read."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(1)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        chunks: list[Any] = [delta(role="assistant", content=""), *(delta(content=word) for word in WORDS)]
        for chunk in chunks:
            if chunk["choices"][0]["delta"]["content"]:
                await self.turn.acquire()
            await send({"type": "http.response.body", "body": event(chunk), "more_body": True})
        end = event(delta("stop")) + event({"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)})
        await send({"type": "http.response.body", "body": end + b"data: [DONE]\n\n"})


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


async def lines_of(path: str, upstream: Patient, **members: Any) -> AsyncIterator[str]:
    with anyio.fail_after(30):
        async with (
            served(upstream) as url,
            upstream_at(f"{url}/v1", models=(ModelCard(id="m-1", upstream="m-1"),)) as backend,
            stack_b(backend) as node,
            served(node.app) as address,
            httpx.AsyncClient(base_url=address, headers={"authorization": "Bearer acme"}) as client,
            client.stream("POST", path, json={"model": "m-1", "stream": True, **ASKED[path], **members}) as response,
        ):
            async for line in response.aiter_lines():
                yield line


@pytest.mark.parametrize("path", ASKED)
async def test_every_word_of_a_paced_stream_is_read_before_the_next_one_is_written(path: str) -> None:
    upstream, read = Patient(), 0
    async for line in lines_of(path, upstream):
        if read < len(WORDS) and WORDS[read].strip() in line:
            read += 1
            # Held back, the next one would never come.
            upstream.turn.release()

    assert read == len(WORDS)


async def test_a_chat_stream_has_data_and_comments_and_no_other_fields() -> None:
    upstream = Patient()
    for _ in WORDS:
        upstream.turn.release()

    lines = [line async for line in lines_of("/v1/chat/completions", upstream, stream_options={"include_usage": True})]

    assert {line.partition(":")[0] for line in lines if line} <= {"data", ""}
    assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
