"""Composition root of Stack A's public API: `python -m deploy.roots.stack_a`."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from adapters.system_clock import SystemClock
from adapters.token_auth.published import PublishedFile
from deploy.roots.databases import database_of
from deploy.roots.environment import Environment
from deploy.roots.server import run, serve
from deploy.roots.tokens import verifier_of_a_node
from deploy.roots.wiring import Choice, choices_from, open_ports
from observability.instrument import instrument
from observability.logs import configure
from observability.metrics import Metrics
from stack_a.app import create_app
from stack_a.deps import API_NEEDS, ApiDeps, Shedding
from stack_a.http.stream import OpenStreams

AUDIENCE = "stack-a"


def defaults(env: Environment) -> dict[str, Choice]:
    """The adapters of a node, unless `AGENTOS_ADAPTERS` says otherwise."""
    database = database_of(env)
    return {
        **{
            port: Choice(adapter="postgres", config=database)
            for port in ("run_state", "event", "queue", "agent", "tenant", "audit")
        },
        **verifier_of_a_node(env, AUDIENCE),
    }


def shedding(env: Environment) -> Shedding:
    return Shedding(
        max_queue_depth=env.number("MAX_QUEUE_DEPTH", 100_000, least=1, most=100_000_000),
        slow_after=timedelta(milliseconds=env.number("SLOW_DATABASE_MS", 1_000, least=10, most=4_000)),
    )


async def main(variables: Mapping[str, str]) -> None:
    env = Environment(variables)
    configure("stack-a", env.text("LOG_LEVEL", "INFO"))
    clock, metrics = SystemClock(), Metrics()

    def watched(name: str, port: Any) -> Any:  # any port, see `instrument`
        return instrument(name, port, metrics.port_call)

    choices = choices_from(env.text("ADAPTERS"), defaults(env))
    async with open_ports(choices, API_NEEDS, clock=clock, wrap=watched) as ports:
        share = env.number("REPLICAS", 1, least=1, most=1_000)
        streams = OpenStreams(share=share)
        published = PublishedFile(Path(env.required("JWKS_FILE")), env.required("ISSUER"), clock)
        deps = ApiDeps(clock=clock, metrics=metrics, shedding=shedding(env), share=share, published=published, **ports)
        app = create_app(deps, streams)
        host, port = env.text("STACK_A_HOST", "127.0.0.1"), env.number("STACK_A_PORT", 8080, least=1, most=65_535)
        # Readers of events resume elsewhere: nobody waits for them.
        await serve(app, host=host, port=port, on_leaving=streams.close, handover=env.path("HANDOVER"))


if __name__ == "__main__":
    run(main(os.environ))
