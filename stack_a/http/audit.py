"""The caller's tenant's audit."""

from litestar import Response, get

from ports.http.audit import DEFAULT_PAGE, OWN, entry_page, wanted_of
from ports.http.edge import exchange
from stack_a.http import wire
from stack_a.http.given import Deps, HttpRequest, Limit, QueryText


@get(OWN)
async def query_audit(
    request: HttpRequest, deps: Deps, limit: Limit = DEFAULT_PAGE, cursor: QueryText = None
) -> Response[bytes]:
    auth = exchange(request.scope).identity
    wanted = wanted_of(request.query_params)
    page = await deps.audit.query(auth, auth.tenant, wanted, limit=limit, cursor=cursor)
    return wire.json_response(entry_page(page, auth.tenant, auth))
