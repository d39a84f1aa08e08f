"""What happens to streams and budgets when clients leave, backends break and many come at once. Over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import httpx
import pytest

from stack_b.http import chat_stream
from stack_b.limits import Limits
from tests.support.http_server import served
from tests.support.scripted_upstream import Events, ScriptedUpstream, Whole, completion, delta, usage
from tests.support.stack_b import StackB, stack_b, upstream_at

pytestmark = [pytest.mark.anyio]

HELLO: Any = {"model": "m-1", "messages": [{"role": "user", "content": "hello"}]}
AS_ACME = {"authorization": "Bearer acme"}
ROLE = delta(role="assistant", content="")
END = delta("stop")
TOLD = {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)}


@asynccontextmanager
async def node_before(upstream: ScriptedUpstream, **settings: Any) -> AsyncIterator[tuple[StackB, httpx.AsyncClient]]:
    with anyio.fail_after(30):
        async with (
            served(upstream) as url,
            upstream_at(f"{url}/v1", api_key="sk-upstream") as backend,
            stack_b(backend, **settings) as node,
            served(node.app) as address,
            httpx.AsyncClient(base_url=address, headers=AS_ACME) as client,
        ):
            yield node, client


async def settled(node: StackB) -> int:
    """What is settled once nothing is held any more."""
    with anyio.fail_after(10):
        while (balance := await node.balance()).held:  # noqa: ASYNC110 - the ledger is asked, it doesn't tell
            await anyio.sleep(0.005)
    return balance.settled


def streaming(client: httpx.AsyncClient, **members: Any) -> Any:
    return client.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True, **members})


async def data_lines(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]


async def test_a_client_that_leaves_mid_stream_pays_for_what_it_got_and_leaves_no_hold() -> None:
    upstream = ScriptedUpstream([Events([ROLE, delta(content="xxx " * 100), END, TOLD], hold_after=2)])
    async with node_before(upstream) as (node, client):
        async with streaming(client) as response:
            lines = response.aiter_lines()
            while "xxx" not in await anext(lines):
                pass
            held = (await node.balance()).held
        await upstream.gone.wait()
        spent = await settled(node)

    # The prompt and a slice of the output (ADR 0029).
    assert held > 1_000
    # 400 bytes relayed are 100 tokens, and the prompt was sent.
    assert 100 < spent < 200


async def test_a_client_that_leaves_before_the_first_content_leaves_no_hold() -> None:
    upstream = ScriptedUpstream([Events([ROLE, END], hold_after=1)])
    async with node_before(upstream) as (node, client):
        with anyio.move_on_after(10) as scope:
            async with anyio.create_task_group() as group:

                async def leave() -> None:
                    await upstream.held.wait()
                    scope.cancel()

                group.start_soon(leave)
                async with streaming(client):
                    pass
        await upstream.gone.wait()
        spent = await settled(node)

    # The prompt was sent; about that many tokens.
    assert 0 < spent < 50


async def test_a_paced_stream_is_relayed_as_it_comes() -> None:
    upstream = ScriptedUpstream(
        [Events([ROLE, delta(content="first "), delta(content="second"), END, TOLD], hold_after=2)]
    )
    async with node_before(upstream) as (node, client), streaming(client) as response:
        lines = response.aiter_lines()
        while "first" not in await anext(lines):
            pass
        assert not upstream.resume.is_set()
        upstream.resume.set()
        rest = [line async for line in lines if line]
        spent = await settled(node)

    assert rest[-1] == "data: [DONE]"
    assert spent == 12


async def test_a_failure_before_content_has_its_status() -> None:
    upstream = ScriptedUpstream([Whole({"error": {"message": "key sk-upstream is bad"}}, status=401)])
    async with node_before(upstream) as (node, client):
        refused = await client.post("/v1/chat/completions", json={**HELLO, "stream": True})
        spent = await settled(node)

    error = refused.json()["error"]
    assert refused.status_code == 502
    assert error["code"] == "upstream_auth_error"
    assert error["route"]["attempts"][0]["status"] == 401
    assert error["policy_outcome"]["decision"] == "allowed"
    assert "sk-upstream" not in refused.text
    assert spent == 0


@pytest.mark.parametrize(
    "breaking",
    [
        Events([ROLE, delta(content="half of it")], done=False),
        Events([ROLE, delta(content="half of it")]),
        Events([ROLE, delta(content="half of it"), {"error": {"message": "overloaded"}}]),
        Events([ROLE, delta(content="half of it"), "<html>"]),
        Events([ROLE, delta(content="half of it"), {"choices": [{"delta": 7}]}]),
    ],
    ids=["closed", "done-without-finish", "error-event", "not-json", "not-a-chunk"],
)
async def test_a_failure_after_content_is_an_error_frame_and_no_done(breaking: Events) -> None:
    async with node_before(ScriptedUpstream([breaking])) as (node, client):
        async with streaming(client) as response:
            lines = await data_lines(response)
        spent = await settled(node)

    last = json.loads(lines[-1])
    assert response.status_code == 200
    assert "[DONE]" not in lines
    assert last["error"]["code"] == "upstream_error"
    assert last["error"]["type"] == "api_error"
    assert last["error"]["correlation_id"] == response.headers["x-request-id"]
    assert spent > 0


async def test_a_silent_backend_is_bridged_by_keep_alives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_stream, "KEEP_ALIVE_EVERY", timedelta(milliseconds=20))
    upstream = ScriptedUpstream([Events([ROLE, delta(content="late"), END], hold_after=1)])
    async with node_before(upstream) as (_, client), streaming(client) as response:
        lines = response.aiter_lines()
        first = await anext(lines)
        upstream.resume.set()
        rest = [line async for line in lines if line.startswith("data: ")]

    assert first == ": keepalive"
    assert rest[-1] == "data: [DONE]"


async def test_a_revoked_token_ends_its_open_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_stream, "REAUTHORIZE_EVERY", timedelta(milliseconds=10))
    upstream = ScriptedUpstream([Events([ROLE, delta(content="secret"), END], hold_after=2)])
    async with node_before(upstream) as (node, client):
        async with streaming(client) as response:
            await upstream.held.wait()
            node.tokens.revoked.add("acme")
            lines = await data_lines(response)
        spent = await settled(node)

    assert json.loads(lines[-1])["error"]["code"] == "unauthenticated"
    assert spent > 0


async def test_fifty_at_once_never_spend_more_than_the_budget() -> None:
    limit = 3_000
    upstream = ScriptedUpstream([completion("ok", usage=usage(100, 100))])
    async with node_before(upstream, limit=limit) as (node, client):

        async def ask() -> httpx.Response:
            return await client.post("/v1/chat/completions", json={**HELLO, "max_tokens": 150})

        answers = await asyncio.gather(*(ask() for _ in range(50)))
        spent = await settled(node)

    statuses = [answer.status_code for answer in answers]
    codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code == 429}
    assert set(statuses) == {200, 429}
    assert codes <= {"budget_exceeded", "budget_in_flight"}
    assert spent == 200 * statuses.count(200) <= limit


async def test_a_stream_that_takes_too_long_is_ended_and_settled() -> None:
    upstream = ScriptedUpstream([Events([ROLE, delta(content="slow"), END], hold_after=2)])
    async with node_before(upstream, limits=Limits(request_s=1)) as (node, client):
        async with streaming(client) as response:
            lines = await data_lines(response)
        spent = await settled(node)

    assert json.loads(lines[-1])["error"]["code"] == "upstream_timeout"
    assert spent > 0
