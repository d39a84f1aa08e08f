"""The keys of an issuer elsewhere: found by discovery, fetched through the egress guard, remembered for a bounded time."""

import asyncio
from datetime import timedelta
from typing import Any, Final

import jwt

from adapters.token_auth.followed import MAX_BYTES
from adapters.token_auth.jwt import Keys, strict_json
from adapters.token_auth.key_set import read_jwks
from adapters.token_auth.trust import TrustedIssuer
from ports.clock import Clock
from ports.context import EGRESS_NODE, AuthContext
from ports.egress import EgressPort
from ports.errors import AgentOSError, Unavailable
from ports.ids import PrincipalId, TenantId

FRESH_SECONDS: Final = 300.0
"""Older keys are fetched again, while they are still used."""
KEPT_SECONDS: Final = 900.0
"""Older keys verify nothing: whoever can't be asked is not believed for ever."""
REFETCH_SECONDS: Final = 10.0
"""Between two fetches, whatever tokens say: a `kid` nobody knows costs an issuer no more than this."""
FETCH_TIMEOUT: Final = timedelta(seconds=5)
"""Of each of the two documents."""

_DISCOVERY: Final = "/.well-known/openid-configuration"
_SELF: Final = AuthContext(
    tenant=TenantId("tnt_system"), principal=PrincipalId("svc_verifier"), scopes=frozenset({EGRESS_NODE})
)
_OK: Final = 200


class RemoteKeys:
    """Of one issuer. Of many who wait for a fetch one fetches for all, and goes on when its caller leaves."""

    def __init__(self, issuer: TrustedIssuer, egress: EgressPort, clock: Clock) -> None:
        self._issuer = issuer
        self._egress = egress
        self._clock = clock
        self._keys: Keys = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> jwt.PyJWK | None:
        """The key named `kid`.

        Raises:
            Unavailable: the issuer can't be asked, so that nobody can tell.
        """
        age = self._age()
        if age is None or age >= KEPT_SECONDS:
            await self._fetched()
        elif kid not in self._keys:
            if self._may_try() or self._fetching is not None:
                await self._fetched()
            elif self._failed:
                raise self._unavailable()
        elif age >= FRESH_SECONDS and self._may_try():
            self._begin()
        return self._keys.get(kid)

    async def aclose(self) -> None:
        if (fetch := self.leave()) is not None:
            await asyncio.wait({fetch})

    def leave(self) -> asyncio.Task[None] | None:
        """Cancels the fetch that is under way, and gives it, as it takes a moment to end. Who waits can't tell."""
        if self._fetching is not None:
            self._fetching.cancel()
        return self._fetching

    def _age(self) -> float | None:
        return None if self._fetched_at is None else self._clock.monotonic() - self._fetched_at

    def _may_try(self) -> bool:
        return self._tried_at is None or self._clock.monotonic() - self._tried_at >= REFETCH_SECONDS

    async def _fetched(self) -> None:
        if self._fetching is None:
            if not self._may_try():
                raise self._unavailable()
            self._begin()
        assert self._fetching is not None
        # Not `shield`, which would tell this caller of a cancellation that is another's.
        await asyncio.wait({self._fetching})
        if self._failed:
            raise self._unavailable()

    def _begin(self) -> None:
        if self._fetching is None:
            self._tried_at = self._clock.monotonic()
            # Until it has the keys, also where it is cancelled before its first step.
            self._failed = True
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._over)

    def _over(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            uri = self._issuer.jwks_uri or await self._discovered()
            keys = read_jwks(await self._document(uri))
        except (AgentOSError, ValueError, RecursionError):
            # The guard has told of it, where the operator looks; callers learn that it is not their token.
            return
        self._keys = {kid: key for kid, key in keys.items() if key.algorithm_name in self._issuer.algorithms}
        self._fetched_at = self._clock.monotonic()
        self._failed = False

    async def _discovered(self) -> str:
        """Where the keys are. Raises `ValueError` for a document of somebody else."""
        document: dict[str, Any] = strict_json(await self._document(self._issuer.issuer.rstrip("/") + _DISCOVERY))
        uri = document.get("jwks_uri")
        if document.get("issuer") != self._issuer.issuer or not isinstance(uri, str) or not uri.startswith("https://"):
            raise ValueError("not the discovery document of this issuer")
        return uri

    async def _document(self, url: str) -> bytes:
        answer = await self._egress.fetch(
            _SELF, url, max_bytes=MAX_BYTES, timeout=FETCH_TIMEOUT, headers={"accept": "application/json"}
        )
        if answer.status != _OK or answer.truncated:
            raise ValueError("no document, or one that is too large")
        return answer.body

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            "the keys of the token's issuer can't be fetched; try again", retry_after=timedelta(seconds=REFETCH_SECONDS)
        )
