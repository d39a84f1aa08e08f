"""Tokens of the issuers that this node trusts beside its own."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adapters.token_auth import jwt
from adapters.token_auth.followed import Followed, bounded
from adapters.token_auth.remote_keys import RemoteKeys
from adapters.token_auth.trust import TrustedIssuer, identity_of, read_trusted
from ports.clock import Clock
from ports.egress import EgressPort

_REMEDY: Final = "see the section on issuers in docs/identity.md; './agentos config' says what is wrong with it"


class ForeignIssuers:
    """Follows the file that names them. An issuer taken out of it is not believed a second later, nor are its keys kept."""

    def __init__(self, path: Path, *, own: str, surface: str, egress: EgressPort, clock: Clock) -> None:
        self._file = Followed(path, lambda file: read_trusted(bounded(file), own=own), clock, remedy=_REMEDY)
        self._surface = surface
        self._egress = egress
        self._clock = clock
        self._known: Mapping[str, TrustedIssuer] = {}
        self._keys: dict[str, RemoteKeys] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        """Fetches that were cancelled, until they have ended."""

    def check(self) -> None:
        """Raises `Unavailable` while the file can't be used."""
        self._file.latest()

    async def verified(self, presented: jwt.Presented) -> jwt.Verified:
        """Raises `Unauthenticated`, and `Unavailable` where the issuer's keys or the file can't be read."""
        known = self._file.value()
        if known is not self._known:
            self._keep(known)
        issuer = known.get(presented.issuer)
        if issuer is None:
            raise jwt.invalid()
        # Before its keys are asked for: whatever is wrong anyway sends nobody anywhere.
        who = self._identity(issuer, presented)
        jwt.check_signature(presented, await self._keys_of(issuer).find(presented.kid))
        return who

    async def aclose(self) -> None:
        await asyncio.gather(*(keys.aclose() for keys in self._keys.values()), *map(_ended, tuple(self._leaving)))

    def _identity(self, issuer: TrustedIssuer, presented: jwt.Presented) -> jwt.Verified:
        return identity_of(issuer, presented.payload, surface=self._surface, now=self._clock.now().timestamp())

    def _keys_of(self, issuer: TrustedIssuer) -> RemoteKeys:
        if issuer.issuer not in self._keys:
            self._keys[issuer.issuer] = RemoteKeys(issuer, self._egress, self._clock)
        return self._keys[issuer.issuer]

    def _keep(self, known: Mapping[str, TrustedIssuer]) -> None:
        """Keys of issuers that are as they were."""
        for url in [url for url in self._keys if known.get(url) != self._known.get(url)]:
            if (fetch := self._keys.pop(url).leave()) is not None:
                self._leaving.add(fetch)
                fetch.add_done_callback(self._leaving.discard)
        self._known = known


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
