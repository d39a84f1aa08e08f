"""TokenVerifier over API keys and access tokens, asking the tenant directory who is still welcome.

API keys speak to every audience of the node; an access token only to the one it names.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from msgspec import Struct

from adapters.token_auth import jwt, keys
from adapters.token_auth.key_set import KeySet
from adapters.token_auth.recent import Recent
from ports.adapter import AdapterSpec, Given
from ports.auth import MAX_TOKEN_CHARS, TokenVerifier
from ports.clock import Clock
from ports.context import SCOPES, AuthContext
from ports.errors import AgentOSError, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from ports.tenant import Principal, TenantDirectory, bounded

MAX_CACHE_SECONDS: Final = 5.0

_RENEWED: Final = 0.5
"""Of its time: from then on the directory is asked anew, and nobody waits for it."""
_MAX_ACCEPTED: Final = 8_192
_MAX_REFUSED: Final = 2_048


class VerifierConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    issuer: str
    audience: str
    jwks_file: str
    cache_seconds: float = 2.0
    """How old an answer of the tenant directory may be. At most 5; a stream that checks every n seconds notices a
    revocation after n plus this."""


class VerifierCapabilities(Struct, frozen=True, kw_only=True):
    """Every verifier can do the same."""


class TokenAuth:
    """TokenVerifier. Verdicts are remembered by the token's digest, for `cache_seconds` from when the question was asked.

    Accepted and refused tokens are remembered apart: whoever invents tokens can push out other invented ones only. Of many
    requests with one token, one asks for all; of one that is accepted, ahead of need, while the others go on.
    """

    def __init__(self, config: VerifierConfig, key_set: KeySet, tenants: TenantDirectory, clock: Clock) -> None:
        self._config = config
        self._key_set = key_set
        self._tenants = tenants
        self._clock = clock
        self._accepted: Recent[bytes, tuple[AuthContext, float]] = Recent(_MAX_ACCEPTED)
        """Each with when to ask again."""
        self._refused: Recent[bytes, AgentOSError] = Recent(_MAX_REFUSED)
        self._asking: dict[bytes, asyncio.Future[AgentOSError | None]] = {}
        self._ahead: set[asyncio.Task[None]] = set()

    async def verify(self, token: str) -> AuthContext:
        if not 0 < len(token) <= MAX_TOKEN_CHARS or not token.isascii():
            raise jwt.invalid()
        mark = hashlib.sha256(token.encode("ascii")).digest()
        while True:
            now = self._clock.monotonic()
            if (known := self._accepted.get(mark, now)) is not None:
                auth, renew_at = known
                if now >= renew_at and mark not in self._asking:
                    self._ask_ahead(token, mark, now)
                return auth
            if (refusal := self._refused.get(mark, now)) is not None:
                raise _again(refusal)
            asking = self._asking.get(mark)
            if asking is None:
                return await self._ask(token, mark, now, self._begun(mark))
            if (failure := await asyncio.shield(asking)) is not None:
                raise _again(failure)

    def _ask_ahead(self, token: str, mark: bytes, asked_at: float) -> None:
        told = self._begun(mark)

        async def ask() -> None:
            # What it comes to is remembered, for whoever comes next.
            with suppress(AgentOSError):
                await self._ask(token, mark, asked_at, told)

        task = asyncio.create_task(ask())
        self._ahead.add(task)
        task.add_done_callback(self._ahead.discard)
        # Also where it was cancelled before its first step.
        task.add_done_callback(lambda _: self._over(mark, told, None))

    def _begun(self, mark: bytes) -> asyncio.Future[AgentOSError | None]:
        told = self._asking[mark] = asyncio.get_running_loop().create_future()
        return told

    def _over(self, mark: bytes, told: asyncio.Future[AgentOSError | None], failure: AgentOSError | None) -> None:
        if not told.done():
            del self._asking[mark]
            told.set_result(failure)

    async def aclose(self) -> None:
        """Whatever is being asked ahead is nobody's any more."""
        for task in self._ahead:
            task.cancel()
        if self._ahead:
            await asyncio.wait(self._ahead)

    async def _ask(
        self, token: str, mark: bytes, asked_at: float, told: asyncio.Future[AgentOSError | None]
    ) -> AuthContext:
        """Find out for all who wait meanwhile. Whoever asks and leaves is followed by the next one."""
        failure: AgentOSError | None = None
        try:
            auth, valid_for = await self._find_out(token)
        except (Unauthenticated, PermissionDenied) as error:
            failure = error
            self._accepted.drop(mark)
            self._refused.put(mark, _again(error), until=asked_at + self._config.cache_seconds)
            raise
        except AgentOSError as error:
            failure = error
            raise
        else:
            keep_s = min(self._config.cache_seconds, valid_for.total_seconds())
            self._accepted.put(mark, (auth, asked_at + keep_s * _RENEWED), until=asked_at + keep_s)
            return auth
        finally:
            self._over(mark, told, failure)

    async def _find_out(self, token: str) -> tuple[AuthContext, timedelta]:
        """Whose token this is, and for how long it will stay valid at most."""
        if token.startswith(keys.PREFIX):
            return await self._key(token)
        return await self._access_token(token)

    async def _key(self, token: str) -> tuple[AuthContext, timedelta]:
        parsed = keys.parse(token)
        found = None if parsed is None else await self._tenants.find_key(parsed.key_id, keys.digest(parsed.secret))
        if found is None:
            raise jwt.invalid()
        key = found.key
        remaining = timedelta.max if key.expires_at is None else key.expires_at - self._clock.now()
        if key.revoked_at is not None or remaining <= timedelta(0):
            raise jwt.invalid()
        _check_welcome(found.tenant_status, found.holder)
        auth = AuthContext(
            tenant=key.tenant,
            principal=key.principal,
            scopes=key.scopes & SCOPES,
            roles=key.roles,
            namespace=key.namespace,
        )
        return bounded(auth, found.holder), remaining

    async def _access_token(self, token: str) -> tuple[AuthContext, timedelta]:
        now = self._clock.now().timestamp()
        verified = jwt.verify(
            token,
            find_key=self._key_set.find,
            issuer=self._config.issuer,
            audience=self._config.audience,
            now=now,
        )
        # Asked as a caller of that tenant without any scope: enough to see the tenant itself, and nothing else.
        asker = AuthContext(tenant=verified.auth.tenant, principal=verified.auth.principal)
        try:
            standing = await self._tenants.standing(asker)
        except NotFound as error:
            raise jwt.invalid() from error
        _check_welcome(standing.tenant_status, standing.principal)
        return bounded(verified.auth, standing.principal), timedelta(seconds=verified.expires_at - now)


