"""What others verify this node's tokens by."""

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from ports.auth import PublishedKeys
from ports.errors import NotFound
from stack_a.http.routes import DISCOVERY, JWKS


def issuer_routes(published: PublishedKeys | None) -> list[HTTPRouteHandler]:
    @get(JWKS)
    async def jwks() -> Response[bytes]:
        if published is None:
            raise NotFound("this node publishes no keys")
        return Response(published.jwks(), media_type="application/json")

    @get(DISCOVERY)
    async def discovery() -> Response[bytes]:
        document = None if published is None else published.discovery()
        if document is None:
            raise NotFound("this node's issuer is not called by a URL; its operator sets AGENTOS_ISSUER to one")
        return Response(document, media_type="application/json")

    return [jwks, discovery]
