"""A request that is made again is paid once: by the official clients, unmodified, and by any with a key. Real sockets."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import anyio
import httpx
import pytest

from conformance.people import ACME
from ports.budget import Balance
from ports.errors import Unavailable
from ports.http.body import Receive
from ports.http.edge import App, Scope, Send
from ports.http.extensions import ON_DISCONNECT
from ports.messages import Json
from stack_b import steps as steps_module
from stack_b.http.completions import SURFACES
from tests.support.held_backend import SAID, SPENT, HeldBackend
from tests.support.http_server import served
from tests.support.stack_b import StackB, stack_b
from tests.support.surface_clients import Client, Told, client_for

pytestmark = [pytest.mark.anyio]

WAITS_S: Final = 0.4
CHAT: Final = "/v1/chat/completions"
ASKED: Final[dict[str, Json]] = {"model": "m-1", "messages": [{"role": "user", "content": "hello"}]}


class SilentBackend(HeldBackend):
    """Says nothing at all before it is let go."""

    async def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> AsyncGenerator[dict[str, Json], None]:
        await self._wait()
        self.calls -= 1
        self.ended -= 1
        async for chunk in super().stream(model, body, max_tokens):
            yield chunk


class Door:
    """Counts the requests that come, and those whose client has left."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.retries: list[str] = []
        self.left = 0
        self.news = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def heard() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._has_left()
            return message

        def on_disconnect(act: Callable[[], None]) -> None:
            def left() -> None:
                self._has_left()
                act()

            extensions[ON_DISCONNECT](left)

        extensions = scope.get("extensions") or {}
        if ON_DISCONNECT in extensions:
            scope = {**scope, "extensions": {**extensions, ON_DISCONNECT: on_disconnect}}
        headers = dict(scope["headers"])
        self.retries.append(headers.get(b"x-stainless-retry-count", b"").decode())
        self._tell()
        await self._app(scope, heard, send)

    async def until(self, *, came: int = 0, left: int = 0) -> None:
        with anyio.fail_after(10):
            while len(self.retries) < came or self.left < left:
                await self.news.wait()

    def _has_left(self) -> None:
        self.left += 1
        self._tell()

    def _tell(self) -> None:
        self.news.set()
        self.news = anyio.Event()


@asynccontextmanager
async def gateway(backend: HeldBackend, **settings: Any) -> AsyncIterator[tuple[StackB, Door, str]]:
    with anyio.fail_after(40):
        async with stack_b(backend, **settings) as node:
            door = Door(node.app)
            async with served(door) as url:
                yield node, door, url


async def told_by(client: Client, *, stream: bool) -> Told:
    return await (client.stream if stream else client.ask)("hello")


async def told_after_a_timeout(
    backend: SilentBackend, path: str, *, stream: bool, came: int = 0, left: int = 0
) -> tuple[Told, Balance]:
    """What a client is told that ran out of time, where the backend answers once so many requests came or were left."""
    found: list[Told] = []
    async with gateway(backend) as (node, door, url):
        async with client_for(path, url, timeout=WAITS_S, max_retries=3) as client, anyio.create_task_group() as group:

            async def ask() -> None:
                found.append(await told_by(client, stream=stream))

            group.start_soon(ask)
            await door.until(came=came, left=left)
            backend.let_go.set()
        balance = await node.balance()
    [told] = found
    return told, balance


