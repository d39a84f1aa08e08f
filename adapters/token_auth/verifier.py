"""TokenVerifier over API keys and access tokens, asking the tenant directory who is still welcome.

API keys speak to every audience of the node; an access token only to the one it names.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.token_auth import jwt, keys
from adapters.token_auth.foreign import ForeignIssuers
from adapters.token_auth.key_set import KeySet
from adapters.token_auth.uses import NOTED_EVERY, Uses
from ports.adapter import AdapterSpec, Given
from ports.auth import MAX_TOKEN_CHARS, TokenVerifier, mismatch
from ports.clock import Clock
from ports.context import SCOPES, TENANT_ACT_AS, AuthContext
from ports.errors import AgentOSError, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from ports.ids import PrincipalId, TenantId, is_tenant_id
from ports.recent import Recent
from ports.tenant import Principal, Standing, TenantDirectory, bounded

MAX_CACHE_SECONDS: Final = 5.0

_RENEWED: Final = 0.5
"""Of its time: from then on the directory is asked anew, and nobody waits for it."""
_MAX_ACCEPTED: Final = 8_192
_MAX_REFUSED: Final = 2_048
_TOLD_SECONDS: Final = 60.0
_MAX_ACTING: Final = 8_192
"""Pairs of a token and a tenant."""


class VerifierConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    issuer: str
    audience: str
    jwks_file: str
    cache_seconds: float = 2.0
    """How old an answer of the tenant directory may be. At most 5; a stream that checks every n seconds notices a
    revocation after n plus this."""


class TrustingConfig(VerifierConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    issuers_file: str
    """Issuers that are trusted beside the node's own, followed while we run (docs/identity.md)."""


class VerifierCapabilities(Struct, frozen=True, kw_only=True):
    """Every verifier can do the same."""


