"""The part of the admin surface that is about the gateway's configuration: routes, documentation, endpoints."""

import re
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter

from ports.context import ADMIN_PLATFORM
from ports.errors import InvalidArgument, NotFound
from ports.gateway_configuration import MAX_COMMENT_CHARS, MAX_DOCUMENT_BYTES, MAX_PAGE, Version
from ports.http.edge import Exchange, decoded, exchange
from ports.http.openapi import Operation, Parameter
from ports.http.routes import Route
from ports.http.versions import etag, if_match
from stack_b.administration import Administration
from stack_b.diagnosis import MAX_DIAGNOSTICS
from stack_b.http import admin_wire as wire

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]
Asked: TypeAlias = Request[Any, Any, Any]  # Litestar's user, auth and state: the edge's exchange has them instead

CURRENT: Final = "/v1/admin/gateway/configuration"
VERSIONS: Final = "/v1/admin/gateway/configurations"
DEFAULT_PAGE: Final = 50
MAX_BODY_BYTES: Final = MAX_DOCUMENT_BYTES + 64 * 1024

ROUTES: Final = (
    Route(method="GET", template=CURRENT, access=ADMIN_PLATFORM, query=()),
    Route(
        method="PUT",
        template=CURRENT,
        access=ADMIN_PLATFORM,
        mutation=True,
        max_body_bytes=MAX_BODY_BYTES,
        query=("dry_run",),
    ),
    Route(method="GET", template=VERSIONS, access=ADMIN_PLATFORM, query=("limit", "cursor")),
    Route(method="GET", template=VERSIONS + "/{version}", access=ADMIN_PLATFORM, query=()),
    Route(method="POST", template=VERSIONS + "/{version}:activate", access=ADMIN_PLATFORM, mutation=True, query=()),
)

LIMITS: Final = {
    "max_gateway_configuration_bytes": MAX_DOCUMENT_BYTES,
    "max_gateway_configuration_comment": MAX_COMMENT_CHARS,
    "max_gateway_configuration_diagnostics": MAX_DIAGNOSTICS,
    "max_page_size": MAX_PAGE,
    "default_page_size": DEFAULT_PAGE,
}

_TAG: Final = "gateway"
_ETAG: Final = 'The `ETag` of what you changed, such as `"7"`; `*` for whatever is there.'

OPERATIONS: Final = {
    ("GET", CURRENT): Operation(
        summary="The newest configuration of the gateway",
        description="With its `ETag`, which is its number. Version 0 says that nothing is stored.",
        tag=_TAG,
        response=wire.ConfigurationView,
    ),
    ("PUT", CURRENT): Operation(
        summary="Store a configuration of the gateway, which makes it the one in force",
        description=(
            "Gateways follow within seconds, and drop no stream for it. What can't be used is refused whole "
            "(`validation_failed`, with every diagnostic in `details.diagnostics`). `conflict`: somebody else was first; "
            "`details.current` is the newest version. With `dry_run=true` nothing changes, and the answer is what would: "
            "all diagnostics, and the difference from the newest version. Secrets are references, never values."
        ),
        tag=_TAG,
        request=wire.PutBody,
        response=wire.ConfigurationView | wire.PlanView,
        parameters=(
            Parameter(name="If-Match", description=f"{_ETAG} Not needed with `dry_run`.", where="header"),
            Parameter(name="dry_run", description="Change nothing.", schema={"type": "boolean", "default": False}),
        ),
        codes=("conflict",),
    ),
    ("GET", VERSIONS): Operation(
        summary="All versions, newest first, without their documents",
        tag=_TAG,
        response=wire.HistoryPage,
        parameters=(
            Parameter(
                name="limit",
                description="Items on a page.",
                schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
            ),
            Parameter(name="cursor", description="`next_cursor` of the page before."),
        ),
    ),
    ("GET", VERSIONS + "/{version}"): Operation(
        summary="One version", tag=_TAG, response=wire.ConfigurationView, codes=("not_found",)
    ),
    ("POST", VERSIONS + "/{version}:activate"): Operation(
        summary="Go back to a version",
        description=(
            "Adds a version that says what this one says; numbers only grow. The body may be left out. `validation_failed` "
            "when what it says can't be used any more."
        ),
        tag=_TAG,
        request=wire.ActivateBody,
        response=wire.ConfigurationView,
        parameters=(Parameter(name="If-Match", description=f"{_ETAG} May be left out.", where="header"),),
        codes=("not_found", "conflict"),
    ),
}

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")


def handlers(administration: Administration, *, overridden_by: str | None = None) -> list[HTTPRouteHandler]:
    """`overridden_by` says what goes before the store on this node, if anything does."""

    def shown(found: Version | None, asked: Exchange, *, newest: bool) -> Response[bytes]:
        view = wire.configuration_view(found, asked.identity, newest=newest, overridden_by=overridden_by)
        return _json(view, version=0 if found is None else found.version)

    @get(CURRENT)
    async def current(request: Asked) -> Response[bytes]:
        asked = exchange(request.scope)
        return shown(await administration.current(asked.identity), asked, newest=True)

    @put(CURRENT)
    async def change(request: Asked) -> Response[bytes]:
        asked = exchange(request.scope)
        body = decoded(asked.json, wire.PutBody)
        if _dry_run(request):
            return _json(wire.plan_view(await administration.plan(asked.identity, body.document), asked.identity))
        made = await administration.put(
            asked.identity,
            body.document,
            comment=body.comment,
            if_match=_if_match(request, required=True),
            key=_key(asked),
        )
        return shown(made, asked, newest=True)

    @get(VERSIONS)
    async def history(
        request: Asked, limit: Limit = DEFAULT_PAGE, cursor: FromQuery[str | None] = None
    ) -> Response[bytes]:
        asked = exchange(request.scope)
        page = await administration.history(asked.identity, limit=limit, cursor=cursor)
        return _json(wire.history_page(page, asked.identity))

    @get(VERSIONS + "/{version:str}")
    async def one(request: Asked, version: FromPath[str]) -> Response[bytes]:
        asked = exchange(request.scope)
        found = await administration.get(asked.identity, _version(version))
        newest = await administration.current(asked.identity)
        return shown(found, asked, newest=newest is not None and newest.version == found.version)

    @post(VERSIONS + "/{version:str}/:activate", status_code=200)
    async def activate(request: Asked, version: FromPath[str]) -> Response[bytes]:
        asked = exchange(request.scope)
        body = decoded(asked.json, wire.ActivateBody)
        made = await administration.restore(
            asked.identity,
            _version(version),
            comment=body.comment,
            if_match=_if_match(request, required=False),
            key=_key(asked),
        )
        return shown(made, asked, newest=True)

    return [current, change, history, one, activate]


def _key(asked: Exchange) -> str:
    assert asked.idempotency_key is not None, "the edge requires one"
    return asked.idempotency_key


def _version(text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise NotFound(f"there is no version {text[:32]!r} of the gateway's configuration")
    return int(text)


def _if_match(request: Asked, *, required: bool) -> int | None:
    return if_match(request.headers.get("if-match"), of="the configuration", required=required)


def _dry_run(request: Asked) -> bool:
    sent = request.query_params.get("dry_run", "false")
    if sent not in {"true", "false"}:
        raise InvalidArgument("dry_run is true or false", details={"path": "dry_run"})
    return bool(sent == "true")


def _json(view: Any, *, version: int | None = None) -> Response[bytes]:
    headers = {} if version is None else {"etag": etag(version)}
    return Response(msgspec.json.encode(view), media_type="application/json", headers=headers)
