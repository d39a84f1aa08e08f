"""Texts that are dear to look through, beside the requests of everybody else: over real processes.

What is measured is what the loop's own thread spends in one turn, in time of a processor. A busy machine can
only add to it, by its caches or by what it counts as ours: the quietest of some attempts is what counts.
"""

import asyncio
import gc
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from adapters.regex_pii.detector import find
from ports.errors import InvalidArgument, Unavailable
from ports.ids import TenantId
from stack_b.inspection.processes import WAITING_OF_A_TENANT, Processes
from tests.support.http_server import served
from tests.support.scripted_upstream import ScriptedUpstream, completion
from tests.support.stack_b import StackB, stack_b, upstream_at

pytestmark = [pytest.mark.anyio]

MOST_OF_IT = 0.25
"""Of what looking through the text takes: the loop may not be away for longer at a time."""
ATTEMPTS = 3
SIZE = 400_000
LIMIT = 100_000_000

CARD_LIKE = "4111 1111 1111 1112 "
HOSTILE = {
    "numbers": (CARD_LIKE * (SIZE // 20)),
    "escapes": "%34%31%31%31" * (SIZE // 12),
    "accounts": "DE89370400440532013000 " * (SIZE // 23),
}


def said(text: str, **members: Any) -> dict[str, Any]:
    return {"model": "m-1", "messages": [{"role": "user", "content": text}], **members}


class Turns:
    """The longest turn of the loop."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - last)
            last = now


@asynccontextmanager
async def watched() -> AsyncIterator[Turns]:
    """Without a full collection of garbage, which takes what all that was ever imported here takes, whatever the turn does.
    A node's begins without that (`deploy.roots.start`)."""
    turns = Turns()
    gc.collect()
    gc.disable()
    watching = asyncio.create_task(turns.watch())
    try:
        yield turns
    finally:
        gc.enable()
        watching.cancel()
        await asyncio.wait({watching})


def cost_of(text: str) -> float:
    started = time.thread_time()
    find(text)
    return time.thread_time() - started


async def share_of(text: str, attempt: Callable[[], Awaitable[Turns]]) -> float:
    """What the longest turn of the quietest attempt is of looking through `text`, at its quickest."""
    longest = cost = float("inf")
    for _ in range(ATTEMPTS):
        longest = min(longest, (await attempt()).longest)
        cost = min(cost, cost_of(text))
        if longest < MOST_OF_IT * cost:
            break
    return longest / cost


@asynccontextmanager
async def gateway(
    answer: str = "fine", *, limit: int = LIMIT, heard: list[Any] | None = None, **settings: Any
) -> AsyncIterator[StackB]:
    upstream = ScriptedUpstream([completion(answer)], requests=[] if heard is None else heard)
    with anyio.fail_after(120):
        async with (
            served(upstream) as url,
            upstream_at(f"{url}/v1", api_key="sk-upstream") as backend,
            stack_b(backend, limit=limit, **settings) as node,
        ):
            yield node


async def others_answered(node: StackB, until: Callable[[], bool]) -> int:
    """How many requests of another tenant are answered meanwhile."""
    count = 0
    while not until():
        answer = await node.post("/v1/chat/completions", said("hello"), who="globex")
        assert answer.status_code == 200, answer.text
        count += 1
        # Within the tenant's rate of requests.
        await asyncio.sleep(0.01)
    return count


RULES = [{"id": "no-swans", "effect": "deny", "on": ["input"], "keywords": ["swan song"]}]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        *(("/v1/chat/completions", text) for text in HOSTILE.values()),
        *((path, HOSTILE["numbers"]) for path in ("/v1/policy/check", "/v1/responses", "/v1/messages")),
    ],
    ids=[*HOSTILE, "check", "responses", "messages"],
)
async def test_a_text_that_is_dear_to_look_through_holds_nobody_up(path: str, text: str) -> None:
    members = {"input": text} if path == "/v1/responses" else said(text)
    members |= {"max_tokens": 100} if path == "/v1/messages" else {}

    async def asked() -> Turns:
        async with gateway(rules=RULES) as node, watched() as turns:
            dear = asyncio.create_task(node.post(path, {**members, "model": "m-1"}))
            answered = await others_answered(node, dear.done)
            answer = dear.result()
        assert answer.status_code == 200, answer.text
        assert answered > 5
        return turns

    assert await share_of(text, asked) < MOST_OF_IT


async def test_an_answer_that_is_dear_to_look_through_holds_nobody_up() -> None:
    text = HOSTILE["accounts"]

    async def asked() -> Turns:
        async with gateway(text) as node, watched() as turns:
            answer = await node.post("/v1/chat/completions", said("hello", max_tokens=100_000))
        assert answer.status_code == 200, answer.text
        assert "DE89" not in answer.text
        return turns

    assert await share_of(text, asked) < MOST_OF_IT


async def test_what_is_found_elsewhere_is_taken_out_and_comes_back_as_here() -> None:
    prose = "write to ann@example.com about it. "
    for times in (1, 10_000):
        upstream_says: list[Any] = []
        async with gateway(heard=upstream_says, pii_modes={"email": "reversible"}) as node:
            answer = await node.post("/v1/chat/completions", said(prose * times))

        assert answer.status_code == 200, answer.text
        [heard] = upstream_says
        told = heard.body["messages"][0]["content"]
        assert "ann@" not in told
        assert told.count("[EMAIL_") == times
        # The same value has the same placeholder, here and there.
        assert len(set(told.split())) == len(set(prose.split()))


async def test_without_a_budget_nothing_is_looked_through() -> None:
    async def asked() -> Turns:
        async with gateway(limit=1_000) as node, watched() as turns:
            answer = await node.post("/v1/chat/completions", said(HOSTILE["numbers"], max_tokens=2_000))
            # Nor elsewhere: the process that would have done it begins when it is first needed.
            elsewhere = multiprocessing.active_children()
        assert answer.json()["error"]["code"] == "request_exceeds_budget"
        assert not elsewhere
        return turns

    assert await share_of(HOSTILE["numbers"], asked) < MOST_OF_IT


async def test_a_tenant_has_so_many_of_them_waiting_and_another_one_is_refused_with_the_time_to_come_back() -> None:
    body = said(HOSTILE["numbers"])
    async with gateway() as node:
        posts = [asyncio.create_task(node.post("/v1/chat/completions", body)) for _ in range(WAITING_OF_A_TENANT + 1)]
        refused = await first_of(posts)
        other = await node.post("/v1/policy/check", said(HOSTILE["accounts"]), who="globex")
        unanswered = sum(not post.done() for post in posts)
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_limited")
    assert int(refused.headers["retry-after"]) >= 1
    # The other tenant's came after them all, and before most of them.
    assert other.status_code == 200
    assert unanswered >= WAITING_OF_A_TENANT - 4


async def first_of(posts: list[asyncio.Task[httpx.Response]]) -> httpx.Response:
    done, _ = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


ACME = TenantId("tnt_acme")


def busy(seconds: float) -> str:
    """A job."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return "done"


@asynccontextmanager
async def pool(**settings: Any) -> AsyncIterator[Processes]:
    found = Processes(**settings)
    try:
        with anyio.fail_after(60):
            yield found
    finally:
        await found.close()


async def test_what_takes_too_long_is_refused_and_the_next_is_done() -> None:
    async with pool(cpu_s=0.3) as jobs:
        with pytest.raises(InvalidArgument) as refused:
            await jobs.run(ACME, busy, 30.0)
        assert refused.value.code == "payload_too_large"
        assert await jobs.run(ACME, busy, 0.0) == "done"


async def test_whose_turn_does_not_come_in_time_is_told_so() -> None:
    async with pool(wait_s=0.05, cpu_s=1.0) as jobs:
        with pytest.raises(Unavailable) as refused:
            await jobs.run(ACME, busy, 0.5)
        assert refused.value.retry_after is not None


async def test_a_process_that_is_lost_is_replaced_and_nothing_passes() -> None:
    async with pool() as jobs:
        with pytest.raises(Unavailable):
            await jobs.run(ACME, os._exit, 3)
        assert await jobs.run(ACME, busy, 0.0) == "done"


async def test_who_leaves_frees_no_place_before_the_job_ends() -> None:
    async with pool() as jobs:
        assert await jobs.run(ACME, busy, 0.0) == "done"
        left = [asyncio.create_task(jobs.run(ACME, busy, 1.0)) for _ in range(2)]
        await asyncio.sleep(0)
        for one in left:
            one.cancel()
        await asyncio.wait(left)
        started = time.perf_counter()
        assert await jobs.run(ACME, busy, 0.0) == "done"

    # The one that had begun goes on; the one that waited is gone.
    assert time.perf_counter() - started > 0.5
