"""The server's shortcuts change nothing that a client sees: with them and without, equal requests get equal answers."""

import asyncio
import gc
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
import anyio.lowlevel
import httpx
import pytest

from ports.errors import Unavailable
from ports.http.body import Receive
from ports.http.edge import App, Scope, Send
from stack_b.interrupt import Deadlines, Interrupt
from tests.support.held_backend import HeldBackend
from tests.support.http_server import served
from tests.support.stack_b import StackB, stack_b

pytestmark = [pytest.mark.anyio]

ASK: Final = {"model": "agentos-demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
KEY: Final = {"authorization": "Bearer acme", "x-correlation-id": "cor_same"}
JSON: Final = {**KEY, "content-type": "application/json"}
CHAT: Final = "/v1/chat/completions"


def body(**members: Any) -> bytes:
    return json.dumps({**ASK, **members}).encode()


REQUESTS: Final[dict[str, tuple[str, str, dict[str, str], bytes]]] = {
    "a chat": ("POST", CHAT, JSON, body()),
    "compact": ("POST", CHAT, JSON, json.dumps(ASK, separators=(",", ":")).encode()),
    "anthropic": ("POST", "/v1/messages", {**JSON, "x-api-key": "acme"}, body()),
    "responses": ("POST", "/v1/responses", JSON, b'{"model": "agentos-demo", "input": "hello"}'),
    "policy": ("POST", "/v1/policy/check", JSON, body(messages=[{"role": "user", "content": "write to ann@example.org"}])),
    "personal data": ("POST", CHAT, JSON, body(messages=[{"role": "user", "content": "card 4111 1111 1111 1111"}])),
    "a count": ("POST", "/v1/messages/count_tokens", JSON, body()),
    "an embedding of nobody": ("POST", "/v1/embeddings", JSON, b'{"model": "nobody", "input": "hello"}'),
    "no token": ("POST", CHAT, {"content-type": "application/json", "x-correlation-id": "cor_same"}, body()),
    "a wrong token": ("POST", CHAT, {**JSON, "authorization": "Bearer nobody"}, body()),
    "no scope": ("POST", CHAT, {**JSON, "authorization": "Bearer reader"}, body()),
    "another scheme": ("POST", CHAT, {**JSON, "authorization": "Basic acme"}, body()),
    "two keys": ("POST", "/v1/messages", {**JSON, "x-api-key": "globex"}, body()),
    "another tenant": ("POST", CHAT, {**JSON, "x-tenant-id": "tnt_other"}, body()),
    "another type": ("POST", CHAT, {**KEY, "content-type": "text/plain"}, body()),
    "no type": ("POST", CHAT, KEY, body()),
    "a charset": ("POST", CHAT, {**KEY, "content-type": 'application/json; charset="utf-8"'}, body()),
    "compressed": ("POST", CHAT, {**JSON, "content-encoding": "gzip"}, body()),
    "a query": ("POST", f"{CHAT}?stream=1", JSON, body()),
    "a query of beta": ("POST", "/v1/messages?beta=true", JSON, body()),
    "empty": ("POST", CHAT, JSON, b""),
    "no JSON": ("POST", CHAT, JSON, b"{"),
    "a list": ("POST", CHAT, JSON, b"[]"),
    "a member twice": ("POST", CHAT, JSON, b'{"model":"m","model":"n","messages":[]}'),
    "a NUL": ("POST", CHAT, JSON, b'{"model":"\\u0000","messages":[{"role":"user","content":"x"}]}'),
    "nested": ("POST", CHAT, JSON, b"[" * 70 + b"]" * 70),
    "a number too large": ("POST", CHAT, JSON, b'{"model":"m","n":99999999999999999999}'),
    "steering": ("POST", CHAT, JSON, body(api_base="http://elsewhere")),
    "widening": ("POST", CHAT, JSON, body(best_of=9)),
    "too many tokens": ("POST", CHAT, JSON, body(max_tokens=10**9)),
    "more than the budget": ("POST", CHAT, JSON, body(max_tokens=100_000, n=8)),
    "a preference of nobody": ("POST", CHAT, {**JSON, "x-route-preference": "luck"}, body()),
    "a step key of nobody": ("POST", CHAT, {**JSON, "x-step-key": "a b"}, body()),
    "another model": ("POST", CHAT, JSON, body(model="nobody")),
    "another method": ("PUT", CHAT, JSON, body()),
    "nothing there": ("POST", "/v1/nothing", JSON, body()),
    "below a surface": ("POST", "/v1/messages/x", JSON, body()),
    "the head of a list": ("GET", "/v1/models", KEY, b""),
}  # fmt: skip

VARYING: Final = re.compile(
    r'"(?:latency_ms|gateway_ms|settled|held)":[0-9.]+|chatcmpl-\w+|(?:resp|msg)_\w+|"created(?:_at)?":\d+', re.ASCII
)
"""What two equal requests are told apart by."""
OF_THE_CONNECTION: Final = {
    "date",
    "traceparent",
    "x-ratelimit-reset-tokens",
    "x-ratelimit-remaining-tokens",
    "content-length",
}


def seen(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], str]:
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in OF_THE_CONNECTION)
    assert int(answer.headers["content-length"]) == len(answer.content)
    return answer.status_code, headers, VARYING.sub("…", answer.text)


