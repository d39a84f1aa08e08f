"""Streams that are open while the gateway is replaced, or its file changes: they end as they would have, and are paid once.

Real processes on one address, over PostgreSQL; the provider is the test's.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import psutil
import pytest

from adapters.postgres import agent, budget, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from conformance.people import ACME, PLATFORM
from deploy.handover import keeper
from deploy.internal import Directory
from deploy.seed import issue
from ports.adapter import Given
from ports.budget import BudgetLedger
from ports.ids import PrincipalId
from ports.tenant import Entitlements
from tests.support.http_server import served
from tests.support.ports import free_ports
from tests.support.postgres import cloned
from tests.support.real_stacks import ISSUER, LIMIT, ROOT, Process
from tests.support.scripted_upstream import Events, ScriptedUpstream, completion, delta, usage

pytestmark = [pytest.mark.anyio]

EACH: Final = 12
HELLO: Final = [{"role": "user", "content": "hello"}]
STREAMS: Final[tuple[tuple[str, dict[str, Any], str], ...]] = (
    ("/v1/chat/completions", {"messages": HELLO}, "data: [DONE]\n\n"),
    ("/v1/responses", {"input": "hello"}, "event: response.completed\n"),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 100}, "event: message_stop\n"),
)
"""What is asked, and what only an answer that is whole has."""
WORDS: Final = [
    delta(role="assistant", content=""),
    delta(content="first "),
    delta(content="second"),
    delta("stop"),
    {"id": "chatcmpl-up", "choices": [], "usage": usage(7, 5)},
]
HELD: Final = Events(WORDS, hold_after=2)


@dataclass(kw_only=True)
class Place:
    home: Path
    port: int
    key: str
    environment: dict[str, str]
    upstream: ScriptedUpstream
    url: str
    ledger: BudgetLedger
    stack: AsyncExitStack

    @property
    def door(self) -> Path:
        return self.home / "door"

    def configure(self, backend: str) -> None:
        """As an editor does: another file in its place."""
        backends = [{"name": backend, "base_url": f"{self.url}/v1", "models": [{"id": "m-1"}]}]
        new = self.home / "new.json"
        new.write_text(json.dumps({"backends": backends}))
        new.replace(self.home / "gateway.json")

    async def gateway(self, name: str) -> Process:
        """It accepts once this returns."""
        process = Process("deploy.roots.stack_b", self.environment, self.home / f"{name}.log", port=self.port)
        self.stack.push_async_callback(process.end)
        await process.start()
        await until(lambda: (who := keeper(self.door)) is not None and who.pid == process.pid)
        return process

    def client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=headers, trust_env=False, timeout=30)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Place]:
    key, public, dsn = home / "issuer.pem", home / "jwks.json", home / "dsn"
    public.write_text(json.dumps(issuer.jwks(issuer.generate_key(key))))
    upstream = ScriptedUpstream([HELD] * len(STREAMS) + [completion("at once", usage=usage(7, 5))])
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(cloned())
        dsn.write_text(database.app)
        given, config = Given(clock=SystemClock()), PostgresConfig(dsn=database.control)
        tenants = await stack.enter_async_context(tenant.SPEC.open(config, given))
        agents = await stack.enter_async_context(agent.SPEC.open(config, given))
        entitlements = Entitlements(models=("*",), tokens_per_day=LIMIT)
        await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=entitlements)
        directory = Directory(tenants=tenants, agents=agents)
        made = await issue(
            directory, ACME.tenant, principal=PrincipalId("svc_app"), role="service", env="prod", label="app"
        )
        [port] = free_ports(1)
        environment = {
            "AGENTOS_MODE": "prod",
            "AGENTOS_DATABASE_URL_FILE": str(dsn),
            "AGENTOS_ISSUER": ISSUER,
            "AGENTOS_JWKS_FILE": str(public),
            "AGENTOS_STACK_B_PORT": str(port),
            "AGENTOS_HANDOVER": str(home / "door"),
            "AGENTOS_GATEWAY_FILE": str(home / "gateway.json"),
            "PYTHONPATH": str(ROOT),
        }
        place = Place(
            home=home,
            port=port,
            key=made.api_key,
            environment=environment,
            upstream=upstream,
            url=await stack.enter_async_context(served(upstream)),
            ledger=await stack.enter_async_context(budget.SPEC.open(config, given)),
            stack=stack,
        )
        place.configure("one")
        yield place


async def until(true: Callable[[], bool]) -> None:
    """Poll another process, bounded."""
    with anyio.fail_after(30):
        while not true():  # noqa: ASYNC110 - another process sets no event of ours
            await anyio.sleep(0.02)


def listens(process: Process) -> bool:
    return any(one.status == psutil.CONN_LISTEN for one in psutil.Process(process.pid).net_connections("tcp"))


class Streams:
    """One of each surface, begun and not ended."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.begun = 0
        self.texts: list[str] = []

    async def read(self, path: str, body: dict[str, Any]) -> None:
        text = ""
        async with self._client.stream("POST", path, json={"model": "m-1", "stream": True, **body}) as response:
            assert response.status_code == 200
            async for piece in response.aiter_text():
                self.begun += "first" in piece
                text += piece
        self.texts.append(text)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """On the way out they have been read to their ends."""
        async with asyncio.TaskGroup() as group:
            for path, body, _ in STREAMS:
                group.create_task(self.read(path, body))
            await until(lambda: self.begun == len(STREAMS))
            yield

    def assert_whole(self) -> None:
        assert len(self.texts) == len(STREAMS)
        for _, _, end in STREAMS:
            assert sum(end in text for text in self.texts) == 1
        assert all("second" in text for text in self.texts)


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"model": "m-1", "messages": HELLO})


