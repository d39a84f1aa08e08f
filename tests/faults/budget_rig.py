"""What the budget driver runs against: two gateways, a provider that knows what it produced, and the ledger behind them."""

import asyncio
import json
import random
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from adapters.postgres import budget, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from conformance.people import ACME, PLATFORM
from ports.adapter import Given
from ports.budget import Balance, BudgetLedger
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.http.body import Receive
from ports.http.edge import Scope, Send
from ports.ids import TenantId
from ports.tenant import Entitlements, TenantDirectory
from stack_b.limits import Limits
from tests.support.http_server import served
from tests.support.ports import free_ports
from tests.support.postgres import Clone, cloned
from tests.support.real_stacks import ISSUER, ROOT, Process
from tests.support.scripted_upstream import delta, usage

MODEL: Final = "m-1"
GATEWAYS: Final = 2
TENANTS: Final = ("roomy", "tight", "edge", "snug")
SLICE: Final = 256
LIMITS: Final = Limits(request_s=10, output_slice_tokens=SLICE)
MAX_TOKENS: Final = 4_000
"""What a request asks for: held in slices, it is far from what most answers need."""
MOST_WRITTEN: Final = {"snug_": 10}
"""Tokens of an answer at most, by who asks: a *snug* one stays within its first slice."""
MOST: Final = 200
PROMPT_TOKENS: Final = 10
_PIECE_S: Final = (0.005, 0.03)
SAMPLE_S: Final = 0.03

AnswerT = TypeVar("AnswerT")


