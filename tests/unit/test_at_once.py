"""A plain chat has no task while its backend answers; whatever it must wait for beside that is waited for by one that goes
on where it was: nothing is decided, held, sent, paid or noted twice, and nothing is left out."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import h11
import httpx
import msgspec
import pytest
from anyio.abc import SocketStream

from conformance.people import ACME
from deploy.roots.http_protocol import BoundedProtocol
from observability.metrics import Metrics
from ports.http.edge import AtHand
from ports.request_log import RequestRecord
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.protocol import ModelCard
from stack_b.limits import Limits
from tests.support.http_server import served
from tests.support.rough_backend import LAST_CHUNK, SSE, Cut, RoughBackend, Script, Stall, event, rough_backend, whole
from tests.support.scripted_upstream import completion, delta, usage
from tests.support.stack_b import StackB, stack_b, upstream_at

pytestmark = [pytest.mark.anyio]

CHAT: Final = "/v1/chat/completions"
READER: Final = msgspec.structs.replace(ACME, scopes=frozenset({"usage:read"}))
SAID: Final = whole(msgspec.json.encode(completion("all of it", usage=usage(7, 5)).body))
FAILED: Final = whole(b"{}", status="503 Service Unavailable")
BEGINNING: Final = datetime(2000, 1, 1, tzinfo=UTC)
WARM: Final = 3
"""Requests until a head is known and who sends it was let in behind it."""


class Remembered(BoundedProtocol):
    """The server's protocol, whose connections a test can end."""

    made: list["Remembered"]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.made.append(self)


class Client:
    """On one connection, with each request in one piece, which httpx cuts in two."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, content: bytes, **headers: str) -> httpx.Response:
        fields = {"host": "gateway", "authorization": "Bearer acme", "content-type": "application/json", **headers}
        head = h11.Request(method="POST", target=CHAT, headers=[*fields.items(), ("content-length", str(len(content)))])
        parts = [self._http.send(one) for one in (head, h11.Data(data=content), h11.EndOfMessage())]
        try:
            await self._stream.send(b"".join(part for part in parts if part))
            return await self._answer()
        except asyncio.CancelledError:
            # Who gives up leaves.
            await anyio.aclose_forcefully(self._stream)
            raise

    async def _answer(self) -> httpx.Response:
        status, headers, body = 0, list[tuple[bytes, bytes]](), b""
        while True:
            match self._http.next_event():
                case h11.NEED_DATA:
                    try:
                        self._http.receive_data(await self._stream.receive())
                    except anyio.EndOfStream:
                        self._http.receive_data(b"")
                case h11.Response() as response:
                    status, headers = response.status_code, list(response.headers)
                case h11.Data() as data:
                    body += data.data
                case h11.EndOfMessage():
                    if self._http.our_state is h11.DONE:
                        self._http.start_next_cycle()
                    return httpx.Response(status, headers=headers, content=body)
                case h11.ConnectionClosed():
                    raise ConnectionError


@dataclass
class Lane:
    backend: OpenAiCompatible
    rough: RoughBackend
    node: StackB
    client: Client
    connections: list[Remembered]

    async def ask(self, text: str = "hello", **members: Any) -> httpx.Response:
        body = {"model": "m-1", "messages": [{"role": "user", "content": text}], **members}
        return await self.client.post(msgspec.json.encode(body))

    async def records(self, count: int) -> list[RequestRecord]:
        """The newest first, once there are so many."""
        with anyio.fail_after(10):
            while len(found := (await self.node.deps.request_log.recent(READER, limit=100)).items) < count:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert len(found) == count
        return list(found)

    async def settled(self) -> int:
        """What was spent, once nothing is held, not for those to come either."""
        with anyio.fail_after(15):
            while (balance := await self.node.balance()).held:  # noqa: ASYNC110 - the ledger is asked, it doesn't tell
                await anyio.sleep(0.02)
        return balance.settled


@asynccontextmanager
async def lane(*scripts: Script, more: Sequence[Any] = (), **settings: Any) -> AsyncIterator[Lane]:
    """A gateway behind which plain requests of `client` begin without a task; the backend's scripts are for those."""
    made: list[Remembered] = []
    protocol = type("Here", (Remembered,), {"made": made})
    upstream = {name: settings.pop(name) for name in ("cancel_stops_billing",) if name in settings}
    with anyio.fail_after(40):
        async with (
            rough_backend(*[[SAID]] * WARM, *scripts) as rough,
            upstream_at(rough.url, models=(ModelCard(id="m-1", upstream="m-1"),), **upstream) as backend,
            stack_b(backend, *more, budget_in_chunks=True, **settings) as node,
            served(node.app, protocol=protocol) as url,
            await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2])) as stream,
        ):
            one = Lane(backend, rough, node, Client(stream), made)
            for _ in range(WARM):
                assert (await one.ask()).status_code == 200
            yield one


