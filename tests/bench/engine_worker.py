"""Stack A's worker as in production, but with a model and a tool that take no time (or as long as told).

Started by the bench: `python -m tests.bench.engine_worker`.
"""

import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import anyio

from adapters.inproc.model import InprocModel, InprocModelConfig
from adapters.inproc.tool import InprocTools, PythonTool
from adapters.system_clock import SystemClock
from deploy.roots.environment import Environment
from deploy.roots.server import run
from deploy.roots.start import start_is_over
from deploy.roots.wiring import Choice, open_ports
from observability.instrument import instrument
from observability.logs import configure
from observability.metrics import Metrics
from ports.context import AuthContext
from ports.ids import WorkerId
from ports.messages import Json, Usage
from ports.model import ChatReply, ChatRequest, Message, PolicyOutcome, Route, ToolRequest
from ports.tool import ToolSpec
from stack_a.deps import WORKER_NEEDS, WorkerDeps
from stack_a.lease import LeaseStore, kept_apart
from stack_a.worker import Worker
from tests.bench.machine import READY

MODEL: Final = "instant"
TOOL: Final = "probe"
TOOL_MS: Final = int(os.environ.get("AGENTOS_BENCH_TOOL_MS", "0"))
"""How long the tool takes, for benches about waiting rather than working."""
_DRAIN: Final = timedelta(seconds=5)
_STORED: Final = ("run_state", "queue", "agent")


def tools_then_text(turns: int) -> Callable[[AuthContext, ChatRequest], Message]:
    """A model that asks for the tool so many times, once per turn, and then answers."""

    def rule(_auth: AuthContext, request: ChatRequest) -> Message:
        if sum(message.role == "tool" for message in request.messages) == turns:
            return Message(role="assistant", content="done")
        return Message(role="assistant", tool_calls=(ToolRequest(id="call_1", name=TOOL, arguments='{"n": 1}'),))

    return rule


class InstantModel(InprocModel):
    """Takes no time, and keeps nothing: what is measured is the engine's own."""

    def __init__(self, rule: Callable[[AuthContext, ChatRequest], Message]) -> None:
        super().__init__(InprocModelConfig(chat_models=(MODEL,)), rule)
        self._says = rule

    async def chat(self, auth: AuthContext, request: ChatRequest) -> ChatReply:
        message = self._says(auth, request)
        return ChatReply(
            message=message,
            finish_reason="tool_calls" if message.tool_calls else "stop",
            usage=Usage(prompt_tokens=8, completion_tokens=2),
            policy_outcome=PolicyOutcome(decision="allowed"),
            route=Route(backend=MODEL, model=MODEL),
        )


async def _probe(_auth: AuthContext, arguments: dict[str, Json], _key: str) -> Json:
    if TOOL_MS:
        await anyio.sleep(TOOL_MS / 1_000)
    return {"n": arguments["n"]}


PROBE: Final = PythonTool(
    spec=ToolSpec(
        name=TOOL,
        description="Answers at once.",
        input_schema={
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        },
        effect="pure",
    ),
    act=_probe,
)


async def main(env: Environment) -> None:
    configure("stack-a-worker", "INFO")
    clock, metrics = SystemClock(), Metrics()

    def watched(name: str, port: Any) -> Any:  # any port, see `instrument`
        return instrument(name, port, metrics.port_call)

    turns = env.number("BENCH_TOOL_TURNS", 1)
    database = {"dsn": env.secret_file("DATABASE_URL_FILE")}
    choices = {port: Choice(adapter="postgres", config=database) for port in _STORED}
    needs = {port: WORKER_NEEDS[port] for port in _STORED}

    @asynccontextmanager
    async def store_of_leases() -> AsyncIterator[LeaseStore]:
        async with open_ports(choices, {"run_state": needs["run_state"]}, clock=clock, wrap=watched) as apart:
            yield apart["run_state"]

    async with open_ports(choices, needs, clock=clock, wrap=watched) as ports:
        deps = WorkerDeps(
            clock=clock,
            metrics=metrics,
            model=watched("model", InstantModel(tools_then_text(turns))),
            tool=watched("tool", InprocTools([PROBE], clock)),
            **ports,
        )
        worker = Worker(
            deps,
            new_id=lambda: WorkerId(f"wrk_bench_{secrets.token_hex(8)}"),
            concurrency=env.number("WORKER_CONCURRENCY", 32, least=1, most=1_000),
            keep=kept_apart(store_of_leases),
        )
        with anyio.open_signal_receiver(signal.SIGTERM) as ending:
            async with anyio.create_task_group() as group:
                group.start_soon(worker.serve)
                while not worker.holds_lease:  # noqa: ASYNC110 - the worker announces it to nobody
                    await anyio.sleep(0.01)
                # Production's does it when it begins to serve its metrics.
                start_is_over()
                sys.stdout.write(READY + "\n")
                sys.stdout.flush()
                async for _ in ending:
                    break
                await worker.drain(_DRAIN)


if __name__ == "__main__":
    run(main(Environment(os.environ)))
