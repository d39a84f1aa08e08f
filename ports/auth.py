"""Tokens: from a bearer token to an AuthContext, and from an AuthContext to a token for another stack.

Clauses (each has a test in `conformance.auth`):

* AUT-1  `verify` of a valid token gives the tenant, principal, scopes and namespace it was issued with.
* AUT-2  A token that is malformed, expired, not yet valid, of another issuer or audience, unsigned, signed with another key
         or algorithm, revoked, or lacks a required claim raises `Unauthenticated`; the text does not say which.
* AUT-3  A token of a disabled tenant raises `PermissionDenied` (`tenant_disabled`).
* AUT-4  `verify` never grants the scopes of the node's own processes (`queue:any-tenant`, `runs:any-tenant`,
         `gateway:follow`).
* AUT-5  A store that can't be asked raises `Unavailable`, never `Unauthenticated`.
* AUT-6  A token from `mint` verifies, for its audience only, until its lifetime ends; it never grants more than the
         context it was minted for.
"""

from datetime import timedelta
from typing import Final, Protocol

from ports.context import AuthContext

MAX_TOKEN_CHARS: Final = 8_192


class TokenVerifier(Protocol):
    """Safe to call concurrently. What it remembers of a token's validity is older than 5 s never."""

    async def verify(self, token: str) -> AuthContext: ...


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