def tasks_of_requests() -> int:
    return sum("run_asgi" in str(task.get_coro()) for task in asyncio.all_tasks())


@asynccontextmanager
async def waiting(one: Lane, text: str = "hello", **members: Any) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A request that its backend has and does not answer yet."""
    one.rough.stalled.clear()
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(one.ask(text, **members))
        await one.rough.stalled.wait()
        assert tasks_of_requests() == 0, "it has no task"
        yield asking


def told(answer: httpx.Response) -> Any:
    """An answer without what two requests are told apart by."""
    body = answer.json()
    for name in ("latency_ms", "gateway_ms"):
        body["usage"].pop(name)
    body["route"]["attempts"][0].pop("latency_ms")
    body.pop("correlation_id")
    headers = Counter(name for name in answer.headers)
    return answer.status_code, headers, body


def noted(record: RequestRecord) -> RequestRecord:
    attempts = tuple(msgspec.structs.replace(one, latency_ms=0) for one in record.attempts)
    return msgspec.structs.replace(record, id="", at=BEGINNING, correlation_id="", latency_ms=0, attempts=attempts)


async def test_it_is_answered_paid_and_noted_as_it_is_with_a_task() -> None:
    async with lane([Stall(), SAID], [SAID]) as one:
        async with waiting(one) as asking:
            one.rough.resume.set()
        quick = asking.result()
        # A head that nobody has seen: with a task.
        slow = await one.client.post(b'{"model":"m-1","messages":[{"role":"user","content":"hello"}]}', new="1")
        first, *others = await one.records(WARM + 2)
        spent = await one.settled()
        metrics = one.node.deps.metrics.render().decode()

    assert told(quick) == told(slow)
    assert quick.headers["x-request-id"] == quick.json()["correlation_id"]
    assert [noted(record) for record in others] == [noted(first)] * (WARM + 1)
    assert len({record.id for record in (first, *others)}) == WARM + 2
    assert spent == 12 * (WARM + 2)
    assert f'agentos_http_requests_total{{method="POST",route="{CHAT}",status_class="2xx"}} {WARM + 2}.0' in metrics


async def test_a_text_of_another_length_that_was_never_seen_needs_no_task_either() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    async with lane([Stall(), SAID]) as one, waiting(one, text) as asking:
        one.rough.resume.set()

    assert asking.result().status_code == 200


async def test_nothing_of_it_is_left_to_the_collector() -> None:
    async with lane([SAID]) as one:
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(10):
                assert (await one.ask()).status_code == 200
                assert (await one.ask(max_tokens=-1)).status_code == 422
            gc.collect()
            left = Counter(type(found).__name__ for found in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    assert not any(isinstance(found, AtHand) for found in gc.get_objects()), "nobody holds on to it either"
    assert not left.keys() & {
        "AtHand",
        "Completing",
        "InvalidArgument",
        "Sent",
        "Cycle",
        "Trail",
        "Caller",
        "Answer",
        "Reserved",
        "Held",
    }


# What must be waited for before it is sent.

STREAMED: Final = (
    SSE
    + event(msgspec.json.encode(delta(role="assistant", content="hi")))
    + event(msgspec.json.encode(delta("stop")))
    + event(b"[DONE]")
    + LAST_CHUNK
)


async def test_what_is_no_plain_chat_goes_on_with_a_task_and_is_read_once() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    async with lane([STREAMED], [SAID], [SAID], [SAID]) as one:
        stream = await one.ask(stream=True)
        called = await one.ask(tools=tools)
        several = await one.ask(n=2)
        personal = await one.ask("write to ann@example.org")
        wrong = await one.ask(max_tokens=-1)
        spent = await one.settled()
        [_, last, *_] = await one.records(WARM + 4)

    assert (stream.text.count("data: [DONE]"), called.status_code, several.status_code) == (1, 200, 200)
    assert personal.json()["policy_outcome"] == {"decision": "redacted", "reasons": ["pii:email"]}
    assert b"ann@example.org" not in one.rough.requests[-1]
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "max_tokens")
    assert len(one.rough.requests) == WARM + 4
    assert last.status == 200
    assert spent >= 12 * (WARM + 3)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model":"m","model":"n"}', b'{"model":"m-1"}'])
async def test_a_body_that_is_none_is_refused_once(body: bytes) -> None:
    async with lane([SAID]) as one:
        answer = await one.client.post(body)

        assert answer.status_code in {400, 422}
        assert answer.headers.get_list("x-request-id") == [answer.json()["error"]["correlation_id"]]
        assert (await one.ask()).status_code == 200


async def test_a_token_that_was_revoked_lets_nobody_in() -> None:
    async with lane([SAID]) as one:
        one.node.tokens.revoked.add("acme")
        assert (await one.ask()).status_code == 401
        one.node.tokens.revoked.clear()
        assert (await one.ask()).status_code == 200
        assert len(one.rough.requests) == WARM + 1


async def test_one_request_too_many_is_refused_holds_nothing_and_is_noted_once() -> None:
    async with lane([SAID], entitled={"requests_per_minute": WARM + 1}) as one:
        assert (await one.ask()).status_code == 200
        refused = await one.ask()
        [last, *_] = await one.records(WARM + 2)
        spent = await one.settled()

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert last.code == "rate_limited"
    assert len(one.rough.requests) == WARM + 1
    assert spent == 12 * (WARM + 1)


async def test_where_all_connections_are_taken_a_new_one_is_opened() -> None:
    async with lane([Stall(), SAID], [SAID]) as one:
        async with waiting(one) as asking:
            other = await one.node.chat(model="m-1")
            one.rough.resume.set()

        assert (asking.result().status_code, other.status_code) == (200, 200)
        assert one.rough.connections == 2


async def test_where_the_connection_was_ended_a_new_one_is_opened() -> None:
    async with lane([SAID]) as one:
        one.rough.hang_up()
        assert (await one.ask()).status_code == 200
        assert one.rough.connections == 2


async def test_near_the_limit_it_is_held_exactly() -> None:
    async with lane([SAID], limit=20_000) as one:
        refused = await one.ask(max_tokens=20_000)
        fits = await one.ask(max_tokens=19_000)
        spent = await one.settled()

    assert refused.json()["error"]["code"] == "request_exceeds_budget"
    assert fits.status_code == 200
    assert spent == 12 * (WARM + 1)
    assert one.rough.connections == 1


# What must be waited for afterwards.


async def test_who_leaves_ends_the_call_at_once_and_pays_what_it_may_have_cost() -> None:
    async with lane([Stall(), SAID]) as one:
        async with waiting(one) as asking:
            one.rough.gone.clear()
            asking.cancel()
        with anyio.fail_after(0.25):
            await one.rough.gone.wait()
        [last, *_] = await one.records(WARM + 1)
        spent = await one.settled()

    assert (last.status, last.code, last.estimated) == (499, "cancelled", True)
    assert 12 * WARM < spent < 12 * WARM + 100


async def test_who_leaves_a_call_that_is_billed_to_its_end_pays_what_is_reported() -> None:
    async with lane([Stall(), SAID], cancel_stops_billing=False) as one:
        async with waiting(one) as asking:
            one.rough.gone.clear()
            asking.cancel()
        while not tasks_of_requests():
            await anyio.lowlevel.checkpoint()
        assert not one.rough.gone.is_set()
        one.rough.resume.set()
        [last, *_] = await one.records(WARM + 1)
        spent = await one.settled()

    assert (last.status, last.estimated) == (200, False)
    assert spent == 12 * (WARM + 1)


async def test_time_is_up_for_it_as_well() -> None:
    async with lane([Stall(), SAID], limits=Limits(request_s=1)) as one:
        async with waiting(one) as asking:
            one.rough.gone.clear()
        await one.rough.gone.wait()
        [last, *_] = await one.records(WARM + 1)
        spent = await one.settled()

    answer = asking.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    assert "took longer than 1 s" in answer.json()["error"]["message"]
    assert last.code == "upstream_timeout"
    assert 12 * WARM < spent < 12 * WARM + 100


FAILURES: Final[dict[str, Script]] = {
    "overloaded": [FAILED],
    "cut before it began": [Cut()],
    "reset": [Cut(reset=True)],
    "cut in the middle": [SAID[:-9], Cut()],
    "no HTTP": [b"hello\r\n\r\n"],
    "no JSON": [whole(b"{")],
    "no completion": [whole(b"{}")],
}


@pytest.mark.parametrize("how", FAILURES)
async def test_after_a_failure_the_next_one_is_asked(how: str) -> None:
    async with (
        rough_backend([SAID]) as second,
        upstream_at(second.url, name="second", models=(ModelCard(id="m-1", upstream="m-1"),)) as other,
        lane(FAILURES[how], more=[other]) as one,
    ):
        answer = await one.ask()
        [last, *_] = await one.records(WARM + 1)
        spent = await one.settled()

    attempts = answer.json()["route"]["attempts"]
    assert [attempt["backend"] for attempt in attempts] == ["up", "second"]
    assert attempts[0]["status"] != 200
    assert (answer.status_code, len(last.attempts)) == (200, 2)
    assert (len(one.rough.requests), len(second.requests)) == (WARM + 1, 1)
    assert spent == 12 * WARM + sum(attempt["tokens"] for attempt in attempts)


async def test_failures_open_the_breaker_as_they_do_with_a_task() -> None:
    async with lane([FAILED]) as one:
        for _ in range(5):
            assert (await one.ask()).status_code == 502
        asked = len(one.rough.requests)
        refused = await one.ask()

    assert "has failed lately" in refused.json()["error"]["message"]
    assert len(one.rough.requests) == asked == WARM + 5


async def test_its_answer_counts_whatever_has_become_of_the_breaker_meanwhile() -> None:
    found = whole(msgspec.json.encode(completion("write to ann@example.org", usage=usage(7, 5)).body))
    async with lane([Stall(), found]) as one:
        async with waiting(one) as asking:
            one.node.deps.router.probed("up", well=False, pause=60)
            one.rough.resume.set()
        spent = await one.settled()

    assert asking.result().status_code == 200
    assert spent == 12 * (WARM + 1)


async def test_what_the_request_itself_is_refused_for_is_told() -> None:
    refusal = whole(b'{"error":{"code":"context_length_exceeded"}}', status="400 Bad Request")
    async with lane([refusal]) as one:
        answer = await one.ask()
        spent = await one.settled()

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert spent == 12 * WARM


async def test_an_answer_in_pieces_needs_no_task_and_one_with_something_in_it_is_looked_at() -> None:
    found = whole(msgspec.json.encode(completion("write to ann@example.org", usage=usage(7, 5)).body))
    async with lane([SAID[:40], SAID[40:90], Stall(), SAID[90:]], [found]) as one:
        async with waiting(one) as asking:
            one.rough.resume.set()
        shown = await one.ask()
        spent = await one.settled()

    assert asking.result().json()["choices"][0]["message"]["content"] == "all of it"
    assert "ann@example.org" not in shown.text
    assert shown.json()["policy_outcome"]["reasons"] == ["pii_output:email"]
    assert spent == 12 * (WARM + 2)


class Failing(Metrics):
    """Fails once, after an answer was paid, and before it is settled."""

    fails = False

    def usage(self, *args: Any, **named: Any) -> None:
        if self.fails:
            self.fails = False
            raise ZeroDivisionError
        super().usage(*args, **named)


async def test_a_defect_of_ours_is_an_error_that_is_settled_and_noted_once() -> None:
    metrics = Failing()
    async with lane([SAID], metrics=metrics) as one:
        metrics.fails = True
        answer = await one.ask()
        [last, *_] = await one.records(WARM + 1)
        assert (await one.ask()).status_code == 200
        spent = await one.settled()

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert (last.status, last.code, len(last.attempts)) == (500, "internal", 1)
    assert spent == 12 * (WARM + 2)


async def test_a_defect_of_ours_before_it_is_sent_is_the_coroutines_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lane([SAID]) as one:
        monkeypatch.setattr(OpenAiCompatible, "send", raising)
        answer = await one.ask()
        [last, *_] = await one.records(WARM + 1)
        spent = await one.settled()

    assert (answer.status_code, last.status) == (200, 200)
    assert spent == 12 * (WARM + 1)


def raising(*_: object) -> None:
    raise ZeroDivisionError


async def test_an_answer_that_comes_as_the_server_ends_is_the_tasks() -> None:
    async with lane([Stall(), SAID]) as one:
        async with waiting(one) as asking:
            [asked] = [found for found in one.backend._pool._open if found._answer is not None]
            for connection in one.connections:
                connection.shutdown()
            # In the same turn of the loop: the task has not begun.
            asked.data_received(SAID)
        [last, *_] = await one.records(WARM + 1)
        spent = await one.settled()
        metrics = one.node.deps.metrics.render().decode()

    assert (asking.result().status_code, last.status) == (200, 200)
    assert spent == 12 * (WARM + 1)
    assert f'agentos_http_requests_total{{method="POST",route="{CHAT}",status_class="2xx"}} {WARM + 1}.0' in metrics


async def test_a_server_that_ends_waits_for_it_as_for_the_others() -> None:
    async with lane([Stall(), SAID]) as one:
        async with waiting(one) as asking:
            for connection in one.connections:
                connection.shutdown()
            assert tasks_of_requests() == 1
            one.rough.resume.set()
        answer = asking.result()
        spent = await one.settled()

    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert spent == 12 * (WARM + 1)


async def test_a_server_that_waits_no_longer_settles_what_it_held() -> None:
    async with lane([Stall(), SAID]) as one:
        async with waiting(one) as asking:
            for connection in one.connections:
                connection.shutdown()
            await anyio.lowlevel.checkpoint()
            for connection in one.connections:
                for task in connection.tasks:
                    task.cancel()
        [last, *_] = await one.records(WARM + 1)
        spent = await one.settled()

    assert asking.result().status_code == 500
    assert (last.status, last.estimated) == (499, True)
    assert 12 * WARM < spent < 12 * WARM + 100
