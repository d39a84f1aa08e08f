"""Stack A's API as in production, but who calls is whoever the token says: `python -m tests.bench.events_server <port>`.

A token is `<tenant>/<principal>`: streams are capped per principal and per tenant, and a bench opens more.
"""

import os
import sys
from typing import Any, Final

from adapters.system_clock import SystemClock
from deploy.roots.environment import Environment
from deploy.roots.server import run, serve
from deploy.roots.wiring import Choice, open_ports
from observability.instrument import instrument
from observability.logs import configure
from observability.metrics import Metrics
from ports.auth import mismatch
from ports.context import AuthContext
from ports.ids import PrincipalId, TenantId
from stack_a.app import create_app
from stack_a.deps import API_NEEDS, ApiDeps
from stack_a.http.stream import OpenStreams

_STORED: Final = ("run_state", "event", "queue", "agent", "audit")


class Believing:
    """Satisfies `TokenVerifier`."""

    async def verify(self, token: str) -> AuthContext:
        return identity(token)

    async def act_as(self, _: str, __: str, /) -> AuthContext:
        raise mismatch()


def identity(token: str) -> AuthContext:
    tenant, _, principal = token.partition("/")
    scopes = frozenset({"runs:create", "runs:read", "tools:invoke", "models:invoke"})
    return AuthContext(tenant=TenantId(tenant), principal=PrincipalId(principal), scopes=scopes)


async def main(env: Environment, port: int) -> None:
    configure("stack-a", "WARNING")
    clock, metrics = SystemClock(), Metrics()

    def watched(name: str, port: Any) -> Any:  # any port, see `instrument`
        return instrument(name, port, metrics.port_call)

    database = {"dsn": env.secret_file("DATABASE_URL_FILE")}
    choices = {port: Choice(adapter="postgres", config=database) for port in _STORED}
    needs = {port: API_NEEDS[port] for port in _STORED}
    async with open_ports(choices, needs, clock=clock, wrap=watched) as ports:
        streams = OpenStreams()
        app = create_app(ApiDeps(clock=clock, metrics=metrics, verifier=Believing(), **ports), streams)
        await serve(app, host="127.0.0.1", port=port, on_leaving=streams.close)


if __name__ == "__main__":
    run(main(Environment(os.environ), int(sys.argv[1])))