class TokenAuth:
    """TokenVerifier. Verdicts are remembered by the token's digest, for `cache_seconds` from when the question was asked.

    Accepted and refused tokens are remembered apart: whoever invents tokens can push out other invented ones only. Of many
    requests with one token, one asks for all; of one that is accepted, ahead of need, while the others go on.
    """

    def __init__(
        self,
        config: VerifierConfig,
        key_set: KeySet,
        tenants: TenantDirectory,
        clock: Clock,
        *,
        foreign: ForeignIssuers | None = None,
    ) -> None:
        self._config = config
        self._key_set = key_set
        self._foreign = foreign
        self._tenants = tenants
        self._clock = clock
        self._accepted: Recent[bytes, tuple[AuthContext, float]] = Recent(_MAX_ACCEPTED)
        """Each with when to ask again."""
        self._refused: Recent[bytes, AgentOSError] = Recent(_MAX_REFUSED)
        self._acting: Recent[tuple[bytes, str], AuthContext | AgentOSError] = Recent(_MAX_ACTING)
        self._uses = Uses(tenants, clock)
        self._told: Recent[tuple[TenantId, PrincipalId], bool] = Recent(_MAX_REFUSED)
        self._asking: dict[bytes, asyncio.Future[AgentOSError | None]] = {}
        self._ahead: set[asyncio.Task[None]] = set()

    async def verify(self, token: str) -> AuthContext:
        if not 0 < len(token) <= MAX_TOKEN_CHARS or not token.isascii():
            raise jwt.invalid()
        mark = hashlib.sha256(token.encode("ascii")).digest()
        while True:
            now = self._clock.monotonic()
            if (auth := self._remembered(token, mark, now)) is not None:
                return auth
            if (refusal := self._refused.get(mark, now)) is not None:
                again = _again(refusal)
                again.caller, refusal.caller = refusal.caller, None
                raise again
            asking = self._asking.get(mark)
            if asking is None:
                return await self._ask(token, mark, now, self._begun(mark))
            if (failure := await asyncio.shield(asking)) is not None:
                raise _again(failure)

    def at_hand(self, token: str) -> AuthContext | None:
        """As `ports.auth.Remembers` has it."""
        if not 0 < len(token) <= MAX_TOKEN_CHARS or not token.isascii():
            return None
        return self._remembered(token, hashlib.sha256(token.encode("ascii")).digest(), self._clock.monotonic())

    def _remembered(self, token: str, mark: bytes, now: float) -> AuthContext | None:
        known = self._accepted.get(mark, now)
        if known is None:
            return None
        auth, renew_at = known
        if now >= renew_at and mark not in self._asking:
            self._ask_ahead(token, mark, now)
        return auth

    async def act_as(self, token: str, tenant: str, /) -> AuthContext:
        auth = await self.verify(token)
        if tenant == auth.tenant:
            return auth
        if TENANT_ACT_AS not in auth.scopes or auth.home is not None or not is_tenant_id(tenant):
            raise mismatch()
        place = (hashlib.sha256(token.encode("ascii")).digest(), tenant)
        now = self._clock.monotonic()
        known = self._acting.get(place, now)
        if known is None:
            known = await self._acts(auth, TenantId(tenant))
            self._acting.put(place, known, until=now + self._config.cache_seconds)
        if isinstance(known, AgentOSError):
            raise _again(known)
        # Of what `verify` says now: what the caller lost since is lost here too.
        there = auth.acting_for(TenantId(tenant))
        return replace(there, scopes=there.scopes & known.scopes, roles=known.roles)

    async def _acts(self, auth: AuthContext, tenant: TenantId) -> AuthContext | AgentOSError:
        """What the caller is in `tenant`, or why it is nobody there."""
        try:
            standing = await self._tenants.acting(auth, tenant)
            _check_welcome(standing.tenant_status, standing.principal)
        except (NotFound, Unauthenticated):
            return mismatch()
        except PermissionDenied as error:
            return error
        return bounded(auth.acting_for(tenant), standing.principal)

    def _ask_ahead(self, token: str, mark: bytes, asked_at: float) -> None:
        told = self._begun(mark)

        async def ask() -> None:
            # What it comes to is remembered, for whoever comes next.
            try:
                await self._ask(token, mark, asked_at, told)
            except AgentOSError as error:
                if (kept := self._refused.get(mark, self._clock.monotonic())) is not None:
                    kept.caller = error.caller

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
        await self._uses.write()

    async def keep_noting(self) -> None:
        """Writes down when keys were used, until it is cancelled."""
        while True:
            await self._clock.sleep(NOTED_EVERY)
            await self._uses.write()

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
            known = self._accepted.get(mark, self._clock.monotonic())
            if known is not None and known[0] == auth:
                # The same object for as long as it is the same: who has looked at it need not look again.
                auth = known[0]
            keep_s = min(self._config.cache_seconds, valid_for.total_seconds())
            self._accepted.put(mark, (auth, asked_at + keep_s * _RENEWED), until=asked_at + keep_s)
            return auth
        finally:
            self._over(mark, told, failure)

    def _check_welcome(self, auth: AuthContext, tenant_status: str, principal: Principal | None) -> None:
        """Raises as the function does, and says who it is; seldom, as whoever is refused may ask a thousand times."""
        try:
            _check_welcome(tenant_status, principal)
        except PermissionDenied as error:
            who, now = (auth.tenant, auth.principal), self._clock.monotonic()
            if self._told.get(who, now) is None:
                self._told.put(who, True, until=now + _TOLD_SECONDS)
                error.caller = auth
            raise

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
        self._uses.note(key.id)
        auth = AuthContext(
            tenant=key.tenant,
            principal=key.principal,
            scopes=key.scopes & SCOPES,
            roles=key.roles,
            namespace=key.namespace,
        )
        self._check_welcome(auth, found.tenant_status, found.holder)
        return bounded(auth, found.holder), remaining

    async def _access_token(self, token: str) -> tuple[AuthContext, timedelta]:
        now = self._clock.now().timestamp()
        presented = jwt.present(token)
        if presented.issuer == self._config.issuer or self._foreign is None:
            verified = jwt.verify(
                presented,
                find_key=self._key_set.find,
                issuer=self._config.issuer,
                audience=self._config.audience,
                now=now,
            )
        else:
            verified = await self._foreign.verified(presented)
        try:
            auth, standing = await self._standing(verified.auth)
        except NotFound as error:
            raise jwt.invalid() from error
        self._check_welcome(auth, standing.tenant_status, standing.principal)
        return bounded(auth, standing.principal), timedelta(seconds=verified.expires_at - now)

    async def _standing(self, auth: AuthContext) -> tuple[AuthContext, Standing]:
        """The caller with no more than it may at home, and its standing in its tenant.

        Asked as a caller of its tenant without any scope: enough to see the tenant itself, and nothing else.
        """
        if auth.home is None:
            return auth, await self._tenants.standing(AuthContext(tenant=auth.tenant, principal=auth.principal))
        # Minted for a run of somebody who acts for the tenant: welcome as long as it may, and is welcome at home.
        name = PrincipalId(auth.principal.removeprefix(f"{auth.home}/"))
        actor = AuthContext(tenant=auth.home, principal=name)
        if actor.acting_for(auth.tenant).principal != auth.principal:
            raise jwt.invalid()
        at_home = await self._tenants.standing(actor)
        _check_welcome(at_home.tenant_status, at_home.principal)
        if TENANT_ACT_AS not in bounded(replace(actor, scopes=frozenset({TENANT_ACT_AS})), at_home.principal).scopes:
            raise jwt.invalid()
        return bounded(auth, at_home.principal), await self._tenants.acting(actor, auth.tenant)


@asynccontextmanager
async def open_trusting(config: TrustingConfig, given: Given) -> AsyncIterator[TokenVerifier]:
    foreign = ForeignIssuers(
        Path(config.issuers_file),
        own=config.issuer,
        surface=config.audience,
        egress=given.ports["egress"],
        clock=given.clock,
    )
    foreign.check()
    try:
        async with open_verifier(config, given, foreign) as auth:
            yield auth
    finally:
        await foreign.aclose()


@asynccontextmanager
async def open_verifier(
    config: VerifierConfig, given: Given, foreign: ForeignIssuers | None = None
) -> AsyncIterator[TokenVerifier]:
    if not 0 <= config.cache_seconds <= MAX_CACHE_SECONDS:
        raise InvalidArgument(f"cache_seconds is {config.cache_seconds:g}; choose 0 to {MAX_CACHE_SECONDS:g}")
    key_set = KeySet(Path(config.jwks_file), given.clock)
    auth = TokenAuth(config, key_set, given.ports["tenant"], given.clock, foreign=foreign)
    noting = asyncio.create_task(auth.keep_noting())
    try:
        yield auth
    finally:
        noting.cancel()
        await asyncio.wait({noting})
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

TRUSTING: Final = AdapterSpec(
    config=TrustingConfig,
    capabilities=lambda _config: VerifierCapabilities(),
    open=open_trusting,
    needs=("tenant", "egress"),
)