class Upstream:
    """A provider that streams as many tokens as it likes, stops when its caller leaves, and knows what it made for whom."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.produced: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] == "GET":
            # Gateways look whether it is there.
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b'{"data": []}'})
            return
        body = json.loads(raw)
        of = body["messages"][0]["content"]
        count = self._draw.randint(1, min(MOST_WRITTEN.get(of, MOST), body["max_tokens"]))
        pause = self._draw.uniform(*_PIECE_S)
        pieces = 10
        self.produced[of] += PROMPT_TOKENS
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            for piece in range(pieces):
                tokens = count * (piece + 1) // pieces - count * piece // pieces
                self.produced[of] += tokens
                await _say(send, delta(content="word " * tokens))
                await asyncio.wait({gone}, timeout=pause)
                if gone.done():
                    return
            await _say(send, delta("stop"))
            await _say(send, {**delta(), "choices": [], "usage": usage(PROMPT_TOKENS, count)})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            gone.cancel()


async def _say(send: Send, chunk: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": f"data: {json.dumps(chunk)}\n\n".encode(), "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Rig:
    """The gateways, and a way to the ledger past them."""

    def __init__(
        self,
        *,
        database: Clone,
        ledger: BudgetLedger,
        tenants: TenantDirectory,
        upstream: Upstream,
        gateways: list[Process],
        portal: BlockingPortal,
    ) -> None:
        """`ledger` and `tenants` belong to the event loop of `portal`: this one is hundreds of clients' and a provider's,
        and whoever reads the books in it comes to it once in seconds."""
        self.database = database
        self._ledger = ledger
        self._tenants = tenants
        self._portal = portal
        self.upstream = upstream
        self.gateways = gateways
        self.begun = [0] * len(gateways)
        """Streams of each gateway that are under way."""
        self.ended: list[deque[tuple[float, str]]] = [deque() for _ in gateways]
        """When streams of each gateway ended, and whose."""
        self.tokens: dict[str, str] = {}
        self.limits: dict[str, int] = {}
        self.over = 0
        """How far anybody was beyond the limit, at most."""
        self.peaks: dict[str, int] = dict.fromkeys(TENANTS, 0)
        self.samples = 0

    async def create(self, of: str, entitled: Entitlements) -> None:
        await self._there(lambda: self._tenants.create(PLATFORM, person(of).tenant, name=of, entitlements=entitled))

    async def entitle(self, of: str, limit: int) -> None:
        self.limits[of] = limit
        entitled = Entitlements(models=("*",), tokens_per_day=limit)
        await self._there(lambda: self._tenants.set_entitlements(PLATFORM, person(of).tenant, entitled))

    async def balance(self, of: str) -> Balance:
        return await self._there(lambda: self._read(of))

    async def watch(self) -> None:
        """Look all the time how much is spent or held."""
        await asyncio.wrap_future(self._portal.start_task_soon(self._watched))

    async def _watched(self) -> None:
        while True:
            for of in TENANTS:
                balance = await _answered(partial(self._read, of))
                taken = balance.settled + balance.held
                self.peaks[of] = max(self.peaks[of], taken)
                # A limit only grows, and here before anywhere else: what is asked for now is at least what held then.
                self.over = max(self.over, taken - self.limits[of])
            self.samples += 1
            await asyncio.sleep(SAMPLE_S)

    async def _read(self, of: str) -> Balance:
        return await self._ledger.balance(person(of), limit=self.limits[of])

    async def _there(self, ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        """In the other event loop."""
        return await asyncio.wrap_future(self._portal.start_task_soon(_answered, ask))


async def _answered(ask: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Whatever the machine is busy with: hundreds of clients share it with us."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask()
            except Unavailable:
                continue


def person(of: str) -> AuthContext:
    return msgspec.structs.replace(ACME, tenant=TenantId(f"tnt_{of}"))


def request(of: str) -> dict[str, Any]:
    """The same for everybody but the name, which is as long: so that each reserves as much."""
    return {
        "model": MODEL,
        "stream": True,
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": of.ljust(5, "_")}],
    }


@asynccontextmanager
async def opened(draw: random.Random) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-budget-")))
        database = await stack.enter_async_context(cloned())
        upstream = Upstream(draw)
        url = await stack.enter_async_context(served(upstream))
        given, config = Given(clock=SystemClock()), PostgresConfig(dsn=database.control)
        portal = stack.enter_context(start_blocking_portal())
        ledger = stack.enter_context(portal.wrap_async_context_manager(budget.SPEC.open(config, given)))
        key, public, dsn = home / "issuer.pem", home / "jwks.json", home / "dsn"
        public.write_text(json.dumps(issuer.jwks(issuer.generate_key(key))))
        dsn.write_text(database.app)
        variables = {
            "AGENTOS_MODE": "prod",
            "AGENTOS_DATABASE_URL_FILE": str(dsn),
            "AGENTOS_ISSUER": ISSUER,
            "AGENTOS_JWKS_FILE": str(public),
            "AGENTOS_BACKENDS": json.dumps([{"name": "up", "base_url": f"{url}/v1", "models": [{"id": MODEL}]}]),
            "AGENTOS_GATEWAY_LIMITS": msgspec.json.encode(LIMITS).decode(),
            "PYTHONPATH": str(ROOT),
        }
        gateways = [
            Process(
                "deploy.roots.stack_b",
                {**variables, "AGENTOS_STACK_B_PORT": str(port)},
                home / f"gateway-{place}.log",
                port=port,
            )
            for place, port in enumerate(free_ports(GATEWAYS))
        ]
        for gateway in gateways:
            stack.push_async_callback(gateway.end)
            await gateway.start()
        tenants = stack.enter_context(portal.wrap_async_context_manager(tenant.SPEC.open(config, given)))
        made = Rig(
            database=database, ledger=ledger, tenants=tenants, upstream=upstream, gateways=gateways, portal=portal
        )
        minting = await stack.enter_async_context(
            issuer.SPEC.open(issuer.IssuerConfig(private_key_file=str(key), issuer=ISSUER), given)
        )
        for of in TENANTS:
            made.limits[of] = 10**12
            entitled = Entitlements(models=("*",), tokens_per_day=made.limits[of])
            await made.create(of, entitled)
            made.tokens[of] = minting.mint(
                person(of), audience="stack-b", scopes=frozenset({"models:invoke"}), lifetime=timedelta(hours=1)
            )
        yield made
