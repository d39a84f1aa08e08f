"""The part of the admin surface with which a tenant looks after its own API keys. Scope `admin:tenant`.

It knows no tenant but the caller's, and of it the caller's namespace: whatever else there is, is absent. Nobody hands out
more than they may do themselves, by a new key or by a successor of one that may more. Whoever acts for the tenant from
elsewhere does none of this: a key would outlast the permission to act.
"""

from collections.abc import Mapping
from typing import Final

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery

from adapters.token_auth import keys
from deploy.admin_surface import Asked, Part, identity_of, json_answer, whose
from deploy.administration import identity_wire as wire
from deploy.administration.identity import Limit, Made, asked_by, granted, key_named, new_key, shown, successor
from deploy.administration.identity_routes import ONCE, PAGES
from deploy.administration.routes import DEFAULT_PAGE, template
from ports.context import ADMIN_PLATFORM, TENANT_ACT_AS, AuthContext, PolicyContext
from ports.errors import NotFound, PermissionDenied
from ports.http.edge import decoded, exchange
from ports.http.openapi import Operation
from ports.http.routes import Route
from ports.ids import KeyId
from ports.tenant import MAX_KEYS, ApiKey, TenantDirectory

SCOPE: Final = "admin:tenant"
NEVER: Final = frozenset({ADMIN_PLATFORM, TENANT_ACT_AS})
"""What no tenant hands out, whoever asks: the platform gives it, by name."""

KEYS: Final = "/v1/admin/keys"
KEY: Final = KEYS + "/{key_id:str}"
ROTATE: Final = template(KEY) + ":rotate"
REVOKE: Final = template(KEY) + ":revoke"

ROUTES: Final = (
    Route(method="GET", template=KEYS, access=SCOPE, query=("limit", "cursor")),
    Route(method="POST", template=KEYS, access=SCOPE, mutation=True, query=()),
    Route(method="POST", template=ROTATE, access=SCOPE, mutation=True, query=()),
    Route(method="POST", template=REVOKE, access=SCOPE, mutation=True, query=()),
)
LIMITS: Final[Mapping[str, int]] = {"max_keys_in_force": MAX_KEYS}

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("GET", KEYS): Operation(
        summary="The API keys of your tenant and namespace, without their secrets",
        tag="own keys",
        response=wire.KeyPage,
        parameters=PAGES,
    ),
    ("POST", KEYS): Operation(
        summary="Issue an API key of your tenant",
        description=f"In your namespace, with no scope that you don't have (`details.required_scope`). {ONCE}",
        tag="own keys",
        request=wire.IssueOwnKey,
        response=wire.IssuedKey,
        status=201,
        codes=("conflict", "too_many_keys"),
    ),
    ("POST", ROTATE): Operation(
        summary="Make a key's successor, and end the key after a grace",
        description=f"Of a key that may no more than you. {ONCE} The body may be left out.",
        tag="own keys",
        request=wire.RotateKey,
        request_optional=True,
        response=wire.IssuedKey,
        status=201,
        codes=("not_found", "conflict", "too_many_keys"),
    ),
    ("POST", REVOKE): Operation(
        summary="End a key; it is refused within 5 s",
        description="A key that has ended already stays so. The body may be left out.",
        tag="own keys",
        request=wire.RevokeKey,
        request_optional=True,
        response=wire.Revoked,
        codes=("not_found",),
    ),
}


def part(tenants: TenantDirectory, *, env: str) -> Part:
    """`env` is in a key's prefix: where it is valid, for people."""
    return Part(routes=ROUTES, operations=OPERATIONS, limits=LIMITS, handlers=_handlers(tenants, env, Made()))


def check_own(auth: AuthContext) -> None:
    """Raise `PermissionDenied` unless the caller is one of the tenant's own."""
    if auth.home is not None:
        raise PermissionDenied(
            f"{auth.principal!r} acts for {auth.tenant}, whose keys are its own affair; ask one of its administrators"
        )
    if auth.policy != PolicyContext():
        raise PermissionDenied(
            "your credential bounds where data may go, and a key would not be bound so; ask the operator of this node"
        )


def check_handed_out(auth: AuthContext, scopes: frozenset[str]) -> None:
    """Raise `PermissionDenied` where somebody would hand out more than they may do."""
    if beyond := sorted(scopes - (auth.scopes - NEVER)):
        raise PermissionDenied(
            f"nobody hands out what they may not do themselves: {beyond[0]!r}", details={"required_scope": beyond[0]}
        )


def _handlers(tenants: TenantDirectory, env: str, made: Made) -> list[HTTPRouteHandler]:
    @get(KEYS)
    async def list_own(
        request: Asked, limit: Limit = DEFAULT_PAGE, cursor: FromQuery[str | None] = None
    ) -> Response[bytes]:
        auth = _own(request)
        page = await tenants.list_keys(auth, limit=limit, cursor=cursor, namespace=auth.namespace)
        lines = tuple(wire.key_line(key) for key in page.items)
        return json_answer(wire.KeyPage(items=lines, next_cursor=page.next_cursor, **whose(auth)))

    @post(KEYS, status_code=201)
    async def issue_own(request: Asked) -> Response[bytes]:
        auth, body = _own(request), decoded(exchange(request.scope).json, wire.IssueOwnKey)
        scopes = granted(body.role, body.scopes)
        check_handed_out(auth, scopes)
        secret = keys.new_secret()
        new = new_key(body, scopes, secret)
        key = await made.once(auth, asked_by(request), lambda: tenants.issue_key(auth, new))
        return shown(env, auth, key, secret)

    @post(KEY + "/:rotate", status_code=201)
    async def rotate_own(request: Asked, key_id: FromPath[str]) -> Response[bytes]:
        auth, body = _own(request), decoded(exchange(request.scope).json, wire.RotateKey)
        old = await _key_of(tenants, auth, key_id)
        # Whoever had the secret of a successor would do what the key may.
        check_handed_out(auth, old.scopes)
        secret = keys.new_secret()
        key = await made.once(auth, asked_by(request), lambda: successor(tenants, auth, old.id, body, secret))
        return shown(env, auth, key, secret)

    @post(KEY + "/:revoke", status_code=200)
    async def revoke_own(request: Asked, key_id: FromPath[str]) -> Response[bytes]:
        auth = _own(request)
        decoded(exchange(request.scope).json, wire.RevokeKey)
        key = await _key_of(tenants, auth, key_id)
        await tenants.revoke_key(auth, key.id)
        return json_answer(wire.Revoked(revoked=key.id, **whose(auth)))

    return [list_own, issue_own, rotate_own, revoke_own]


def _own(request: Asked) -> AuthContext:
    auth = identity_of(request)
    check_own(auth)
    return auth


async def _key_of(tenants: TenantDirectory, auth: AuthContext, text: str) -> ApiKey:
    """Of the caller's tenant and namespace; raises `NotFound` for all others, in the same words."""
    key: KeyId = key_named(text)
    absent = NotFound(f"there is no key {text[:64]!r}")
    try:
        found = await tenants.get_key(auth, key)
    except NotFound:
        raise absent from None
    if found.namespace != auth.namespace:
        raise absent
    return found
