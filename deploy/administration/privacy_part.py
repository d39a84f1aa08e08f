"""Routes, documentation and endpoints of requests about one's data. Platform only."""

from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

import msgspec
from litestar import Response, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter

from deploy.admin_surface import Asked, identity_of, json_answer, tenant_named, whose
from deploy.administration import privacy_wire as wire
from deploy.administration.platform import Platform
from deploy.administration.privacy import ERASE_CALLS_PER_REQUEST, check_erasing_confirmed, erase_for, export_for
from deploy.administration.routes import TENANT, template
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.http.edge import decoded, exchange
from ports.http.openapi import Operation, Parameter
from ports.http.routes import Route
from ports.ids import PrincipalId, TenantId
from ports.privacy import MAX_HOLDS, MAX_REASON_CHARS, MAX_RETENTION_DAYS, MAX_SUBJECT_CHARS

PRIVACY: Final = TENANT + "/privacy"
EXPORTS: Final = PRIVACY + "/exports"
ERASURES: Final = PRIVACY + "/erasures"
HOLDS: Final = PRIVACY + "/holds"
RELEASE: Final = template(HOLDS) + "/{hold_id}:release"
RETENTION: Final = PRIVACY + "/retention"
MAX_PAGE: Final = 200

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]

ROUTES: Final = (
    Route(method="POST", template=template(EXPORTS), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=template(ERASURES), access=ADMIN_PLATFORM, query=("limit",)),
    Route(method="POST", template=template(ERASURES), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=template(HOLDS), access=ADMIN_PLATFORM, query=()),
    Route(method="POST", template=template(HOLDS), access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="POST", template=RELEASE, access=ADMIN_PLATFORM, mutation=True, query=()),
    Route(method="GET", template=template(RETENTION), access=ADMIN_PLATFORM, query=()),
    Route(method="PATCH", template=template(RETENTION), access=ADMIN_PLATFORM, mutation=True, query=()),
)

LIMITS: Final[Mapping[str, int]] = {
    "max_subject": MAX_SUBJECT_CHARS,
    "max_hold_reason": MAX_REASON_CHARS,
    "max_holds": MAX_HOLDS,
    "max_retention_days": MAX_RETENTION_DAYS,
    "max_batches_per_erasing_request": ERASE_CALLS_PER_REQUEST,
}

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("POST", template(EXPORTS)): Operation(
        summary="Write all that is kept of a principal to a file on the node",
        description="The file has the form of a tenant's export. The tenant's audit says that it was made.",
        tag="privacy",
        request=wire.CreateExport,
        response=wire.SubjectExport,
        status=201,
        codes=("not_found",),
    ),
    ("GET", template(ERASURES)): Operation(
        summary="What was erased, and is being: those that are not done, then the newest",
        tag="privacy",
        response=wire.ErasureList,
        parameters=(
            Parameter(
                name="limit",
                description="How many.",
                schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": MAX_PAGE},
            ),
        ),
        codes=("not_found",),
    ),
    ("POST", template(ERASURES)): Operation(
        summary="Bar a principal, and remove all that is kept of it for good",
        description=(
            "Answers 202 with `erasing` while there is more: send it again until it is 200. What is held is a "
            "`legal_hold`, runs that have not ended are `runs_open`. Requests and usage still count, and are "
            "nobody's; of the audit's entries numbers and hashes stay."
        ),
        tag="privacy",
        request=wire.Erase,
        response=wire.ErasureView,
        codes=("not_found", "legal_hold", "runs_open"),
    ),
    ("GET", template(HOLDS)): Operation(
        summary="The legal holds in force, the oldest first",
        tag="privacy",
        response=wire.HoldList,
        codes=("not_found",),
    ),
    ("POST", template(HOLDS)): Operation(
        summary="Keep all of a principal, or of the tenant, until it is released",
        description=(
            "Neither erasing nor retention removes what is held. Sent again with its key it is one hold; when that was "
            "released since, `hold_released`, with its `hold_id`: nothing is held."
        ),
        tag="privacy",
        request=wire.PlaceHold,
        response=wire.HoldView,
        status=201,
        codes=("not_found", "too_many_holds", "hold_released", "idempotency_key_reused"),
    ),
    ("POST", RELEASE): Operation(
        summary="Release a legal hold", tag="privacy", response=wire.HoldView, codes=("not_found",)
    ),
    ("GET", template(RETENTION)): Operation(
        summary="For how long the tenant keeps what", tag="privacy", response=wire.RetentionView, codes=("not_found",)
    ),
    ("PATCH", template(RETENTION)): Operation(
        summary="Keep classes of data for less time than the node does",
        tag="privacy",
        request=wire.PatchRetention,
        response=wire.RetentionView,
        codes=("not_found",),
    ),
}


