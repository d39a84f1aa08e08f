"""Composition root of Stack A's worker: `python -m deploy.roots.stack_a_worker`."""

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, cast, get_args

import anyio

from adapters.system_clock import SystemClock
from deploy.roots.environment import Environment
from deploy.roots.server import run, serve
from deploy.roots.tools import egress_of_a_node, tools_of_a_node
from deploy.roots.wiring import Choice, choices_from, open_ports
from observability.egress import WatchedEgress
from observability.instrument import instrument
from observability.logs import configure
from observability.metrics import Metrics
from ports.errors import InvalidArgument, Unavailable
from ports.ids import WorkerId
from ports.maintenance import MIN_RETENTION
from stack_a.app import create_worker_app
from stack_a.deps import UPKEEP_NEEDS, WORKER_NEEDS, WorkerDeps
from stack_a.hints import Ack
from stack_a.lease import LeaseStore, kept_apart
from stack_a.upkeep import Upkeep
from stack_a.worker import Worker

DRAIN: Final = timedelta(seconds=15)
"""For runs in hand after SIGTERM; what is not done by then goes back to other workers."""


def defaults(env: Environment) -> dict[str, Choice]:
    """The adapters of a node, unless `AGENTOS_ADAPTERS` says otherwise."""
    database = {"dsn": env.secret_file("DATABASE_URL_FILE")}
    issuer = {"issuer": env.required("ISSUER"), "private_key_file": env.required("ISSUER_KEY_FILE")}
    return {
        **{
            port: Choice(adapter="postgres", config=database)
            for port in ("run_state", "queue", "agent", "memory", "maintenance", "tenant")
        },
        "issuer": Choice(adapter="tokens", config=issuer),
        "model": Choice(adapter="stack_b", config={"base_url": env.required("STACK_B_URL")}),
        "egress": egress_of_a_node(env.text("EGRESS")),
        "tool": tools_of_a_node(env.text("TOOLS_FILE")),
    }


def ack_of(text: str) -> Ack:
    """Raises `InvalidArgument` for anything but the two words."""
    for known in get_args(Ack):
        if text == known:
            return cast("Ack", known)
    raise InvalidArgument(f"AGENTOS_QUEUE_ACK is {text!r}; it may be {' or '.join(get_args(Ack))}")


async def main(variables: Mapping[str, str]) -> None:
    env = Environment(variables)
    configure("stack-a-worker", env.text("LOG_LEVEL", "INFO"))
    clock, metrics = SystemClock(), Metrics()

    def watched(name: str, port: Any) -> Any:  # any port, see `instrument`
        told = WatchedEgress(port, metrics.egress_denial) if name == "egress" else port
        return instrument(name, told, metrics.port_call)

    choices = choices_from(env.text("ADAPTERS"), defaults(env))
    retention = timedelta(days=env.number("RETENTION_DAYS", 90, least=MIN_RETENTION.days, most=3_650))

    @asynccontextmanager
    async def store_of_leases() -> AsyncIterator[LeaseStore]:
        # Once more, in the thread that keeps the lease: connections belong to one event loop.
        needs = {"run_state": WORKER_NEEDS["run_state"]}
        async with open_ports(choices, needs, clock=clock, wrap=watched) as apart:
            yield apart["run_state"]

    async with open_ports(choices, {**WORKER_NEEDS, **UPKEEP_NEEDS}, clock=clock, wrap=watched) as ports:
        upkeep = Upkeep(ports.pop("maintenance"), clock, retention=retention)
        worker = Worker(
            WorkerDeps(clock=clock, metrics=metrics, **ports),
            new_id=lambda: WorkerId(f"wrk_{secrets.token_hex(8)}"),
            concurrency=env.number("WORKER_CONCURRENCY", 32, least=1, most=1_000),
            keep=kept_apart(store_of_leases),
            ack=ack_of(env.text("QUEUE_ACK", "accept")),
        )

        async def holds_lease() -> None:
            if not worker.holds_lease:
                raise Unavailable("the worker holds no live lease")

        app = create_worker_app({"lease": holds_lease}, metrics)
        host, port = env.text("WORKER_HOST", "127.0.0.1"), env.number("WORKER_PORT", 8082, least=1, most=65_535)
        async with anyio.create_task_group() as group:
            group.start_soon(worker.serve)
            async with anyio.create_task_group() as beside:
                beside.start_soon(upkeep.serve)
                await serve(app, host=host, port=port)
                beside.cancel_scope.cancel()
            await worker.drain(DRAIN)


if __name__ == "__main__":
    run(main(os.environ))