@asynccontextmanager
async def open_verifier(config: VerifierConfig, given: Given) -> AsyncIterator[TokenVerifier]:
    if not 0 <= config.cache_seconds <= MAX_CACHE_SECONDS:
        raise InvalidArgument(f"cache_seconds is {config.cache_seconds:g}; choose 0 to {MAX_CACHE_SECONDS:g}")
    key_set = KeySet(Path(config.jwks_file), given.clock)
    auth = TokenAuth(config, key_set, given.ports["tenant"], given.clock)
    try:
        yield auth
    finally:
        await auth.aclose()


def _check_welcome(tenant_status: str, principal: Principal | None) -> None:
    """Raises `PermissionDenied` for a disabled tenant, `Unauthenticated` for a disabled principal."""
    if tenant_status != "active":
        raise PermissionDenied("the tenant is disabled; ask its administrator", code="tenant_disabled")
    if principal is not None and principal.status != "active":
        raise jwt.invalid()


def _again(error: AgentOSError) -> AgentOSError:
    """The same refusal as a new exception: one that is raised twice would collect the frames of both."""
    return type(error)(error.message, code=error.code, retry_after=error.retry_after, retryable=error.retryable)


SPEC: Final = AdapterSpec(
    config=VerifierConfig,
    capabilities=lambda _config: VerifierCapabilities(),
    open=open_verifier,
    needs=("tenant",),
)
