"""What the caller may do, told by the table that the door goes by."""

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from ports.context import SCOPES, AuthContext
from ports.http.edge import exchange
from ports.http.routes import RouteTable
from stack_a.http import wire
from stack_a.http.given import HttpRequest


class RoutePermission(Struct, frozen=True, kw_only=True):
    method: str
    path: str
    required_scope: str
    allowed: bool


class Permissions(Struct, frozen=True, kw_only=True):
    tenant_id: str
    namespace: str
    principal: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    routes: tuple[RoutePermission, ...]
    """Those that need a scope."""
    correlation_id: str


def permissions_of(auth: AuthContext, routes: RouteTable) -> Permissions:
    return Permissions(
        tenant_id=auth.tenant,
        namespace=auth.namespace,
        principal=auth.principal,
        roles=tuple(sorted(auth.roles)),
        scopes=tuple(sorted(auth.scopes)),
        routes=tuple(
            RoutePermission(
                method=route.method,
                path=route.template,
                required_scope=route.access,
                allowed=route.access in auth.scopes,
            )
            for route in routes.routes
            if route.access in SCOPES
        ),
        correlation_id=auth.trace.correlation_id,
    )


def my_permissions(routes: RouteTable) -> HTTPRouteHandler:
    @get("/v1/me/permissions")
    async def answer(request: HttpRequest) -> Response[bytes]:
        return wire.json_response(permissions_of(exchange(request.scope).identity, routes))

    return answer
