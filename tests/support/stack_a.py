"""Stack A in this process: its API and a worker over adapters of `adapters.inproc`, and the pieces to script them with."""

import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import httpx
from msgspec.structs import replace

from adapters.inproc import agent, audit, event, memory, queue, run_state, store, tenant
from adapters.inproc.store import InprocConfig
from adapters.system_clock import SystemClock
from conformance.people import ACME, ACME_BEN, GLOBEX, PLATFORM
from observability.metrics import Metrics
from ports.adapter import Given
from ports.agent import AgentSpec
from ports.auth import mismatch
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import Unauthenticated
from ports.ids import AgentId, PrincipalId, WorkerId
from ports.memory import MemoryPort
from ports.model import ModelPort
from ports.run_state import Run, RunStatePort
from ports.tenant import Entitlements, TenantDirectory
from ports.tool import ToolPort
from stack_a.app import create_app
from stack_a.deps import ApiDeps, Shedding, WorkerDeps
from stack_a.hints import Ack
from stack_a.lease import Keep
from stack_a.worker import Worker

ACME_EDITOR = replace(ACME, principal=PrincipalId("usr_eve"), scopes=ACME.scopes | {"approvals:decide"})
GLOBEX_EDITOR = replace(GLOBEX, scopes=GLOBEX.scopes | {"approvals:decide"})
ACME_CANCELLER = replace(ACME, principal=PrincipalId("svc_stop"), scopes=frozenset({"runs:cancel"}))
TOKENS = {
    "acme": ACME,
    "ben": ACME_BEN,
    "eve": ACME_EDITOR,
    "canceller": ACME_CANCELLER,
    "globex": GLOBEX,
    "globex-editor": GLOBEX_EDITOR,
}
AGENT = AgentSpec(id=AgentId("agt_demo"), instructions="Help.", model="m", tools=("add", "slow", "send"))


class Tokens:
    """A verifier for tests: a token is a name. `revoked` ones stop being valid."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()

    async def verify(self, token: str) -> AuthContext:
        if token in self.revoked or token not in TOKENS:
            raise Unauthenticated("the token is not valid")
        return TOKENS[token]

    async def act_as(self, _: str, __: str, /) -> AuthContext:
        raise mismatch()


@dataclass(kw_only=True)
class StackA:
    """The ports of one storage, the API over them, and workers when asked for."""

    clock: Clock
    api: ApiDeps
    tenants: TenantDirectory
    memory: MemoryPort
    """What the run store writes to."""
    tokens: Tokens
    http: httpx.AsyncClient
    _keys: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def run_state(self) -> RunStatePort:
        return self.api.run_state

    async def entitle(self, auth: AuthContext, entitlements: Entitlements) -> None:
        await self.tenants.create(PLATFORM, auth.tenant, name=auth.tenant, entitlements=entitlements)

    def headers(self, who: str = "acme", **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {who}", **more}

    async def create(self, who: str = "acme", *, key: str | None = None, **body: Any) -> httpx.Response:
        body.setdefault("input", "hello")
        headers = self.headers(who, **{"idempotency-key": key or f"key-{next(self._keys)}"})
        return await self.http.post("/v1/agents/agt_demo/runs", headers=headers, json=body)

    async def created(self, who: str = "acme", **body: Any) -> str:
        """The id of a new run."""
        response = await self.create(who, **body)
        assert response.status_code == 202, response.text
        return cast("str", response.json()["run_id"])

    async def get(self, path: str, who: str = "acme", **headers: str) -> httpx.Response:
        return await self.http.get(path, headers=self.headers(who, **headers))

    async def cancel(self, run_id: str, who: str = "acme") -> httpx.Response:
        headers = self.headers(who, **{"idempotency-key": f"cancel-{next(self._keys)}"})
        return await self.http.post(f"/v1/runs/{run_id}:cancel", headers=headers)

    async def verb(
        self, run_id: str, verb: str, who: str = "acme", *, key: str | None = None, **body: Any
    ) -> httpx.Response:
        """`POST /v1/runs/{run_id}:{verb}`."""
        headers = self.headers(who, **{"idempotency-key": key or f"{verb}-{next(self._keys)}"})
        return await self.http.post(f"/v1/runs/{run_id}:{verb}", headers=headers, json=body)

    async def ended(self, run_id: str, who: str = "acme") -> Run:
        """The run once its events are over."""
        with anyio.fail_after(10):
            async for _ in self.api.event.follow(TOKENS[who], cast("Any", run_id)):
                pass
        return await self.run_state.load(TOKENS[who], cast("Any", run_id))

    @asynccontextmanager
    async def worker(
        self, model: ModelPort, tool: ToolPort, *, concurrency: int = 4, keep: Keep | None = None, ack: Ack = "accept"
    ) -> AsyncIterator[Worker]:
        """A worker at work; on leaving it is stopped as if its process had been killed."""
        deps = WorkerDeps(
            clock=self.clock,
            run_state=self.api.run_state,
            queue=self.api.queue,
            agent=self.api.agent,
            model=model,
            tool=tool,
            metrics=Metrics(),
        )
        made = Worker(
            deps, new_id=lambda: WorkerId(f"wrk_{uuid.uuid4().hex}"), concurrency=concurrency, keep=keep, ack=ack
        )
        async with anyio.create_task_group() as group:
            group.start_soon(made.serve)
            yield made
            group.cancel_scope.cancel()


@asynccontextmanager
async def stack_a(
    *,
    clock: Clock | None = None,
    wrap: Callable[[str, Any], Any] = lambda _, port: port,
    shedding: Shedding | None = None,
) -> AsyncIterator[StackA]:
    """A Stack A of its own with the agent `agt_demo` for both tenants. `wrap` may put a fault around a port."""
    given = Given(clock=clock or SystemClock())
    config = InprocConfig(name=uuid.uuid4().hex)
    tokens = Tokens()
    async with AsyncExitStack() as stack:
        stack.callback(store.drop, config.name)
        opened = {
            name: wrap(name, await stack.enter_async_context(spec.open(config, given)))
            for name, spec in {
                "run_state": run_state.SPEC, "event": event.SPEC, "queue": queue.SPEC, "agent": agent.SPEC,
                "audit": audit.SPEC,
            }.items()
        }  # fmt: skip
        tenants = await stack.enter_async_context(tenant.SPEC.open(config, given))
        api = ApiDeps(
            clock=given.clock,
            verifier=tokens,
            metrics=Metrics(),
            shedding=shedding or Shedding(),
            tenant=tenants,
            **opened,
        )
        remembered = await stack.enter_async_context(memory.SPEC.open(config, given))
        for owner in (ACME, GLOBEX):
            await api.agent.publish(owner, AGENT)
        transport = httpx.ASGITransport(cast("Any", create_app(api)))
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://node"))
        yield StackA(clock=given.clock, api=api, tenants=tenants, memory=remembered, tokens=tokens, http=http)


def events_of(body: str) -> list[dict[str, Any]]:
    """The events in a stream's text, each with its `id`."""
    found = []
    for frame in body.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines() if line and not line.startswith(":"))
        if lines:
            found.append({"id": lines["id"], "event": lines["event"], **json.loads(lines["data"])})
    return found