@pytest.fixture(params=sorted(SURFACES))
def path(request: pytest.FixtureRequest) -> str:
    given: str = request.param
    return given


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
class TestOfficialClients:
    async def test_one_that_ran_out_of_time_joins_the_call_that_is_under_way(self, path: str, *, stream: bool) -> None:
        backend = SilentBackend()

        told, balance = await told_after_a_timeout(backend, path, stream=stream, came=2)

        assert told.text == SAID
        assert (backend.calls, backend.cancelled) == (1, 0)
        assert (told.receipt["route"]["replayed"], told.receipt["route"]["joined"]) == (True, True)
        assert (balance.settled, balance.held) == (SPENT, 0)

    async def test_one_whose_answer_was_ready_meanwhile_is_given_it(self, path: str, *, stream: bool) -> None:
        backend = SilentBackend()

        told, balance = await told_after_a_timeout(backend, path, stream=stream, left=1)

        assert told.text == SAID
        assert (backend.calls, backend.cancelled) == (1, 0)
        assert told.receipt["route"]["replayed"] is True
        assert (balance.settled, balance.held) == (SPENT, 0)

    async def test_one_that_was_refused_in_passing_is_made_again_and_billed_once(
        self, path: str, *, stream: bool
    ) -> None:
        backend = SilentBackend(held=False)
        backend.failure = Unavailable("no", code="upstream_error", details={"upstream_status": 503})
        found: list[Told] = []

        async with gateway(backend) as (node, door, url):
            async with client_for(path, url, max_retries=2) as client, anyio.create_task_group() as group:

                async def ask() -> None:
                    found.append(await told_by(client, stream=stream))

                group.start_soon(ask)
                await door.until(came=1)
                await backend.begun.wait()
                await anyio.sleep(0.1)  # the client's own pause is at least 0.37 s
                backend.failure = None
            balance = await node.balance()

        [told] = found
        assert told.text == SAID
        assert door.retries[:2] == ["0", "1"]
        assert (told.receipt["route"]["replayed"], told.receipt["route"]["possible_duplicate"]) == (False, False)
        assert (balance.settled, balance.held) == (SPENT, 0)


SDK: Final = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": str(WAITS_S)}
RETRY: Final = {**SDK, "x-stainless-retry-count": "1"}


async def post(
    url: str, body: Any = ASKED, *, who: str = "acme", timeout: float = 20, headers: dict[str, str] | None = None
) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=timeout) as http:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"authorization": f"Bearer {who}", "content-type": "application/json", **(headers or {})}
        return await http.post(f"{url}{CHAT}", content=sent, headers=given)


async def abandoned(url: str, *, after_s: float, headers: dict[str, str]) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await post(url, timeout=after_s, headers=headers)


