"""Tokens: from a bearer token to an AuthContext, and from an AuthContext to a token for another stack.

Clauses (each has a test in `conformance.auth`):

* AUT-1  `verify` of a valid token gives the tenant, principal, scopes and namespace it was issued with.
* AUT-2  A token that is malformed, expired, not yet valid, of another issuer or audience, unsigned, signed with another key
         or algorithm, revoked, or lacks a required claim raises `Unauthenticated`; the text does not say which.
* AUT-3  A token of a disabled tenant raises `PermissionDenied` (`tenant_disabled`), which says whose it is (`caller`), for
         the audit: the first time, and once a minute from then on.
* AUT-4  `verify` never grants the scopes of the node's own processes (`queue:any-tenant`, `runs:any-tenant`,
         `gateway:follow`).
* AUT-5  A store that can't be asked raises `Unavailable`, never `Unauthenticated`.
* AUT-6  A token from `mint` verifies, for its audience only, until its lifetime ends; it never grants more than the
         context it was minted for.
* AUT-7  `act_as` gives the context that a token with the scope `tenant:act_as` has in a tenant that its principal may act
         for: with a name that says both, no scope that it lacks, and neither `admin:platform` nor `tenant:act_as`. One
         that may not, a tenant that there is not and a text that can't name one raise the same `PermissionDenied`
         (`tenant_mismatch`); a disabled tenant raises `tenant_disabled`. What was withdrawn is refused as soon as a
         revoked token.
* AUT-8  `at_hand`, of a verifier that has it, gives what `verify` would give now, or None, and raises nothing: of a token
         that is refused, or of which nothing is remembered, None.
"""

from datetime import timedelta
from typing import Final, Protocol

from ports.context import AuthContext
from ports.errors import PermissionDenied

MAX_TOKEN_CHARS: Final = 8_192


class TokenVerifier(Protocol):
    """Safe to call concurrently. What it remembers of a token's validity is older than 5 s never."""

    async def verify(self, token: str) -> AuthContext: ...

    async def act_as(self, token: str, tenant: str, /) -> AuthContext:
        """Raises what `verify` raises, and `PermissionDenied`."""
        ...


class Remembers(Protocol):
    """A verifier that can be asked without waiting."""

    def at_hand(self, token: str) -> AuthContext | None:
        """What `verify` gives of a token that it has accepted before, for as long as that holds."""
        ...


def mismatch() -> PermissionDenied:
    """One text, whatever there is of the tenant that was named."""
    return PermissionDenied("X-Tenant-Id differs from the token's tenant", code="tenant_mismatch")


class PublishedKeys(Protocol):
    """What others verify the tokens of the node's own issuer by."""

    def jwks(self) -> bytes:
        """The JWKS document. Raises `Unavailable`."""
        ...

    def discovery(self) -> bytes | None:
        """The OpenID Connect discovery document; None where the issuer is not called by a URL."""
        ...


class TokenIssuer(Protocol):
    """The node's own issuer."""

    def mint(self, auth: AuthContext, *, audience: str, scopes: frozenset[str], lifetime: timedelta) -> str:
        """A signed token for `auth`'s tenant and principal with those of `scopes` that `auth` holds."""
        ...
