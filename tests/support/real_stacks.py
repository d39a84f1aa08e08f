"""Stack B and Stack A's worker as processes of their own over a database of the test's own: to be killed and started again.

No supervisor and no CLI: just the composition roots. The provider behind the gateway is the test's.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import anyio
import httpx

from adapters.postgres import agent, budget, queue, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.stack_b_model import SPEC as MODEL
from adapters.stack_b_model import StackBModelConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from conformance.people import ACME, PLATFORM
from observability.metrics import Metrics
from ports.adapter import Given
from ports.agent import AgentRegistry, AgentSpec
from ports.budget import BudgetLedger
from ports.http.body import Receive
from ports.http.edge import Scope, Send
from ports.ids import AgentId, RunId
from ports.model import ModelPort
from ports.queue import QueuePort
from ports.run_intake import RunRequest
from ports.run_state import Idempotency, Run, RunStatePort
from ports.tenant import Entitlements, TenantDirectory
from stack_a.runs.start import Intake
from tests.support.http_server import served
from tests.support.postgres import Clone, cloned, fetch, shift_time
from tests.support.scripted_upstream import completion, delta, usage

ROOT: Final = Path(__file__).resolve().parents[2]
ISSUER: Final = "http://node.test"
MODEL_ID: Final = "m-1"
TOKENS_PER_CALL: Final = 30
AGENT: Final = AgentSpec(id=AgentId("agt_demo"), model=MODEL_ID, instructions="Answer.")
LIMIT: Final = 1_000_000_000


class Provider:
    """What costs money. Counts calls by their last message; answers once it is let go."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.answered = 0
        self.left = 0
        """Calls whose caller went away before the answer."""
        self.let_go = asyncio.Event()

    @property
    def total(self) -> int:
        return self.calls.total()

    def deltas(self, _body: dict[str, Any]) -> list[dict[str, Any]]:
        """What it streams as its answer to a request."""
        return [delta(role="assistant", content="paid"), delta("stop")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] != "POST":
            # Asked how it is.
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        body = json.loads(raw)
        self.calls[str(body["messages"][-1]["content"])] += 1
        waits = [asyncio.ensure_future(self.let_go.wait()), asyncio.ensure_future(_disconnected(receive))]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not self.let_go.is_set():
            self.left += 1
            return
        used = usage(10, TOKENS_PER_CALL - 10)
        if body.get("stream"):
            chunks = (*self.deltas(body), {**delta(), "choices": [], "usage": used})
            lines = [*(json.dumps(chunk) for chunk in chunks), "[DONE]"]
            kind, answer = b"text/event-stream", "".join(f"data: {line}\n\n" for line in lines).encode()
        else:
            kind, answer = b"application/json", json.dumps(completion("paid", usage=used).body).encode()
        headers = [(b"content-type", kind), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        self.answered += 1


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Process:
    """One service. `log` is what it said."""

    def __init__(self, module: str, environment: dict[str, str], log: Path, *, port: int) -> None:
        self._module = module
        self._environment = environment
        self._log = log
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        with self._log.open("ab") as log:
            # Starting is quick, and the services are the point of these tests.
            self._process = subprocess.Popen(  # noqa: ASYNC220 - see above
                [sys.executable, "-m", self._module],
                cwd=ROOT, env={**os.environ, **self._environment}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            with anyio.fail_after(30):
                while not await _ready(client):
                    assert self._process.poll() is None, self._log.read_text()
                    await anyio.sleep(0.05)

    async def kill(self) -> None:
        """As the machine would: without a word."""
        assert self._process is not None
        self._process.kill()
        await anyio.to_thread.run_sync(self._process.wait)

    def pause(self) -> None:
        """Stop it where it is."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to stop; `ended` waits for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        assert self._process is not None
        return await anyio.to_thread.run_sync(self._process.wait)

    async def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            await self.kill()


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


class RealStacks:
    """The processes, the ports over the same database, and a model port as a worker has it."""

    def __init__(self, database: Clone, provider: Provider, gateway: Process, worker: Process) -> None:
        self.database = database
        self.provider = provider
        self.gateway = gateway
        self.worker = worker
        self.model: ModelPort
        self.budget: BudgetLedger
        self.runs: RunStatePort
        self.queue: QueuePort
        self.agents: AgentRegistry
        self.tenants: TenantDirectory

    async def open(self, stack: AsyncExitStack, key: Path, agent_spec: AgentSpec) -> None:
        given = Given(clock=SystemClock())
        config = PostgresConfig(dsn=self.database.app)

        async def opened(spec: Any, config: Any, given: Given = given) -> Any:  # any port, by its spec
            return await stack.enter_async_context(spec.open(config, given))

        self.tenants = await opened(tenant.SPEC, PostgresConfig(dsn=self.database.control))
        self.budget = await opened(budget.SPEC, config)
        self.runs = await opened(run_state.SPEC, config)
        self.queue = await opened(queue.SPEC, config)
        self.agents = await opened(agent.SPEC, config)
        minting = await opened(issuer.SPEC, issuer.IssuerConfig(private_key_file=str(key), issuer=ISSUER))
        knowing = Given(clock=SystemClock(), ports={"issuer": minting})
        self.model = await opened(MODEL, StackBModelConfig(base_url=self.gateway.url), knowing)
        entitlements = Entitlements(models=("*",), tokens_per_day=LIMIT)
        await self.tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=entitlements)
        await self.agents.publish(ACME, agent_spec)

    async def created(self, text: str, **more: Any) -> RunId:
        """A run whose first step is a model call that ends with `text`. `more` is of `RunRequest`."""
        intake = Intake(run_state=self.runs, agent=self.agents, queue=self.queue, metrics=Metrics())
        idempotency = Idempotency(route="test", key=text, fingerprint=text)
        made = await intake.accept(ACME, RunRequest(agent_id=AGENT.id, input=text, idempotency=idempotency, **more))
        return made.run.id

    async def run(self, run_id: RunId) -> Run:
        return await self.runs.load(ACME, run_id)

    async def journaled(self) -> int:
        """How many replies are safe."""
        [row] = await fetch(self.database.admin, "SELECT count(*) FROM model_replies WHERE completed")
        return int(row[0])

    async def spent(self) -> tuple[int, int]:
        """Settled and held."""
        balance = await self.budget.balance(ACME, limit=LIMIT)
        return balance.settled, balance.held

    async def let_leases_lapse(self) -> None:
        """Those of the dead, in the database's time."""
        await shift_time(self.database, timedelta(seconds=60))


@asynccontextmanager
async def real_stacks(
    home: Path,
    ports: list[int],
    *,
    provider: Provider | None = None,
    agent: AgentSpec = AGENT,
    worker_environment: Mapping[str, str] | None = None,
) -> AsyncIterator[RealStacks]:
    """Both services, not started yet, over a new database with one tenant and one agent."""
    key, public, dsn = home / "issuer.pem", home / "jwks.json", home / "dsn"
    public.write_text(json.dumps(issuer.jwks(issuer.generate_key(key))))
    provider = provider or Provider()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(cloned())
        upstream = await stack.enter_async_context(served(provider))
        dsn.write_text(database.app)
        backends = [{"name": "up", "base_url": f"{upstream}/v1", "models": [{"id": MODEL_ID}]}]
        common = {
            "AGENTOS_MODE": "prod",
            "AGENTOS_DATABASE_URL_FILE": str(dsn),
            "AGENTOS_ISSUER": ISSUER,
            "AGENTOS_JWKS_FILE": str(public),
            "PYTHONPATH": str(ROOT),
        }
        gateway = Process(
            "deploy.roots.stack_b",
            {
                **common,
                "AGENTOS_STACK_B_PORT": str(ports[0]),
                "AGENTOS_BACKENDS": json.dumps(backends),
                "AGENTOS_RECORD_KEYS": "env:RECORD_KEYS",
                "RECORD_KEYS": f"tests:{'0' * 64}",
            },
            home / "stack-b.log",
            port=ports[0],
        )
        worker = Process(
            "deploy.roots.stack_a_worker",
            {
                **common,
                "AGENTOS_ISSUER_KEY_FILE": str(key),
                "AGENTOS_STACK_B_URL": gateway.url,
                "AGENTOS_WORKER_PORT": str(ports[1]),
                **(worker_environment or {}),
            },
            home / "worker.log",
            port=ports[1],
        )
        made = RealStacks(database, provider, gateway, worker)
        await made.open(stack, key, agent)
        stack.push_async_callback(gateway.end)
        stack.push_async_callback(worker.end)
        yield made
