"""The part of the admin surface that is about principals and keys. Platform only; what it does is in the tenant's audit."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeAlias

import msgspec
from litestar import Response, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter

from adapters.token_auth import keys
from adapters.token_auth.jwt import is_namespace
from deploy.admin_surface import Asked, Part, identity_of, json_answer, tenant_named, whose
from deploy.administration import identity_wire as wire
from deploy.administration.identity_routes import (
    ACTING,
    KEY,
    KEYS,
    LIMITS,
    OPERATIONS,
    PRINCIPALS,
    ROUTES,
)
from deploy.administration.routes import DEFAULT_PAGE
from deploy.principal_names import CHARACTERS, OWN_CHARACTERS, is_name, is_own_name
from ports.context import SCOPES, AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound
from ports.http.edge import decoded, exchange
from ports.ids import KeyId, PrincipalId, TenantId, is_tenant_id, uuid_of
from ports.roles import scopes_of
from ports.run_state import MAX_PAGE
from ports.tenant import ApiKey, NewKey, TenantDirectory

Limit: TypeAlias = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]

_MAX_MADE: Final = 4_096


class Made:
    """Which key came of which request, as long as this process lives: a repeat makes no second one."""

    def __init__(self) -> None:
        self._made: dict[tuple[TenantId, PrincipalId, str], KeyId] = {}
        self._alone = asyncio.Lock()

    async def once(self, auth: AuthContext, request: str, make: Callable[[], Awaitable[ApiKey]]) -> ApiKey:
        """What `make` makes. Of two at once with one request's key, the second finds what the first made.

        Raises:
            Conflict: this request has made a key; besides what `make` raises.
        """
        async with self._alone:
            self._check(auth, request)
            key = await make()
            self._note(auth, request, key.id)
        return key

    def _check(self, auth: AuthContext, request: str) -> None:
        known = self._made.get((auth.tenant, auth.principal, request))
        if known is not None:
            raise Conflict(
                f"this Idempotency-Key made the key {known}; its secret was shown then", details={"key_id": known}
            )

    def _note(self, auth: AuthContext, request: str, key: KeyId) -> None:
        while len(self._made) >= _MAX_MADE:
            del self._made[next(iter(self._made))]
        self._made[auth.tenant, auth.principal, request] = key


def new_key(body: wire.IssueKey | wire.IssueOwnKey, scopes: frozenset[str], secret: str) -> NewKey:
    """Raises `InvalidArgument` for a principal whose name is not one of the tenant's own."""
    return NewKey(
        principal=own_named(body.principal),
        scopes=scopes,
        roles=frozenset() if body.role is None else frozenset({body.role}),
        label=body.label,
        secret_sha256=keys.digest(secret),
        expires_at=end_of(body.expires_in_days),
    )


async def successor(
    tenants: TenantDirectory, auth: AuthContext, old: KeyId, body: wire.RotateKey, secret: str
) -> ApiKey:
    return await tenants.rotate_key(
        auth,
        old,
        secret_sha256=keys.digest(secret),
        old_until=datetime.now(UTC) + timedelta(minutes=body.grace_minutes),
        expires_at=end_of(body.expires_in_days),
    )


def shown(env: str, auth: AuthContext, key: ApiKey, secret: str) -> Response[bytes]:
    """The only time that its secret is."""
    told = keys.render(env, key.id, secret)
    return json_answer(wire.IssuedKey(key=wire.key_line(key), api_key=told, **whose(auth)), status=201)


def part(tenants: TenantDirectory, *, env: str) -> Part:
    """`env` is in a key's prefix: where it is valid, for people."""
    return Part(
        routes=ROUTES,
        operations=OPERATIONS,
        limits=LIMITS,
        handlers=[*_principals(tenants), *_keys(tenants, env, Made())],
    )


