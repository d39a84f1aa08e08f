"""HTTP load from a process of its own: `python -m tests.bench.http_load`, a `Plan` on stdin, a `Sample` on stdout.

Raw asyncio and a C parser. Each connection sends its next request when the last one is answered whole; or, with a rate,
requests are due at even intervals whatever became of earlier ones, and take as long as from when they were due.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from typing import Final, cast

import httptools
import msgspec
from msgspec import Struct

from deploy.roots.server import run
from tests.bench.figures import percentile

_ANSWER_SECONDS: Final = 10.0
_OK: Final = 200


class Plan(Struct, frozen=True, kw_only=True):
    port: int
    path: str
    headers: dict[str, str]
    body: str
    connections: int
    """With a rate: at most."""
    seconds: float
    rate: float = 0.0
    """Requests per second; 0: as many as are answered."""
    settling: float = 0.0
    """With a rate: so many seconds before `seconds` begin, it is asked as often, and none of it is counted."""
    numbered: str = ""
    """Where this appears in the body to be sent, a number of as many digits is instead, another with each request."""
    first: str = ""
    """Where this appears in the body, the first token has come."""
    expect: int = 0
    """How often `first` must appear in every answer."""


class Sample(Struct, frozen=True, kw_only=True):
    requests: int
    failures: int
    """Other answers than 200, and answers that lack something."""
    seconds: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float = 0.0
    """Until the first token, where the plan says how to know it."""
    cpu_seconds: float = 0.0
    """Of the load itself, where it is known: beside `seconds` it says whether more could have been asked."""


def request_of(plan: Plan) -> bytes:
    body = plan.body.encode()
    headers = {"host": f"127.0.0.1:{plan.port}", "content-length": str(len(body)), **plan.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {plan.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def first_number(digits: int) -> int:
    """To count from, so that another load, soon after, doesn't send the same."""
    most: int = 10**digits
    return int(time.time() * 1_000) % most // 2


class Asking(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, plan: Plan, numbers: Iterator[int]) -> None:
        self._numbered = plan.numbered.encode()
        self._numbers = numbers
        self._first = plan.first.encode()
        self._expect = plan.expect
        self._parser = httptools.HttpResponseParser(self)
        self._request = request_of(plan)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._body = b""
        self._began = 0.0
        self._counts = True
        self.took: list[float] = []
        self.first_took: list[float] = []

    async def ask(self, due: float | None = None, *, counts: bool = True) -> bool:
        """Whether the answer is what it should be. `due`: since when it is waited for. `counts`: what it takes is kept."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._body = b""
        self._counts = counts
        self._began = time.perf_counter() if due is None else due
        request = self._request
        if self._numbered:
            request = request.replace(self._numbered, b"%0*d" % (len(self._numbered), next(self._numbers)))
        self._transport.write(request)
        return await self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, without saying so

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("the server closed the connection"))

    def on_message_begin(self) -> None:
        self._has_first = False

    def on_body(self, data: bytes) -> None:
        if not self._first:
            return
        self._body += data
        if self._counts and not self._has_first and self._first in self._body:
            self._has_first = True
            self.first_took.append(time.perf_counter() - self._began)

    def on_message_complete(self) -> None:
        if self._counts:
            self.took.append(time.perf_counter() - self._began)
        good = self._parser.get_status_code() == _OK and self._body.count(self._first) >= self._expect
        self._answered.set_result(good)


async def measure(plan: Plan) -> Sample:
    loop = asyncio.get_running_loop()
    numbers = itertools.count(first_number(len(plan.numbered)))
    opened = [
        await loop.create_connection(lambda: Asking(plan, numbers), "127.0.0.1", plan.port)
        for _ in range(plan.connections)
    ]
    failures = 0
    assert plan.rate or not plan.settling, "only with a rate is it known what comes before"
    began, spent = time.perf_counter() + plan.settling, time.process_time()
    over = began + plan.seconds

    async def keep_asking(asking: Asking) -> None:
        nonlocal failures
        while time.perf_counter() < over:
            async with asyncio.timeout(_ANSWER_SECONDS):
                failures += not await asking.ask()

    async def ask_in_time() -> None:
        nonlocal spent
        idle: asyncio.Queue[Asking] = asyncio.Queue()
        for _, asking in opened:
            idle.put_nowait(asking)

        async def ask(asking: Asking, due: float) -> None:
            nonlocal failures
            async with asyncio.timeout(_ANSWER_SECONDS):
                failures += not await asking.ask(due, counts=due >= began)
            idle.put_nowait(asking)

        async with asyncio.TaskGroup() as group:
            for number in range(-int(plan.rate * plan.settling), max(1, int(plan.rate * plan.seconds))):
                due = began + number / plan.rate
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                if number == 0:
                    spent = time.process_time()
                group.create_task(ask(await idle.get(), due))

    await (ask_in_time() if plan.rate else asyncio.gather(*(keep_asking(asking) for _, asking in opened)))
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    for transport, _ in opened:
        transport.close()
    took = [one for _, asking in opened for one in asking.took]
    first = [one for _, asking in opened for one in asking.first_took]
    return Sample(
        requests=len(took),
        failures=failures,
        seconds=seconds,
        p50_ms=1_000 * percentile(took, 0.5),
        p99_ms=1_000 * percentile(took, 0.99),
        first_p50_ms=1_000 * percentile(first, 0.5) if first else 0.0,
        cpu_seconds=spent,
    )


async def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.write(msgspec.json.encode(await measure(plan)).decode() + "\n")


if __name__ == "__main__":
    run(main())
