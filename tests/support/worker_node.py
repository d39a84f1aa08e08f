"""A database with workers over it, whose agent has a tool that waits for a gate: who is in it, and how many at once."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from uuid import uuid4

import anyio
import anyio.lowlevel

from adapters.inproc.model import InprocModel, InprocModelConfig, Rule
from adapters.inproc.tool import Act, InprocTools, PythonTool
from adapters.postgres import agent, event, queue, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import idempotency
from conformance.people import PLATFORM
from observability.metrics import Metrics
from ports.adapter import Given
from ports.agent import AgentRegistry, AgentSpec
from ports.clock import Clock
from ports.context import AuthContext
from ports.event import EventPort
from ports.ids import AgentId, RunId, WorkerId
from ports.messages import Json
from ports.model import ChatRequest, Message, ToolRequest
from ports.queue import QueuePort
from ports.run_intake import RunRequest
from ports.run_state import RunStatePort
from ports.tenant import Entitlements, TenantDirectory
from ports.tool import ToolSpec
from stack_a.deps import WorkerDeps
from stack_a.runs.start import Intake
from stack_a.worker import Worker
from tests.support.postgres import Clone, cloned

_CLOCK: Final = SystemClock()
AGENT: Final = AgentSpec(id=AgentId("agt_fair"), model="m", tools=("count",))


def first_a_tool_then_text(_auth: AuthContext, request: ChatRequest) -> Message:
    if request.messages[-1].role == "tool":
        return Message(role="assistant", content="done")
    return Message(role="assistant", tool_calls=(ToolRequest(id="call_1", name="count", arguments="{}"),))


class Worked(Protocol):
    """What a worker works on."""

    runs: RunStatePort
    queue: QueuePort
    agents: AgentRegistry


@asynccontextmanager
async def working(
    ports: Worked, act: Act, *, concurrency: int, clock: Clock = _CLOCK, rule: Rule = first_a_tool_then_text
) -> AsyncIterator[None]:
    """A worker whose agents' tool `count` is `act`."""
    schema: dict[str, Json] = {"type": "object", "additionalProperties": False}
    spec = ToolSpec(name="count", description="c", input_schema=schema, effect="pure")
    deps = WorkerDeps(
        clock=clock,
        run_state=ports.runs,
        queue=ports.queue,
        agent=ports.agents,
        model=InprocModel(InprocModelConfig(chat_models=("m",)), rule),
        tool=InprocTools([PythonTool(spec=spec, act=act)], clock),
        metrics=Metrics(),
    )
    made = Worker(deps, new_id=lambda: WorkerId(f"wrk_{uuid4().hex}"), concurrency=concurrency)
    async with anyio.create_task_group() as group:
        group.start_soon(made.serve)
        yield
        group.cancel_scope.cancel()


@dataclass(kw_only=True)
class Node:
    """The ports of one database and what the agent's tool saw: how many of each tenant's runs were in it at once."""

    database: Clone
    runs: RunStatePort
    events: EventPort
    queue: QueuePort
    agents: AgentRegistry
    tenants: TenantDirectory
    inside: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    gate: anyio.Event = field(default_factory=anyio.Event)

    async def entitle(self, auth: AuthContext, entitlements: Entitlements) -> None:
        await self.tenants.create(PLATFORM, auth.tenant, name=auth.tenant, entitlements=entitlements)
        await self.agents.publish(auth, AGENT)

    async def create(self, auth: AuthContext, agent: AgentId = AGENT.id) -> RunId:
        intake = Intake(run_state=self.runs, agent=self.agents, queue=self.queue, metrics=Metrics())
        return (await intake.accept(auth, RunRequest(agent_id=agent, input="x", idempotency=idempotency()))).run.id

    async def ended(self, auth: AuthContext, run: RunId) -> None:
        async for _ in self.events.follow(auth, run):
            pass

    @asynccontextmanager
    async def worker(
        self, *, concurrency: int, clock: Clock = _CLOCK, rule: Rule = first_a_tool_then_text
    ) -> AsyncIterator[None]:
        async with working(self, self._count, concurrency=concurrency, clock=clock, rule=rule):
            yield

    async def _count(self, auth: AuthContext, _arguments: dict[str, Json], _key: str) -> Json:
        self.inside[auth.tenant] = self.inside.get(auth.tenant, 0) + 1
        self.most[auth.tenant] = max(self.most.get(auth.tenant, 0), self.inside[auth.tenant])
        try:
            await self.gate.wait()
            # Let others come in, if they may.
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
        finally:
            self.inside[auth.tenant] -= 1
        return None

    async def until_inside(self, auth: AuthContext, count: int) -> None:
        while self.inside.get(auth.tenant, 0) < count:
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def open_node() -> AsyncIterator[Node]:
    async with cloned() as database, AsyncExitStack() as stack:
        app, control = PostgresConfig(dsn=database.app), PostgresConfig(dsn=database.control)

        async def opened(spec: Any, config: PostgresConfig = app) -> Any:  # a spec of any port
            return await stack.enter_async_context(spec.open(config, Given(clock=SystemClock())))

        yield Node(
            database=database,
            runs=await opened(run_state.SPEC),
            events=await opened(event.SPEC),
            queue=await opened(queue.SPEC),
            agents=await opened(agent.SPEC),
            tenants=await opened(tenant.SPEC, control),
        )
