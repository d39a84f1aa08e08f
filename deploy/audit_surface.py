"""The part of the admin surface that is about the audit: routes, documentation, endpoints.

A tenant's administrator sees their own tenant's; the platform's sees another's by naming it, which that audit then says.
"""

from typing import Annotated, Final, TypeAlias

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter
from msgspec import Struct

from deploy.admin_surface import Asked, Part, identity_of, json_answer
from deploy.audit_check import checked_chains
from ports.audit import MAX_PAGE, MAX_STRETCH, READ, AuditLog, Head, Link
from ports.audit_rules import Verdict
from ports.context import AuthContext
from ports.errors import InvalidArgument, NotFound
from ports.http.audit import DEFAULT_PAGE, DESCRIPTION, PARAMETERS, QUERY, EntryPage, entry_page, wanted_of
from ports.http.openapi import Operation, Parameter
from ports.http.routes import Route
from ports.ids import TenantId, is_tenant_id

ENTRIES: Final = "/v1/admin/audit"
CHAIN: Final = "/v1/admin/audit/chain"
VERIFICATION: Final = "/v1/admin/audit/verification"
DEFAULT_STRETCH: Final = 1_000
MAX_VERIFIED: Final = 100_000
"""Entries that one request has checked; a longer chain is for the command."""

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
Stretch: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_STRETCH)]
After: TypeAlias = Annotated[int, QueryParameter(ge=0, le=2**62)]

ROUTES: Final = (
    Route(method="GET", template=ENTRIES, access=READ, query=(*QUERY, "tenant_id")),
    Route(method="GET", template=CHAIN, access=READ, query=("tenant_id", "home", "after", "limit")),
    Route(method="GET", template=VERIFICATION, access=READ, query=("tenant_id",)),
)

LIMITS: Final = {"max_audit_stretch": MAX_STRETCH, "max_audit_verified": MAX_VERIFIED}

_TAG: Final = "audit"
_WHOSE: Final = Parameter(
    name="tenant_id",
    description="Whose audit; not sent, the caller's. Another's needs `admin:platform`, and that audit notes the look.",
)

_NO_TENANT: Final = ("not_found",)


class ChainView(Struct, frozen=True, kw_only=True):
    items: tuple[Link, ...]
    head: Head
    """The newest number there is, and its hash."""
    tenant_id: str
    correlation_id: str


class VerdictView(Struct, frozen=True, kw_only=True):
    good: bool
    verdict: Verdict
    """Of the first chain that does not hold, or of the tenant's own."""
    homes: tuple[Verdict, ...]
    """Of its chains in homes that it lives or lived in."""
    tenant_id: str
    correlation_id: str


OPERATIONS: Final = {
    ("GET", ENTRIES): Operation(
        summary="What was done and denied in a tenant, newest first",
        description=DESCRIPTION,
        tag=_TAG,
        response=EntryPage,
        parameters=(*PARAMETERS, _WHOSE),
        codes=_NO_TENANT,
    ),
    ("GET", CHAIN): Operation(
        summary="A tenant's chain as it was written, oldest first, to keep or to check elsewhere",
        description=DESCRIPTION,
        tag=_TAG,
        response=ChainView,
        parameters=(
            _WHOSE,
            Parameter(
                name="home",
                description="Which of its chains: that of a home which it lives or lived in; not sent, the node's.",
            ),
            Parameter(
                name="after",
                description="The number behind which it begins.",
                schema={"type": "integer", "minimum": 0, "default": 0},
            ),
            Parameter(
                name="limit",
                description="Items at most.",
                schema={"type": "integer", "minimum": 1, "maximum": MAX_STRETCH, "default": DEFAULT_STRETCH},
            ),
        ),
        codes=_NO_TENANT,
    ),
    ("GET", VERIFICATION): Operation(
        summary="Whether a tenant's chains hold, and if not, the first number that contradicts",
        description=(
            f"Of chains of at most {MAX_VERIFIED:,} entries, against themselves only: the signed heads lie beyond what "
            "this surface can reach, and `agentos audit verify` compares with them."
        ),
        tag=_TAG,
        response=VerdictView,
        parameters=(_WHOSE,),
        codes=_NO_TENANT,
    ),
}


def part(log: AuditLog) -> Part:
    return Part(routes=ROUTES, operations=OPERATIONS, limits=LIMITS, handlers=_handlers(log))


def _handlers(log: AuditLog) -> list[HTTPRouteHandler]:
    @get(ENTRIES)
    async def entries(
        request: Asked,
        limit: Limit = DEFAULT_PAGE,
        cursor: FromQuery[str | None] = None,
        tenant_id: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        auth = identity_of(request)
        tenant = _tenant(tenant_id, auth)
        page = await log.query(auth, tenant, wanted_of(request.query_params), limit=limit, cursor=cursor)
        return json_answer(entry_page(page, tenant, auth))

    @get(CHAIN)
    async def chain(
        request: Asked,
        after: After = 0,
        limit: Stretch = DEFAULT_STRETCH,
        tenant_id: FromQuery[str | None] = None,
        home: FromQuery[str] = "",
    ) -> Response[bytes]:
        auth = identity_of(request)
        tenant = _tenant(tenant_id, auth)
        storage = log.at(home) if home else log
        head = await storage.head(auth, tenant)
        links = await storage.chain(auth, tenant, after=after, limit=limit)
        correlation_id = auth.trace.correlation_id
        return json_answer(ChainView(items=links, head=head, tenant_id=tenant, correlation_id=correlation_id))

    @get(VERIFICATION)
    async def verification(request: Asked, tenant_id: FromQuery[str | None] = None) -> Response[bytes]:
        auth = identity_of(request)
        tenant = _tenant(tenant_id, auth)
        heads = [await storage.head(auth, tenant) for storage in (log, *map(log.at, log.homes))]
        if sum(head.seq for head in heads) > MAX_VERIFIED:
            raise InvalidArgument(
                f"this audit has more than {MAX_VERIFIED:,} entries; check it with: agentos audit verify --tenant {tenant}"
            )
        own, *others = await checked_chains(log, auth, tenant, {})
        view = VerdictView(
            good=all(one.good for one in (own, *others)),
            verdict=next((one for one in (own, *others) if not one.good), own),
            homes=tuple(others),
            tenant_id=tenant,
            correlation_id=auth.trace.correlation_id,
        )
        return json_answer(view)

    return [entries, chain, verification]


def _tenant(sent: str | None, auth: AuthContext) -> TenantId:
    if sent is None:
        return auth.tenant
    if not is_tenant_id(sent):
        raise NotFound("there is no such tenant")
    return TenantId(sent)
