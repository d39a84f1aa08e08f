"""What the benches do to the machine is undone, and what they load with counts what it says."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import anyio
import msgspec
import psutil
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.bench import machine
from tests.bench.http_load import Plan, Sample, measure

PARENT: Final = """
import subprocess, sys
for _ in sys.stdin:
    print(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE).pid, flush=True)
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """As PostgreSQL does, it has another child for each line."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        children = psutil.Process(process.pid).children()
        process.kill()
        for child in children:
            child.kill()


@pytest.fixture
def upstream() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.kill()


def placed(processes: list[psutil.Process]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found[process.pid] = process.cpu_affinity()
    return found


def born(parent: subprocess.Popen[str]) -> psutil.Process:
    asking, telling = parent.stdin, parent.stdout
    assert asking is not None
    assert telling is not None
    asking.write("\n")
    asking.flush()
    return psutil.Process(int(telling.readline()))


@pytest.mark.skipif(not machine.can_be_apart(), reason=machine.NO_WORLD_APART)
def test_the_world_is_apart_for_a_while_and_then_as_before(
    upstream: psutil.Process, parent: subprocess.Popen[str]
) -> None:
    database = psutil.Process(parent.pid)
    everywhere, before = database.cpu_affinity(), set(psutil.Process().children())
    first, threads = born(parent), placed(machine.kernel_threads())

    with machine.world_apart(upstream, database) as by:
        second = born(parent)
        [awake] = set(psutil.Process().children()) - before
        others = [0 not in process.cpu_affinity() for process in (upstream, database, first, second)]
        told = "import os; print(os.sched_getscheduler(0) == os.SCHED_RR, 0 in os.sched_getaffinity(0))"
        load = subprocess.run([*by, sys.executable, "-c", told], capture_output=True, text=True, check=True)
        upstreams = os.sched_getscheduler(upstream.pid)

    assert all(others)
    assert upstreams == os.SCHED_RR
    assert load.stdout == "True False\n"
    for process in (upstream, database, first, second):
        assert process.cpu_affinity() == everywhere
        assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER
    assert not awake.is_running()
    now = placed(machine.kernel_threads())
    assert {pid: now[pid] for pid in threads if pid in now} == {pid: threads[pid] for pid in threads if pid in now}


async def loaded(plan: Plan) -> tuple[Sample, list[bytes]]:
    """What was measured, and what was asked for it."""
    asked: list[bytes] = []

    async def answer(stream: SocketStream) -> None:
        async with stream:
            while True:
                try:
                    asked.append(await stream.receive())
                except anyio.EndOfStream:
                    return
                await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        port = listener.extra_attributes[SocketAttribute.local_port]()
        with anyio.fail_after(10):
            sample = await measure(msgspec.structs.replace(plan, port=port))
        group.cancel_scope.cancel()
    return sample, asked


PLAN: Final = Plan(port=0, path="/", headers={}, body="{}", connections=4, seconds=0.2, rate=50)


@pytest.mark.anyio
async def test_what_settles_is_asked_and_not_counted() -> None:
    sample, asked = await loaded(msgspec.structs.replace(PLAN, settling=0.1))

    assert (sample.requests, sample.failures) == (10, 0)
    assert len(asked) == 15


@pytest.mark.anyio
async def test_a_number_in_the_body_is_another_one_in_each_request() -> None:
    sample, asked = await loaded(msgspec.structs.replace(PLAN, body="a 000000 b 000000", numbered="000000"))

    said = [request.rpartition(b"\r\n\r\n")[2].split() for request in asked]
    assert all(first == second and len(first) == 6 for _, first, _, second in said)
    assert len({first for _, first, _, _ in said}) == sample.requests == 10
