"""Liveness, readiness, metrics and the OpenAPI document: the routes that name no tenant."""

from collections.abc import Awaitable, Callable, Mapping

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from observability.metrics import Metrics
from ports.http.health import OK, Probe, states_of
from stack_a.http import wire


async def _nothing() -> None: ...


def health_routes(
    probes: Mapping[str, Probe], metrics: Metrics, *, first: Callable[[], Awaitable[None]] = _nothing
) -> list[HTTPRouteHandler]:
    """`/healthz`, `/readyz` over `probes` by the dependency's name, `/metrics` after `first`, which measures for them."""

    @get("/healthz")
    async def healthz() -> Response[bytes]:
        return wire.json_response(wire.Health(status="ok"))

    @get("/readyz")
    async def readyz() -> Response[bytes]:
        states = await states_of(probes)
        ready = all(state == OK for state in states.values())
        view = wire.Readiness(status=OK if ready else "unavailable", dependencies=states)
        return wire.json_response(view, status=200 if ready else 503)

    @get("/metrics")
    async def exposed() -> Response[bytes]:
        await first()
        return Response(metrics.render(), media_type=metrics.content_type)

    return [healthz, readyz, exposed]