async def test_open_streams_outlive_the_gateway_that_is_replaced_and_nobody_is_refused_meanwhile(place: Place) -> None:
    old = await place.gateway("old")
    async with place.client() as client, place.client() as others:
        streams = Streams(client)
        async with streams.open():
            new = await place.gateway("new")
            old.terminate()
            await until(lambda: not listens(old))
            answers = [await ask(others) for _ in range(5)]
            place.upstream.resume.set()
        code = await old.ended()
        answers.append(await ask(others))
    new.terminate()
    await new.ended()
    balance = await place.ledger.balance(ACME, limit=LIMIT)

    streams.assert_whole()
    assert [answer.status_code for answer in answers] == [200] * 6
    assert code == 0
    assert (balance.settled, balance.held) == (EACH * (len(STREAMS) + len(answers)), 0)


async def test_a_stream_that_is_cut_off_with_its_gateway_is_told_so_and_paid_for_what_it_got(place: Place) -> None:
    old = await place.gateway("old")
    async with place.client() as client:
        streams = Streams(client)
        async with streams.open():
            old.terminate()
            await until(lambda: not listens(old))
            # The second word ends the grace.
            old.terminate()
        await old.ended()
    balance = await place.ledger.balance(ACME, limit=LIMIT)

    assert len(streams.texts) == len(STREAMS)
    for _, _, end in STREAMS:
        assert all(end not in text for text in streams.texts)
    assert ['"code":' in text.rpartition("data: ")[2] for text in streams.texts] == [True] * len(STREAMS)
    assert balance.settled > 0
    assert balance.held == 0


async def test_open_streams_go_on_while_the_gateways_file_changes_under_them(place: Place) -> None:
    await place.gateway("only")
    async with place.client() as client, place.client() as others:
        streams = Streams(client)
        async with streams.open():
            place.configure("two")
            with anyio.fail_after(30):
                while (await ask(others)).json()["route"]["backend"] != "two":  # noqa: ASYNC110 - a file is followed
                    await anyio.sleep(0.1)
            place.upstream.resume.set()

    streams.assert_whole()