def _principals(tenants: TenantDirectory) -> list[HTTPRouteHandler]:
    @get(PRINCIPALS)
    async def list_principals(
        request: Asked, tenant_id: FromPath[str], limit: Limit = DEFAULT_PAGE, cursor: FromQuery[str | None] = None
    ) -> Response[bytes]:
        _, acting = await _within(tenants, request, tenant_id)
        page = await tenants.list_principals(acting, limit=limit, cursor=cursor)
        return json_answer(wire.PrincipalPage(items=page.items, next_cursor=page.next_cursor, **whose(acting)))

    @put(PRINCIPALS)
    async def put_principal(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        body = decoded(exchange(request.scope).json, wire.PutPrincipal)
        _, acting = await _within(tenants, request, tenant_id)
        roles = None if body.roles is None else frozenset[str](body.roles)
        scopes = None if roles is None else frozenset[str]().union(*map(scopes_of, roles))
        kept = await tenants.put_principal(
            acting, _known(body.principal), status=body.status, roles=roles, scopes=scopes
        )
        return json_answer(wire.PrincipalView(principal=kept, **whose(acting)))

    @get(ACTING)
    async def list_acting(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        auth, acting = await _within(tenants, request, tenant_id)
        found = await tenants.list_acting(auth, acting.tenant)
        return json_answer(wire.ActingList(items=found, **whose(acting)))

    @put(ACTING)
    async def put_acting(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        body = decoded(exchange(request.scope).json, wire.PutActing)
        auth, acting = await _within(tenants, request, tenant_id)
        if not is_tenant_id(body.actor_tenant):
            raise _wrong("$.actor_tenant", "this can't name a tenant")
        actor = TenantId(body.actor_tenant)
        if body.allowed:
            # Whoever gets that name later would find itself let in.
            await tenants.get(auth, actor)
        change = tenants.let_act if body.allowed else tenants.end_acting
        await change(auth, acting.tenant, actor_tenant=actor, principal=_named(body.principal))
        found = await tenants.list_acting(auth, acting.tenant)
        return json_answer(wire.ActingList(items=found, **whose(acting)))

    return [list_principals, put_principal, list_acting, put_acting]


def _keys(tenants: TenantDirectory, env: str, made: Made) -> list[HTTPRouteHandler]:
    @get(KEYS)
    async def list_keys(
        request: Asked, tenant_id: FromPath[str], limit: Limit = DEFAULT_PAGE, cursor: FromQuery[str | None] = None
    ) -> Response[bytes]:
        _, acting = await _within(tenants, request, tenant_id)
        page = await tenants.list_keys(acting, limit=limit, cursor=cursor)
        lines = tuple(wire.key_line(key) for key in page.items)
        return json_answer(wire.KeyPage(items=lines, next_cursor=page.next_cursor, **whose(acting)))

    @post(KEYS, status_code=201)
    async def issue(request: Asked, tenant_id: FromPath[str]) -> Response[bytes]:
        body = decoded(exchange(request.scope).json, wire.IssueKey)
        scopes = granted(body.role, body.scopes)
        if not is_namespace(body.namespace):
            raise _wrong("$.namespace", "write 1 to 64 small letters, digits, - or _")
        secret = keys.new_secret()
        new = new_key(body, scopes, secret)
        auth, acting = await _within(tenants, request, tenant_id)
        acting = msgspec.structs.replace(acting, namespace=body.namespace)
        key = await made.once(auth, asked_by(request), lambda: tenants.issue_key(acting, new))
        return shown(env, acting, key, secret)

    @post(KEY + "/:rotate", status_code=201)
    async def rotate(request: Asked, tenant_id: FromPath[str], key_id: FromPath[str]) -> Response[bytes]:
        body = decoded(exchange(request.scope).json, wire.RotateKey)
        auth, acting = await _within(tenants, request, tenant_id)
        old, secret = key_named(key_id), keys.new_secret()
        key = await made.once(auth, asked_by(request), lambda: successor(tenants, acting, old, body, secret))
        return shown(env, acting, key, secret)

    @post(KEY + "/:revoke", status_code=200)
    async def revoke(request: Asked, tenant_id: FromPath[str], key_id: FromPath[str]) -> Response[bytes]:
        decoded(exchange(request.scope).json, wire.RevokeKey)
        _, acting = await _within(tenants, request, tenant_id)
        await tenants.revoke_key(acting, key_named(key_id))
        return json_answer(wire.Revoked(revoked=key_id, **whose(acting)))

    return [list_keys, issue, rotate, revoke]


async def _within(tenants: TenantDirectory, request: Asked, text: str) -> tuple[AuthContext, AuthContext]:
    """The caller, and the caller as it changes what is this tenant's. Raises `NotFound` where there is none."""
    auth = identity_of(request)
    tenant = (await tenants.get(auth, tenant_named(text))).id
    home = None if tenant == auth.tenant else auth.tenant
    return auth, msgspec.structs.replace(auth, tenant=tenant, scopes=auth.scopes | {"admin:tenant"}, home=home)


def granted(role: str | None, named: tuple[str, ...]) -> frozenset[str]:
    """What a role, or scopes in place of one, come to."""
    if (role is None) == (not named):
        raise _wrong("$.role", "say a role, or scopes instead of one")
    if unknown := sorted(set(named) - SCOPES):
        raise _wrong("$.scopes", f"there is no scope {unknown[0]!r}")
    return frozenset(named) if role is None else scopes_of(role)


def own_named(text: str) -> PrincipalId:
    if not is_own_name(text):
        raise _wrong("$.principal", f"write {OWN_CHARACTERS}")
    return PrincipalId(text)


def _named(text: str) -> PrincipalId:
    if not is_name(text):
        raise _wrong("$.principal", f"write {CHARACTERS}")
    return PrincipalId(text)


def _known(text: str) -> PrincipalId:
    home, slash, name = text.rpartition("/")
    if slash and not is_tenant_id(home):
        raise _wrong("$.principal", "before a / is the tenant that it belongs to")
    _named(name)
    return PrincipalId(text)


def _wrong(path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: {reason}", code="validation_failed", details={"path": path})


def key_named(text: str) -> KeyId:
    if uuid_of("key", text) is None:
        raise NotFound(f"there is no key {text[:64]!r}")
    return KeyId(text)


def end_of(days: int | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) + timedelta(days=days)


def asked_by(request: Asked) -> str:
    """The repeat of a request has the same key and goes to the same place."""
    return f"{request.scope['path']} {exchange(request.scope).idempotency_key}"
