"""A caller who leaves ends the call upstream at once where that stops the bill; elsewhere it is read to its end, and costs
what the backend says. On every surface, whole and streamed, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import anyio
import httpx
import msgspec
import pytest

from ports.errors import Unauthenticated
from stack_b.backends.protocol import ModelCard
from stack_b.http import chat_stream
from tests.support.http_server import served
from tests.support.rough_backend import LAST_CHUNK, SSE, RoughBackend, Stall, Step, event, rough_backend, whole
from tests.support.scripted_upstream import completion, delta, usage
from tests.support.stack_b import StackB, stack_b, upstream_at

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

SOON_S: Final = 0.25
"""How long a call upstream may outlive its caller."""
HELLO: Final = [{"role": "user", "content": "hello"}]
ASKED: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"model": "m-1", "messages": HELLO},
    "/v1/responses": {"model": "m-1", "input": "hello"},
    "/v1/messages": {"model": "m-1", "max_tokens": 100, "messages": HELLO},
}
MODELS: Final = (
    ModelCard(id="m-1", upstream="m-1"),
    ModelCard(id="m-embed", upstream="m-embed", chat=False, embed=True),
)
SAID: Final = completion("all of it", usage=usage(7, 5)).body


def chunk(value: Any) -> bytes:
    return event(msgspec.json.encode(value))


WORDS: Final = SSE + chunk(delta(role="assistant", content="")) + chunk(delta(content="some of it "))
REST: Final = (
    chunk(delta(content="and all "))
    + chunk(delta("stop"))
    + chunk({"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)})
    + event(b"[DONE]")
    + LAST_CHUNK
)


@asynccontextmanager
async def before(
    *scripts: Sequence[Step], **settings: Any
) -> AsyncIterator[tuple[RoughBackend, StackB, httpx.AsyncClient]]:
    with anyio.fail_after(30):
        async with (
            rough_backend(*scripts) as rough,
            upstream_at(rough.url, models=MODELS, **settings) as backend,
            stack_b(backend) as node,
            served(node.app) as url,
            httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer acme"}) as client,
        ):
            yield rough, node, client


async def settled(node: StackB) -> int:
    with anyio.fail_after(10):
        while (balance := await node.balance()).held:  # noqa: ASYNC110 - the ledger is asked, it doesn't tell
            await anyio.sleep(0.005)
    return balance.settled


async def leave_a_stream(client: httpx.AsyncClient, path: str) -> None:
    async with client.stream("POST", path, json={**ASKED[path], "stream": True}) as response:
        assert response.status_code == 200
        async for text in response.aiter_text():
            if "some of it" in text:
                return


async def leave_a_call(client: httpx.AsyncClient, path: str, body: Any, rough: RoughBackend) -> None:
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(path, json=body))
        await rough.stalled.wait()
        asking.cancel()


async def how_long(event: asyncio.Event) -> float:
    began = asyncio.get_running_loop().time()
    await event.wait()
    return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("path", ASKED)
async def test_a_stream_that_is_left_ends_upstream_at_once_and_costs_what_was_written(path: str) -> None:
    async with before([WORDS, Stall(), REST]) as (rough, node, client):
        await leave_a_stream(client, path)
        took = await how_long(rough.gone)
        spent = await settled(node)

    assert took <= SOON_S
    assert 0 < spent < 100


@pytest.mark.parametrize("path", ASKED)
async def test_a_whole_answer_that_nobody_waits_for_is_ended_upstream_at_once(path: str) -> None:
    async with before([Stall(), whole(msgspec.json.encode(SAID))]) as (rough, node, client):
        await leave_a_call(client, path, ASKED[path], rough)
        took = await how_long(rough.gone)
        spent = await settled(node)

    assert took <= SOON_S
    assert 0 < spent < 100


@pytest.mark.parametrize("path", ASKED)
async def test_a_stream_that_is_billed_to_its_end_is_read_to_its_end_and_costs_what_is_reported(path: str) -> None:
    async with before([WORDS, Stall(), REST], cancel_stops_billing=False) as (rough, node, client):
        await leave_a_stream(client, path)
        await rough.stalled.wait()
        held = (await node.balance()).held
        assert not rough.gone.is_set()
        rough.resume.set()
        spent = await settled(node)

    assert held > 0
    assert spent == 12


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("how", [False, "streams"])
async def test_a_whole_answer_that_is_billed_to_its_end_is_read_to_its_end(path: str, how: Any) -> None:
    async with before([Stall(), whole(msgspec.json.encode(SAID))], cancel_stops_billing=how) as (rough, node, client):
        await leave_a_call(client, path, ASKED[path], rough)
        assert not rough.gone.is_set()
        rough.resume.set()
        spent = await settled(node)

    assert spent == 12


async def test_nobody_else_is_asked_for_a_caller_who_has_left() -> None:
    failing = whole(b"{}", status="503 Service Unavailable")
    async with (
        rough_backend([Stall(), failing]) as first,
        rough_backend([whole(msgspec.json.encode(SAID))]) as second,
        upstream_at(first.url, name="first", models=MODELS, cancel_stops_billing=False) as one,
        upstream_at(second.url, name="second", models=MODELS) as other,
        stack_b(one, other) as node,
        served(node.app) as url,
        httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer acme"}) as client,
    ):
        with anyio.fail_after(20):
            await leave_a_call(client, "/v1/chat/completions", ASKED["/v1/chat/completions"], first)
            first.resume.set()
            await settled(node)

    assert len(first.requests) == 1
    assert second.requests == []


async def test_embeddings_that_nobody_waits_for_are_ended() -> None:
    async with before([Stall()]) as (rough, node, client):
        await leave_a_call(client, "/v1/embeddings", {"model": "m-embed", "input": "hello"}, rough)
        took = await how_long(rough.gone)
        await settled(node)

    assert took <= SOON_S


async def test_a_revoked_caller_sees_no_more_of_a_stream_that_is_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_stream, "REAUTHORIZE_EVERY", timedelta(milliseconds=10))
    async with before([WORDS, Stall(), REST], cancel_stops_billing=False) as (rough, node, client):
        asked = {**ASKED["/v1/chat/completions"], "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            await rough.stalled.wait()
            node.tokens.revoked.add("acme")
            told = "".join([text async for text in response.aiter_text()])
        rough.resume.set()
        spent = await settled(node)

    assert Unauthenticated.default_code in told
    assert "and all" not in told
    assert "[DONE]" not in told
    assert spent == 12
