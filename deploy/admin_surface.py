"""The admin API as one ASGI app, of parts: each brings its routes with their scopes, their documentation and its endpoints.

A route that a part serves and does not declare answers 403, as on every surface. Health and metrics are the surface's own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NoReturn, TypeAlias, cast

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from observability.http import observer
from observability.metrics import Metrics
from ports.auth import TokenVerifier
from ports.context import AuthContext
from ports.errors import NotFound
from ports.http import permissions
from ports.http.edge import Acted, App, Denied, Edge, exchange, no_word, nothing_acted
from ports.http.health import OK, Probe, states_of
from ports.http.limits import COMMON
from ports.http.openapi import Operation, document
from ports.http.routes import LOOPBACK, PUBLIC, Route, RouteTable, public_template
from ports.ids import TenantId, is_tenant_id
from ports.messages import Json
from stack_a.http.bare import BareLitestar

VERSION: Final = "1"

OWN_ROUTES: Final = (
    permissions.ROUTE,
    Route(method="GET", template="/healthz", access=PUBLIC),
    Route(method="GET", template="/readyz", access=PUBLIC),
    Route(method="GET", template="/openapi.json", access=PUBLIC),
    Route(method="GET", template="/metrics", access=LOOPBACK),
)


Asked: TypeAlias = Request[Any, Any, Any]  # Litestar's user, auth and state: the edge's exchange has them instead


class Part(Struct, frozen=True, kw_only=True):
    """What one area brings to the surface."""

    routes: tuple[Route, ...]
    operations: Mapping[tuple[str, str], Operation]
    limits: Mapping[str, int]
    handlers: Sequence[HTTPRouteHandler]


class Health(Struct, frozen=True, kw_only=True):
    status: Literal["ok"] = "ok"


class Readiness(Struct, frozen=True, kw_only=True):
    status: Literal["ok", "unavailable"]
    dependencies: dict[str, str]
    """`ok`, or why not, by dependency."""


OWN_OPERATIONS: Final = {
    ("GET", permissions.PATH): permissions.OPERATION,
    ("GET", "/healthz"): Operation(summary="Whether the process lives", tag="operation", response=Health),
    ("GET", "/readyz"): Operation(
        summary="Whether it can serve, and if not, which dependency is missing (503)",
        tag="operation",
        response=Readiness,
    ),
    ("GET", "/openapi.json"): Operation(summary="This document", tag="operation", response=dict[str, Json]),
    ("GET", "/metrics"): Operation(
        summary="Prometheus metrics; from this machine only", tag="operation", media_type="text/plain"
    ),
}


def create_admin_app(
    parts: Sequence[Part],
    *,
    verifier: TokenVerifier,
    metrics: Metrics,
    probes: Mapping[str, Probe],
    denied: Denied = no_word,
    acted: Acted = nothing_acted,
) -> App:
    """`denied` is told of known callers who may not, `acted` of those who act for another tenant, before they do."""
    table = RouteTable((*(route for part in parts for route in part.routes), *OWN_ROUTES))
    operations = {key: one for part in parts for key, one in part.operations.items()}
    openapi = document(
        title="AgentOS administration",
        description=(
            "For those who run the node. Every operation names the scope it needs. `tenant_id` of an answer is the tenant "
            "that it is about, and yours where it is about none in particular."
        ),
        version=VERSION,
        routes=table,
        operations=operations | OWN_OPERATIONS,
        limits={
            **COMMON,
            **{name: most for part in parts for name, most in part.limits.items()},
        },
    )
    app = BareLitestar(
        route_handlers=[
            *(handler for part in parts for handler in part.handlers),
            *_own_handlers(metrics, probes, msgspec.json.encode(openapi)),
            _my_permissions(table),
        ],
        # The edge answers every error, in one form.
        exception_handlers={Exception: _raise},
        openapi_config=None,
        logging_config=None,
    )
    return Edge(
        cast(App, app),
        routes=table.with_denied(_served(app)),
        verifier=verifier,
        observe=observer(metrics),
        denied=denied,
        denied_inside=denied,
        acted=acted,
    )


def _own_handlers(metrics: Metrics, probes: Mapping[str, Probe], openapi: bytes) -> list[HTTPRouteHandler]:
    @get("/healthz")
    async def healthz() -> Response[bytes]:
        return json_answer(Health())

    @get("/readyz")
    async def readyz() -> Response[bytes]:
        states = await states_of(probes)
        ready = all(state == OK for state in states.values())
        view = Readiness(status=OK if ready else "unavailable", dependencies=states)
        return json_answer(view, status=200 if ready else 503)

    @get("/openapi.json")
    async def openapi_json() -> Response[bytes]:
        return Response(openapi, media_type="application/json")

    @get("/metrics")
    async def metrics_text() -> Response[bytes]:
        return Response(metrics.render(), media_type=metrics.content_type)

    return [healthz, readyz, openapi_json, metrics_text]


def _my_permissions(table: RouteTable) -> HTTPRouteHandler:
    @get(permissions.PATH)
    async def answer(request: Asked) -> Response[bytes]:
        return json_answer(permissions.permissions_of(identity_of(request), table.routes))

    return answer


def json_answer(view: Struct, *, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(view), media_type="application/json", status_code=status)


def whose(auth: AuthContext, tenant: TenantId | None = None) -> dict[str, Any]:
    """What every view of the admin API has besides its own members. `tenant`: whose affairs it tells; else the caller's."""
    return {"tenant_id": tenant or auth.tenant, "correlation_id": auth.trace.correlation_id}


def tenant_named(text: str) -> TenantId:
    """A tenant's id from a path or a body; raises `NotFound` for what can't be one."""
    if not is_tenant_id(text):
        raise NotFound(f"there is no tenant {text[:64]!r}")
    return TenantId(text)


def _served(app: Litestar) -> list[tuple[str, str]]:
    return [
        (method, public_template(route.path_format))
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method != "OPTIONS"
    ]


def _raise(_: Request[Any, Any, Any], error: Exception) -> NoReturn:
    raise error


def identity_of(request: Asked) -> AuthContext:
    return exchange(request.scope).identity
