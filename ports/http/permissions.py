"""What the caller may do at a surface, told by the table that its door goes by."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ports.context import SCOPES, AuthContext
from ports.http.openapi import Operation
from ports.http.routes import IDENTIFIED, Route

PATH: Final = "/v1/me/permissions"
ROUTE: Final = Route(method="GET", template=PATH, access=IDENTIFIED, query=())


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


def permissions_of(auth: AuthContext, routes: Iterable[Route]) -> Permissions:
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
            for route in routes
            if route.access in SCOPES
        ),
        correlation_id=auth.trace.correlation_id,
    )


OPERATION: Final = Operation(
    summary="What the caller may do here, and which scope each route wants", tag="identity", response=Permissions
)