@pytest.fixture
async def node() -> AsyncIterator[StackB]:
    async with stack_b(limit=100_000) as made:
        yield made


async def test_the_same_requests_get_the_same_answers_with_the_servers_shortcuts_and_without(node: StackB) -> None:
    await node.chat()
    async with served(node.app) as url, httpx.AsyncClient(base_url=url) as client:
        for name, (method, path, headers, content) in REQUESTS.items():
            plain = await node.http.request(method, path, headers=headers, content=content)
            # Twice over one connection: the second head is known by its bytes.
            for quick in [await client.request(method, path, headers=headers, content=content) for _ in range(2)]:
                assert seen(quick) == seen(plain), name
            assert plain.status_code < 500, name


async def test_a_client_that_leaves_ends_the_call_and_what_it_may_have_cost_is_settled() -> None:
    backend = HeldBackend()
    async with stack_b(backend) as node, served(node.app) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            with anyio.move_on_after(0.5) as left:
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda: client.post(CHAT, json={**ASK, "model": "m-1"}, headers=KEY))
                    await backend.begun.wait()
                    group.cancel_scope.cancel()
        with anyio.fail_after(5):
            await backend.stopped.wait()
            while (await node.balance()).held:
                await anyio.lowlevel.checkpoint()

        assert not left.cancelled_caught
        assert (await node.balance()).settled > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_is_answered_leaves_nothing_to_the_collector(node: StackB, stream: bool) -> None:
    """Its pauses come when thousands of requests are over, and somebody waits for each of them."""
    async with served(node.app) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(3):
            assert (await client.post(CHAT, json={**ASK, "stream": stream}, headers=KEY)).status_code == 200
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(10):
                await client.post(CHAT, json={**ASK, "stream": stream}, headers=KEY)
            gc.collect()
            left = Counter(type(one).__name__ for one in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    ours = {"_Cycle", "Exchange", "Answering", "Caller", "Trail", "Spending", "ChatStream", "Flight", "Lens", "Answer"}
    assert not {name: count for name, count in left.items() if name in ours}


async def test_requests_of_one_connection_are_answered_in_turn_also_when_they_come_together(node: StackB) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer acme\r\ncontent-type: application/json\r\n"
    sent = "".join(
        f"{head}x-correlation-id: cor_{number}\r\ncontent-length: {len(body())}\r\n\r\n{body().decode()}"
        for number in range(3)
    )
    async with served(node.app) as url:
        stream = await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2]))
        async with stream:
            await stream.send(sent.encode())
            told = b""
            with anyio.fail_after(10):
                while told.count(b"HTTP/1.1 200 OK") < 3 or not told.endswith(b"}"):
                    told += await stream.receive()

    assert re.findall(rb"x-correlation-id: (\w+)", told) == [b"cor_0", b"cor_1", b"cor_2"]


async def test_a_header_with_a_line_break_is_not_sent() -> None:
    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        whole = scope["extensions"]["agentos.whole_response"]
        names, values = (b"content-length", b"x-split"), (b"2", b"a\r\nset-cookie: b")
        assert whole(200, (names, values), b"hi") is False
        assert whole(200, (names[:1], values[:1]), b"hi") is True

    checked: App = app
    async with served(checked) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/")

    assert (answer.text, "set-cookie" in answer.headers) == ("hi", False)


class Late(Exception):
    pass


async def test_an_interrupt_ends_the_wait_of_its_block_with_its_own_error() -> None:
    interrupt = Interrupt(Late)
    asyncio.get_running_loop().call_soon(interrupt.fire)

    with pytest.raises(Late), interrupt:
        await asyncio.Event().wait()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    interrupt.fire()
    await asyncio.sleep(0)


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    interrupt = Interrupt(Late)
    entered = asyncio.Event()

    async def work() -> None:
        with interrupt:
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    interrupt.fire()
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()


async def test_deadlines_end_whoever_is_due_and_nobody_else() -> None:
    deadlines = Deadlines(0.05)
    ended: list[str] = []

    async def work(name: str, waits: asyncio.Event) -> None:
        interrupt = deadlines.begin()
        try:
            await waits.wait()
        except asyncio.CancelledError as error:
            with pytest.raises(Unavailable):
                deadlines.end(interrupt, type(error), error, None)
            ended.append(f"{name} late")
        else:
            deadlines.end(interrupt, None, None, None)
            ended.append(f"{name} done")

    never, soon = asyncio.Event(), asyncio.Event()
    soon.set()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(work("first", never))
        group.create_task(work("second", soon))
        group.create_task(work("third", never))

    assert sorted(ended) == ["first late", "second done", "third late"]
    deadlines.close()
