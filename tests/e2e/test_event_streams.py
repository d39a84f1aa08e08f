"""Event streams over a real socket: readers that stall, and a process that leaves."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta

import anyio
import httpx
import pytest

from conformance.factories import SUCCEEDED
from conformance.people import ACME, NODE
from ports.ids import RunId, WorkerId
from ports.run_state import Change, NewEvent, Run
from stack_a.app import create_app
from stack_a.http import stream
from stack_a.http.stream import OpenStreams
from tests.support.http_server import served
from tests.support.stack_a import StackA, events_of, stack_a

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

HOUR = timedelta(hours=1)
TEXT = "x" * 8_000


@pytest.fixture
async def node() -> AsyncIterator[StackA]:
    async with stack_a() as made:
        yield made


async def claimed(node: StackA) -> Run:
    run_id = await node.created()
    worker = WorkerId("wrk_test")
    await node.run_state.renew(NODE, worker, HOUR)
    return await node.run_state.claim(ACME, RunId(run_id), worker)


async def tell(node: StackA, run: Run, times: int) -> None:
    event = NewEvent(type="model.delta", data={"text": TEXT})
    for _ in range(times):
        await node.run_state.append(ACME, run.id, run.epoch, Change(events=(event,) * 50))


async def ask(url: str, run: Run) -> anyio.abc.SocketStream:
    """An open event stream of which nothing is read, over a socket that takes little by itself."""
    host, port = url.removeprefix("http://").split(":")
    reader = await anyio.connect_tcp(host, int(port))
    await reader.send(
        f"GET /v1/runs/{run.id}/events HTTP/1.1\r\nhost: node\r\nauthorization: Bearer acme\r\n\r\n".encode()
    )
    return reader


async def rest_of(reader: anyio.abc.SocketStream) -> bytes:
    heard = b""
    with anyio.fail_after(10):
        try:
            async for piece in reader:
                heard += piece
        except anyio.BrokenResourceError:
            pass
    return heard


async def until_closed(streams: OpenStreams) -> None:
    with anyio.fail_after(10):
        while streams.count:  # noqa: ASYNC110 - the server tells nobody
            await anyio.sleep(0.02)


async def test_a_reader_that_takes_nothing_is_closed_with_lagged_and_resumes_without_a_gap(
    node: StackA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LAGGED_AFTER", timedelta(seconds=0.3))
    streams = OpenStreams()
    run = await claimed(node)
    async with served(create_app(node.api, streams)) as url:
        async with await ask(url, run) as reader:
            await tell(node, run, 60)
            await anyio.sleep(0.1)
            await until_closed(streams)
            heard = await rest_of(reader)
        body = heard.partition(b"\r\n\r\n")[2]
        last = body.rpartition(b"\nid: ")[2].partition(b"\n")[0].decode()
        await node.run_state.append(ACME, run.id, run.epoch, SUCCEEDED)
        async with httpx.AsyncClient(base_url=url) as client:
            headers = node.headers(**{"last-event-id": last})
            resumed = events_of((await client.get(f"/v1/runs/{run.id}/events", headers=headers)).text)

    assert heard.endswith(b"\r\n: lagged\n\n\r\n0\r\n\r\n")
    assert heard.count(b"event: model.delta") < 3_000
    assert [event["sequence"] for event in resumed] == list(range(int(last.partition(".")[2]) + 1, 3_004))
    assert resumed[-1]["event"] == "run.completed"


async def test_a_reader_that_takes_nothing_costs_no_more_memory_than_a_page(node: StackA) -> None:
    run = await claimed(node)
    await tell(node, run, 60)
    await node.run_state.append(ACME, run.id, run.epoch, SUCCEEDED)
    readers = 4
    async with served(create_app(node.api)) as url:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            stalled = [await ask(url, run) for _ in range(readers)]
            # All are served in turn: what one has read, each of the others could have been sent.
            async with await ask(url, run) as reader:
                await until_completed(reader)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for reader in stalled:
            await reader.aclose()

    # 24 MB, of which the system's buffers take a few.
    assert (after - before) / readers < 500_000


async def until_completed(reader: anyio.abc.SocketStream) -> None:
    end = b""
    with anyio.fail_after(60):
        while b"event: run.completed" not in end:
            end = end[-100:] + await reader.receive()


async def test_a_slow_reader_that_keeps_reading_is_left_alone(node: StackA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LAGGED_AFTER", timedelta(seconds=0.5))
    run = await claimed(node)
    await tell(node, run, 20)
    await node.run_state.append(ACME, run.id, run.epoch, SUCCEEDED)
    async with served(create_app(node.api)) as url, await ask(url, run) as reader:
        heard = b""
        with anyio.fail_after(20):
            while b"run.completed" not in heard[-2_000:]:
                heard += await reader.receive(1_000_000)
                await anyio.sleep(0.01)

    assert heard.count(b"event: model.delta") == 1_000
    assert b"lagged" not in heard


async def test_a_stream_on_which_nothing_happens_says_that_it_lives(
    node: StackA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_EVERY", timedelta(seconds=0.05))
    run = await claimed(node)
    heard, lived = "", anyio.Event()
    async with (
        served(create_app(node.api)) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("GET", f"/v1/runs/{run.id}/events", headers=node.headers()) as answer,
        anyio.create_task_group() as group,
    ):

        async def finish() -> None:
            await lived.wait()
            await node.run_state.append(ACME, run.id, run.epoch, SUCCEEDED)

        group.start_soon(finish)
        with anyio.fail_after(10):
            async for text in answer.aiter_text():
                heard += text
                if heard.count(": keep-alive\n\n") >= 3:
                    lived.set()

    # Comments have no place in the sequence.
    assert [event["sequence"] for event in events_of(heard)] == [1, 2, 3]


async def test_a_process_that_leaves_ends_its_streams_at_once_and_takes_no_new_ones(node: StackA) -> None:
    streams = OpenStreams()
    run = await claimed(node)
    async with served(create_app(node.api, streams)) as url, await ask(url, run) as reader:
        heard = b""
        with anyio.fail_after(10):
            while b"run.started" not in heard:
                heard += await reader.receive()
            streams.close()
            while not heard.endswith(b"0\r\n\r\n"):
                heard += await reader.receive()
        async with httpx.AsyncClient(base_url=url) as client:
            refused = await client.get(f"/v1/runs/{run.id}/events", headers=node.headers())

    assert b"lagged" not in heard
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert refused.headers["retry-after"] == "1"


async def test_a_process_that_leaves_does_not_wait_for_readers_that_take_nothing(
    node: StackA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STALLED_AFTER", timedelta(seconds=0.1))
    streams = OpenStreams()
    run = await claimed(node)
    await tell(node, run, 60)
    async with served(create_app(node.api, streams)) as url, await ask(url, run):
        await anyio.sleep(0.3)
        streams.close()
        began = asyncio.get_running_loop().time()
        await until_closed(streams)

        assert asyncio.get_running_loop().time() - began < 5
