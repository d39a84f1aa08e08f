"""Signed access tokens (RFC 9068), read strictly.

PyJWT checks the signature, and nothing else: left to itself it accepts a token without `exp`, an `exp` in quotes, any
issuer and any type, and the last of two equal claims. The claims are read here, into a Struct that has the types.
Whatever is wrong, the caller learns that the token is not valid, and not why.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import jwt
import msgspec
from msgspec import Struct

from ports.context import DEFAULT_NAMESPACE, SCOPES, AuthContext, PolicyContext
from ports.errors import Unauthenticated
from ports.ids import NodeId, PrincipalId, TenantId, is_tenant_id

TYPE: Final = "at+jwt"
LEEWAY_SECONDS: Final = 60
MAX_LIFETIME_SECONDS: Final = 3_600

_ALGORITHMS: Final = frozenset({"EdDSA", "ES256", "RS256"})
_MIN_RSA_BITS: Final = 2_048
_MAX_RSA_BITS: Final = 8_192
_MAX_TEXT: Final = 255
_PARTS: Final = 3
_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

Keys = Mapping[str, jwt.PyJWK]
"""Verification keys by `kid`."""

ClaimsT = TypeVar("ClaimsT", bound=Struct)


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The members we understand. A header that names a key's whereabouts (`jku`, `x5u`, `jwk`) or demands extensions
    (`crit`) is refused by being unknown."""

    alg: str
    kid: str
    typ: str
    x5t: str | None = None
    x5t_s256: str | None = msgspec.field(default=None, name="x5t#S256")


class Timed(Struct, frozen=True, kw_only=True):
    """The claims that every issuer's tokens must have."""

    iss: str
    aud: str
    sub: str
    exp: int
    iat: int
    jti: str
    nbf: int | None = None


class Claims(Timed, frozen=True, kw_only=True):
    """The claims of our own issuer that we act on. Others are ignored."""

    tenant_id: str
    scope: str
    home: str | None = None
    """Of who acts for `tenant_id`: the tenant it belongs to, which its name begins with."""
    namespace: str = DEFAULT_NAMESPACE
    roles: tuple[str, ...] = ()
    policy: PolicyContext = PolicyContext()
    via: tuple[NodeId, ...] = ()


class Verified(Struct, frozen=True, kw_only=True):
    """A token whose signature and claims hold; whether its tenant is active is another question."""

    auth: AuthContext
    expires_at: int
    """Unix seconds, leeway included."""


class Presented(Struct, frozen=True, kw_only=True):
    """A token taken apart. Nothing in it is true yet."""

    token: str
    kid: str
    issuer: str
    payload: dict[str, Any]


def invalid() -> Unauthenticated:
    return Unauthenticated("the token is not valid; get a new one and send it as 'Authorization: Bearer …'")


def verify(
    presented: Presented, *, find_key: Callable[[str], jwt.PyJWK | None], issuer: str, audience: str, now: float
) -> Verified:
    """Who a token of our own issuer is, by the key that `find_key` has for its `kid`.

    Raises:
        Unauthenticated: for every fault, with the same words.
    """
    check_signature(presented, find_key(presented.kid))
    claims = converted(presented.payload, Claims)
    if not acceptable(claims, issuer=issuer, audience=audience, now=now):
        raise invalid()
    return Verified(auth=_context(claims), expires_at=claims.exp + LEEWAY_SECONDS)


def present(token: str) -> Presented:
    """`token` taken apart. Raises `Unauthenticated` where its form is wrong already."""
    try:
        header = msgspec.convert(strict_json(_part(token, 0)), Header)
        payload = strict_json(_part(token, 1))
    except (jwt.PyJWTError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise invalid() from error
    issuer = payload.get("iss")
    if header.typ.lower() not in (TYPE, f"application/{TYPE}") or not isinstance(issuer, str):
        raise invalid()
    return Presented(token=token, kid=header.kid, issuer=issuer, payload=payload)


def check_signature(presented: Presented, key: jwt.PyJWK | None) -> None:
    """Raises `Unauthenticated` unless `key` made the signature, by the one algorithm that it is for."""
    if key is None:
        raise invalid()
    try:
        jwt.api_jws.PyJWS(algorithms=[key.algorithm_name]).decode_complete(
            presented.token, key, algorithms=[key.algorithm_name]
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise invalid() from error


def converted(payload: Mapping[str, Any], kind: type[ClaimsT]) -> ClaimsT:
    """Raises `Unauthenticated` for a claim that lacks, or has another type."""
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError as error:
        raise invalid() from error


def in_time(claims: Timed, now: float) -> bool:
    """Whether a token with these claims is valid now, and was not meant to be for too long."""
    return (
        now - LEEWAY_SECONDS < claims.exp
        and claims.iat <= now + LEEWAY_SECONDS
        and 0 < claims.exp - claims.iat <= MAX_LIFETIME_SECONDS
        and (claims.nbf is None or claims.nbf <= now + LEEWAY_SECONDS)
    )


def acceptable(claims: Claims, *, issuer: str, audience: str, now: float) -> bool:
    """Whether claims of the right types mean a token for us, now."""
    return (
        in_time(claims, now)
        and claims.iss == issuer
        and claims.aud == audience
        and is_tenant_id(claims.tenant_id)
        and (claims.home is None or is_tenant_id(claims.home))
        and is_namespace(claims.namespace)
        and all(is_plain(text) for text in (claims.sub, claims.jti, *claims.roles, *claims.via))
    )


def usable_key(data: Mapping[str, Any]) -> jwt.PyJWK | None:
    """The verification key that a JWK describes, or None: malformed, private, or not one we trust signatures of."""
    if data.get("use", "sig") != "sig" or data.get("kty") not in ("OKP", "EC", "RSA") or "d" in data:
        return None
    try:
        key = jwt.PyJWK(dict(data))
    except (jwt.PyJWTError, ValueError, TypeError):  # a known type with members that make no key
        return None
    if key.algorithm_name not in _ALGORITHMS:
        return None
    if data["kty"] == "OKP" and data.get("crv") != "Ed25519":
        return None
    if data["kty"] == "RSA" and not _MIN_RSA_BITS <= key.key.key_size <= _MAX_RSA_BITS:
        return None
    return key


def _context(claims: Claims) -> AuthContext:
    return AuthContext(
        tenant=TenantId(claims.tenant_id),
        principal=PrincipalId(claims.sub),
        scopes=frozenset(claims.scope.split()) & SCOPES,
        roles=frozenset(claims.roles),
        namespace=claims.namespace,
        policy=claims.policy,
        via=claims.via,
        home=None if claims.home is None else TenantId(claims.home),
    )


def is_plain(text: str) -> bool:
    return 0 < len(text) <= _MAX_TEXT and text.isprintable()


def is_namespace(text: str) -> bool:
    return _NAMESPACE.fullmatch(text) is not None


def _part(token: str, number: int) -> bytes:
    """The bytes of the header or the payload. PyJWT parses the header again; that both read the same is what
    `strict_json` makes sure of. Of the payload it takes the signature over these very characters."""
    parts = token.split(".")
    return jwt.utils.base64url_decode(parts[number]) if len(parts) == _PARTS else b""


def strict_json(data: bytes) -> dict[str, Any]:
    """A JSON object without duplicate members at any depth and without NaN. Raises `ValueError`."""
    value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004  # one kind of error for all that is malformed
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member appears twice")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