def handlers(platform: Platform) -> list[HTTPRouteHandler]:
    @post(EXPORTS, status_code=201)
    async def export(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.CreateExport)
        tenant = tenant_named(tenant_id)
        made = await export_for(
            auth,
            tenant,
            PrincipalId(body.subject),
            tenants=platform.tenants,
            audit=platform.audit,
            export=platform.export_subject,
        )
        view = wire.SubjectExport(
            subject=body.subject,
            export_file=made.path,
            export_sha256=made.sha256,
            export_rows=made.manifest.rows,
            **whose(auth, tenant),
        )
        return json_answer(view, status=201)

    @get(ERASURES)
    async def erasures(request: Asked, tenant_id: FromPath[str], limit: Limit = MAX_PAGE) -> Response[bytes]:
        auth, tenant = identity_of(request), tenant_named(tenant_id)
        found = await platform.privacy.erasures(auth, tenant, limit=limit)
        return json_answer(wire.ErasureList(items=tuple(map(wire.erasure_line, found)), **whose(auth, tenant)))

    @post(ERASURES, status_code=200)
    async def erase(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.Erase)
        check_erasing_confirmed(body.subject, body.confirm)
        tenant = tenant_named(tenant_id)
        erasure = await erase_for(
            auth,
            tenant,
            PrincipalId(body.subject),
            privacy=platform.privacy,
            calls=ERASE_CALLS_PER_REQUEST,
        )
        view = wire.ErasureView(**msgspec.structs.asdict(wire.erasure_line(erasure)), **whose(auth, tenant))
        return json_answer(view, status=200 if erasure.done else 202)

    @get(HOLDS)
    async def holds(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth, tenant = identity_of(request), tenant_named(tenant_id)
        found = await platform.privacy.holds(auth, tenant)
        return json_answer(wire.HoldList(items=tuple(map(wire.hold_line, found)), **whose(auth, tenant)))

    @post(HOLDS, status_code=201)
    async def hold(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.PlaceHold)
        tenant, subject = tenant_named(tenant_id), None if body.subject is None else PrincipalId(body.subject)
        asked = exchange(request.scope).idempotency_key or ""
        placed = await platform.privacy.hold(auth, tenant, subject, reason=body.reason, request=asked)
        view = wire.HoldView(**msgspec.structs.asdict(wire.hold_line(placed)), **whose(auth, tenant))
        return json_answer(view, status=201)

    @post(HOLDS + "/{hold_id:str}/:release", status_code=200)
    async def release(request: Asked, tenant_id: FromPath[str], hold_id: FromPath[str]) -> Response[bytes]:
        auth, tenant = identity_of(request), tenant_named(tenant_id)
        released = await platform.privacy.release(auth, tenant, hold_id)
        return json_answer(wire.HoldView(**msgspec.structs.asdict(wire.hold_line(released)), **whose(auth, tenant)))

    @get(RETENTION)
    async def retention(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth = identity_of(request)
        return await _rules(platform, auth, tenant_named(tenant_id))

    @patch(RETENTION)
    async def retain(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth, body = identity_of(request), decoded(exchange(request.scope).json, wire.PatchRetention)
        await platform.privacy.retain(auth, tenant_named(tenant_id), body.days)
        return await _rules(platform, auth, tenant_named(tenant_id))

    return [export, erasures, erase, holds, hold, release, retention, retain]


async def _rules(platform: Platform, auth: AuthContext, tenant: TenantId) -> Response[bytes]:
    return json_answer(wire.RetentionView(days=await platform.privacy.retention(auth, tenant), **whose(auth, tenant)))
