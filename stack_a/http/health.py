"""Liveness, readiness, metrics and the OpenAPI document: the routes that name no tenant."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import anyio
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from observability.metrics import Metrics
from ports.errors import AgentOSError
from stack_a.http import wire

Probe: TypeAlias = Callable[[], Awaitable[object]]
"""Asks one dependency for something cheap; raises when it does not answer."""

PROBE_SECONDS: Final = 2.0


def health_routes(probes: Mapping[str, Probe], metrics: Metrics) -> list[HTTPRouteHandler]:
    """`/healthz`, `/readyz` over `probes` by the dependency's name, `/metrics`."""

    @get("/healthz")
    async def healthz() -> Response[bytes]:
        return wire.json_response(wire.Health(status="ok"))

    @get("/readyz")
    async def readyz() -> Response[bytes]:
        states: dict[str, str] = {}

        async def ask(name: str, probe: Probe) -> None:
            states[name] = await _state(probe)

        async with anyio.create_task_group() as group:
            for name, probe in probes.items():
                group.start_soon(ask, name, probe)
        ready = all(state == "ok" for state in states.values())
        view = wire.Readiness(status="ok" if ready else "unavailable", dependencies=dict(sorted(states.items())))
        return wire.json_response(view, status=200 if ready else 503)

    @get("/metrics")
    async def exposed() -> Response[bytes]:
        return Response(metrics.render(), media_type=metrics.content_type)

    return [healthz, readyz, exposed]


async def _state(probe: Probe) -> str:
    try:
        with anyio.fail_after(PROBE_SECONDS):
            await probe()
    except TimeoutError:
        return f"no answer within {PROBE_SECONDS:g} s"
    except AgentOSError as error:
        return error.code
    return "ok"
