"""What the caller may do."""

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from ports.http.edge import exchange
from ports.http.permissions import PATH, permissions_of
from ports.http.routes import RouteTable
from stack_a.http import wire
from stack_a.http.given import HttpRequest


def my_permissions(table: RouteTable) -> HTTPRouteHandler:
    @get(PATH)
    async def answer(request: HttpRequest) -> Response[bytes]:
        return wire.json_response(permissions_of(exchange(request.scope).identity, table.routes))

    return answer
