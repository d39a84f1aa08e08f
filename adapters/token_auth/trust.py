"""Whose tokens a node takes beside its own: which issuers, and what their claims mean here. Pure.

An issuer speaks for the tenants that are named here and for no other, its principals have its name in front of theirs, and
none of its tokens does more than its `scopes`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from adapters.token_auth import jwt
from ports.context import DEFAULT_NAMESPACE, SCOPES, AuthContext
from ports.errors import InvalidArgument
from ports.ids import PrincipalId, TenantId, is_tenant_id
from ports.roles import ROLES

MAX_ISSUERS: Final = 64
MAX_GROUPS: Final = 256
"""Roles or scopes that a token may claim."""

Claim: TypeAlias = str | Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
"""Name of a claim, or the names on the way to one inside others."""
Algorithm: TypeAlias = Literal["EdDSA", "ES256", "RS256"]

_URL: Final = re.compile(r"https://[a-z0-9.\[\]:-]+(/[A-Za-z0-9._~/-]*)?")


class TrustedIssuer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9-]{0,31}$")]
    """Principals are called `<name>:<sub>`."""
    issuer: str
    """Exactly the `iss` of its tokens; discovery starts here."""
    jwks_uri: str = ""
    """Of an issuer without discovery."""
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = ("EdDSA", "ES256", "RS256")
    audiences: dict[Literal["stack-a", "stack-b", "admin"], Annotated[str, Meta(min_length=1)]] = {}
    """The `aud` that opens each surface; a surface that isn't named is opened by its own name."""
    tenant: str = ""
    """Of an issuer that speaks for one tenant."""
    tenants: dict[str, str] = {}
    """Of one that speaks for several: tenants by the value of `tenant_claim`."""
    tenant_claim: Claim = "tenant_id"
    namespace: str = DEFAULT_NAMESPACE
    namespace_claim: Claim | None = None
    scope_claim: Claim = "scope"
    roles_claim: Claim | None = None
    roles: dict[str, str] = {}
    """Our roles by theirs. What isn't named means nothing."""
    scopes: tuple[str, ...] = tuple(sorted(ROLES["editor"]))
    """The most that any of its tokens may do."""


class Trusted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    issuers: Annotated[tuple[TrustedIssuer, ...], Meta(max_length=MAX_ISSUERS)] = ()


def read_trusted(data: bytes, *, own: str) -> Mapping[str, TrustedIssuer]:
    """Issuers by their `iss`. `own` is the node's own, which is not among them.

    Raises:
        InvalidArgument: the file can't be used; it says where and why.
    """
    try:
        document = msgspec.convert(jwt.strict_json(data), Trusted)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"the file of issuers is not usable: {error}") from None
    for one in document.issuers:
        if problem := _problem(one, own):
            raise InvalidArgument(f"issuer {one.name!r}: {problem}")
    _check_distinct("name", (one.name for one in document.issuers))
    _check_distinct("issuer", (one.issuer for one in document.issuers))
    return {one.issuer: one for one in document.issuers}


def identity_of(issuer: TrustedIssuer, payload: Mapping[str, Any], *, surface: str, now: float) -> jwt.Verified:
    """Who a token with these claims is, whose signature holds. Raises `Unauthenticated`."""
    claims = jwt.converted(payload, jwt.Timed)
    tenant = issuer.tenant or issuer.tenants.get(_text(payload, issuer.tenant_claim))
    namespace = issuer.namespace
    if issuer.namespace_claim is not None:
        namespace = _text(payload, issuer.namespace_claim)
    principal = f"{issuer.name}:{claims.sub}"
    if (
        not jwt.in_time(claims, now)
        or claims.iss != issuer.issuer
        or claims.aud != issuer.audiences.get(surface, surface)  # type: ignore[call-overload]  # any text may be asked
        or not tenant
        or not jwt.is_namespace(namespace)
        or not all(jwt.is_plain(text) for text in (claims.sub, claims.jti, principal))
    ):
        raise jwt.invalid()
    roles, scopes = _granted(issuer, payload)
    auth = AuthContext(
        tenant=TenantId(tenant), principal=PrincipalId(principal), scopes=scopes, roles=roles, namespace=namespace
    )
    return jwt.Verified(auth=auth, expires_at=claims.exp + jwt.LEEWAY_SECONDS)


def _granted(issuer: TrustedIssuer, payload: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Roles and scopes. A role that reaches beyond what the issuer may give is given as far as it may."""
    most = frozenset(issuer.scopes) & SCOPES
    theirs = () if issuer.roles_claim is None else _words(payload, issuer.roles_claim)
    roles = frozenset(issuer.roles[one] for one in theirs if one in issuer.roles)
    scopes = frozenset(_words(payload, issuer.scope_claim)).union(*(ROLES[role] for role in roles))
    return frozenset(role for role in roles if ROLES[role] <= most), scopes & most


def _problem(one: TrustedIssuer, own: str) -> str:
    tenants = [one.tenant] if one.tenant else list(one.tenants.values())
    if one.issuer == own:
        return "this is the node's own issuer; leave it out"
    for url in (one.issuer, *([one.jwks_uri] if one.jwks_uri else [])):
        if not _URL.fullmatch(url) or not urlsplit(url).hostname:
            return (
                "an issuer and its jwks_uri are https:// and a host in small letters, without query, fragment and user"
            )
    if bool(one.tenant) == bool(one.tenants):
        return "say for whom it speaks: tenant for one, or tenants by the value of tenant_claim"
    if wrong := [tenant for tenant in tenants if not is_tenant_id(tenant)]:
        return f"{wrong[0]!r} can't name a tenant"
    if wrong := sorted(set(one.roles.values()) - ROLES.keys()):
        return f"there is no role {wrong[0]!r}; there are {', '.join(sorted(ROLES))}"
    if wrong := sorted(set(one.scopes) - SCOPES):
        return f"there is no scope {wrong[0]!r}"
    if not jwt.is_namespace(one.namespace):
        return f"{one.namespace!r} can't name a namespace"
    return ""


def _check_distinct(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidArgument(f"two issuers have the {what} {value!r}")
        seen.add(value)


def _found(payload: Mapping[str, Any], claim: Claim) -> Any:
    value: Any = payload
    for name in (claim,) if isinstance(claim, str) else claim:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(payload: Mapping[str, Any], claim: Claim) -> str:
    value = _found(payload, claim)
    if not isinstance(value, str):
        raise jwt.invalid()
    return value


def _words(payload: Mapping[str, Any], claim: Claim) -> tuple[str, ...]:
    """Words of a text, or the texts of a list; none where the claim is missing."""
    value = _found(payload, claim)
    words = value.split() if isinstance(value, str) else [] if value is None else value
    if not isinstance(words, list) or len(words) > MAX_GROUPS or not all(isinstance(word, str) for word in words):
        raise jwt.invalid()
    return tuple(words)