class TestWithoutAKey:
    async def test_whoever_gives_up_early_ends_the_call(self) -> None:
        backend = HeldBackend()
        async with gateway(backend) as (_, _, url):
            await abandoned(url, after_s=0.1, headers={**SDK, "x-stainless-read-timeout": "600"})
            with anyio.fail_after(1):
                await backend.stopped.wait()

        assert backend.cancelled == 1

    async def test_a_call_that_nobody_comes_back_for_is_given_up_and_settled(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stack_b.once._FIRST_PAUSE_S", 0.05)
        monkeypatch.setattr("stack_b.once._SLACK_S", 0.05)
        backend = HeldBackend()
        async with gateway(backend) as (node, _, url):
            await abandoned(url, after_s=WAITS_S, headers=SDK)
            with anyio.fail_after(5):
                await backend.stopped.wait()
                while (await node.balance()).held:  # noqa: ASYNC110 - the ledger doesn't tell
                    await anyio.sleep(0.01)

        assert backend.cancelled == 1

    async def test_a_first_request_never_joins(self) -> None:
        backend = HeldBackend()
        answers: list[httpx.Response] = []
        async with gateway(backend) as (_, door, url):

            async def ask() -> None:
                answers.append(await post(url, headers=SDK))

            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                group.start_soon(ask)
                await door.until(came=2)
                with anyio.fail_after(5):
                    while backend.calls < 2:  # noqa: ASYNC110 - the backend doesn't tell
                        await anyio.sleep(0.01)
                backend.let_go.set()

        assert [answer.json()["route"]["joined"] for answer in answers] == [False, False]

    @pytest.mark.parametrize(
        ("who", "body"),
        [("globex", ASKED), ("acme", {**ASKED, "temperature": 1})],
        ids=["another tenant", "another request"],
    )
    async def test_a_retry_of_something_else_joins_nothing(self, who: str, body: Any) -> None:
        backend = HeldBackend()
        answers: list[httpx.Response] = []
        async with gateway(backend) as (_, _, url):

            async def again() -> None:
                answers.append(await post(url, body, who=who, headers=RETRY))

            await abandoned(url, after_s=WAITS_S, headers=SDK)
            async with anyio.create_task_group() as group:
                group.start_soon(again)
                with anyio.fail_after(5):
                    while backend.calls < 2:  # noqa: ASYNC110 - the backend doesn't tell
                        await anyio.sleep(0.01)
                backend.let_go.set()

        assert answers[0].json()["route"]["replayed"] is False

    async def test_the_answer_waits_for_its_retry_for_a_while_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stack_b.once.JOIN_WINDOW", timedelta(seconds=1.5))
        backend = HeldBackend()
        async with gateway(backend) as (_, _, url):
            await abandoned(url, after_s=WAITS_S, headers=SDK)
            backend.let_go.set()
            soon = (await post(url, headers=RETRY)).json()["route"]["replayed"]
            await anyio.sleep(1.6)
            late = (await post(url, headers=RETRY)).json()["route"]["replayed"]

        assert (soon, late) == (True, False)
        assert backend.calls == 2

    @pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
    async def test_a_retry_that_comes_to_another_process_waits_for_the_first(
        self, monkeypatch: pytest.MonkeyPatch, *, stream: bool
    ) -> None:
        monkeypatch.setattr(steps_module, "LOOK_EVERY", timedelta(milliseconds=5))
        first, second = SilentBackend(), SilentBackend(held=False)
        body = {**ASKED, "stream": stream}
        async with gateway(first) as (one, door, url), stack_b(second, reply_journal=one.deps.reply_journal) as other:
            with pytest.raises(httpx.ReadTimeout):
                await post(url, body, timeout=WAITS_S, headers=SDK)
            await door.until(left=1)
            answers: list[httpx.Response] = []

            async def again() -> None:
                answers.append(await other.post(CHAT, body, "acme", **RETRY))

            async with anyio.create_task_group() as group:
                group.start_soon(again)
                await anyio.sleep(0.1)
                first.let_go.set()

        assert (first.calls, second.calls) == (1, 0)
        assert answers[0].status_code == 200
        assert '"replayed":true' in answers[0].text

    async def test_without_the_journal_a_retry_still_joins_in_the_same_process(self) -> None:
        class Away:
            def __getattr__(self, name: str) -> Any:
                async def away(*_: Any, **__: Any) -> None:
                    raise Unavailable("away")

                return away

        backend = HeldBackend()
        answers: list[httpx.Response] = []
        async with gateway(backend, reply_journal=Away()) as (_, door, url):

            async def again() -> None:
                answers.append(await post(url, headers=RETRY))

            await abandoned(url, after_s=WAITS_S, headers=SDK)
            async with anyio.create_task_group() as group:
                group.start_soon(again)
                await door.until(came=2)
                backend.let_go.set()

        assert backend.calls == 1
        assert answers[0].json()["route"]["joined"] is True


class TestWithAKey:
    async def test_a_repeat_gets_the_same_answer_in_whatever_order_its_members_are(self) -> None:
        backend = HeldBackend(held=False)
        same = b'{ "messages" : [ {"content": "hello", "role": "user"} ],\n "model": "m-1" }'
        async with gateway(backend) as (node, _, url):
            first = (await post(url, headers={"idempotency-key": "once"})).json()
            again = (await post(url, same, headers={"idempotency-key": "once"})).json()
            balance = await node.balance()

        assert again["choices"] == first["choices"]
        assert (first["route"]["replayed"], again["route"]["replayed"]) == (False, True)
        assert backend.calls == 1
        assert balance.settled == SPENT

    async def test_another_body_is_refused_and_finally(self) -> None:
        backend = HeldBackend(held=False)
        async with gateway(backend) as (_, _, url):
            await post(url, headers={"idempotency-key": "once"})
            refused = await post(url, {**ASKED, "max_tokens": 7}, headers={"idempotency-key": "once"})

        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert backend.calls == 1

    async def test_a_key_is_its_tenants_and_another_than_a_step_of_that_name(self) -> None:
        backend = HeldBackend(held=False)
        async with gateway(backend) as (_, _, url):
            answers = [
                await post(url, headers={"idempotency-key": "run_1:1"}),
                await post(url, who="globex", headers={"idempotency-key": "run_1:1"}),
                await post(url, headers={"x-step-key": "run_1:1"}),
            ]

        assert [answer.json()["route"]["replayed"] for answer in answers] == [False, False, False]

    async def test_a_refused_body_does_not_burn_the_key(self) -> None:
        backend = HeldBackend(held=False)
        async with gateway(backend) as (_, _, url):
            bad = await post(url, {**ASKED, "max_tokens": -1}, headers={"idempotency-key": "once"})
            good = await post(url, headers={"idempotency-key": "once"})

        assert (bad.status_code, good.status_code) == (422, 200)

    @pytest.mark.parametrize("key", ["", "x" * 256, "\u00e9"])
    async def test_what_can_be_no_key_is_refused(self, key: str) -> None:
        async with stack_b(HeldBackend(held=False)) as node:
            answer = await node.http.post(
                CHAT,
                json=ASKED,
                headers=[(b"authorization", b"Bearer acme"), (b"idempotency-key", key.encode("latin-1"))],
            )

        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")

    async def test_the_call_goes_on_when_its_client_leaves(self) -> None:
        backend = HeldBackend()
        async with gateway(backend) as (_, _, url):
            await abandoned(url, after_s=0.1, headers={"idempotency-key": "once"})
            backend.let_go.set()
            again = (await post(url, headers={"idempotency-key": "once"})).json()

        assert (backend.calls, backend.cancelled) == (1, 0)
        assert again["route"]["replayed"] is True

    async def test_who_joins_a_stream_hears_it_from_its_first_word_and_as_it_comes(self) -> None:
        backend = HeldBackend()
        heard: list[list[str]] = [[], []]
        body = {**ASKED, "stream": True}
        async with gateway(backend) as (_, _, url):

            async def listen(which: int) -> None:
                headers = {"authorization": "Bearer acme", "idempotency-key": "once"}
                async with (
                    httpx.AsyncClient(trust_env=False, timeout=20) as http,
                    http.stream("POST", f"{url}{CHAT}", json=body, headers=headers) as answer,
                ):
                    async for line in answer.aiter_lines():
                        if line:
                            heard[which].append(line)

            async def until_heard(which: int) -> None:
                with anyio.fail_after(10):
                    while len(heard[which]) < 2:  # noqa: ASYNC110 - a socket doesn't tell
                        await anyio.sleep(0.01)

            async with anyio.create_task_group() as group:
                group.start_soon(listen, 0)
                await until_heard(0)
                group.start_soon(listen, 1)
                await until_heard(1)
                before = list(heard[1])
                backend.let_go.set()

        assert "half " in before[1]
        assert heard[0][:-2] == heard[1][:-2]
        assert heard[0][-1] == heard[1][-1] == "data: [DONE]"
        last = [json.loads(lines[-2].removeprefix("data: ")) for lines in heard]
        assert [one["route"]["joined"] for one in last] == [False, True]
        assert backend.calls == 1

    async def test_a_members_value_is_not_in_clear_in_the_journal(self) -> None:
        class Echo(HeldBackend):
            async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
                answer = await super().chat(model, body, max_tokens)
                answer["choices"][0]["message"]["content"] = "I wrote to " + body["messages"][0]["content"]
                return answer

        canary = "canary.bird@example.com"
        asked = {**ASKED, "messages": [{"role": "user", "content": canary}]}
        async with stack_b(Echo(held=False), pii_modes={"email": "reversible"}) as node:
            answer = (await node.post(CHAT, asked, **{"x-step-key": "run_1:1"})).json()
            entries = repr(node.deps.reply_journal._rows)  # type: ignore[attr-defined]
            again = (await node.post(CHAT, asked, **{"x-step-key": "run_1:1"})).json()

        said = answer["choices"][0]["message"]["content"]
        assert canary in said
        assert canary not in entries
        assert "I wrote" not in entries
        assert again["choices"] == answer["choices"]
        assert ACME.tenant in entries
