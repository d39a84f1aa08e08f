"""A detector that remembers: the turns of a conversation come again with each request, and are looked at once."""

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ports.context import AuthContext
from ports.pii import Finder, PiiCapabilities, PiiDetector, Span

SHORTEST: Final = 256
"""Characters. What is shorter is looked at faster than it is remembered."""
MAX_BYTES: Final = 8 * 1024 * 1024
_ENTRY: Final = 200
_SPAN: Final = 120
"""What an entry and each of its spans take, roughly."""


class Remembering:
    """`detector`, with what it found in the texts that came last, by their digest: no text is kept."""

    def __init__(
        self,
        detector: PiiDetector,
        *,
        at_once: Callable[[str], tuple[Span, ...] | None] = lambda _: None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`at_once` finds what `detector` would, where that needs no waiting."""
        self._detector = detector
        self.capabilities: PiiCapabilities = detector.capabilities
        self._at_once = at_once
        self._max_bytes = max_bytes
        # With a key of this process: what is remembered tells nothing about texts from elsewhere.
        self._key = secrets.token_bytes(32)
        self._found: OrderedDict[bytes, tuple[Span, ...]] = OrderedDict()
        self.size = 0

    def elsewhere(self) -> Finder | None:
        return self._detector.elsewhere()

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        if len(text) < SHORTEST:
            return await self._detector.detect(auth, text)
        digest = self._digest(auth, text)
        known = self._at(digest)
        return self._kept(digest, await self._detector.detect(auth, text)) if known is None else known

    def at_hand(self, auth: AuthContext, text: str) -> tuple[Span, ...] | None:
        """The same where nothing has to be waited for; None for everything else."""
        if len(text) < SHORTEST:
            return self._at_once(text)
        digest = self._digest(auth, text)
        known = self._at(digest)
        if known is None and (spans := self._at_once(text)) is not None:
            return self._kept(digest, spans)
        return known

    def _kept(self, digest: bytes, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        if digest not in self._found:
            self._found[digest] = spans
            self.size += _size(spans)
        while self.size > self._max_bytes:
            _, oldest = self._found.popitem(last=False)
            self.size -= _size(oldest)
        return spans

    def _at(self, digest: bytes) -> tuple[Span, ...] | None:
        known = self._found.get(digest)
        if known is not None:
            self._found.move_to_end(digest)
        return known

    def _digest(self, auth: AuthContext, text: str) -> bytes:
        # A detector may decide by tenant, so what one tenant's text gave is never another's answer.
        told = f"{auth.tenant}\0{auth.namespace}\0{text}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(self._key + told).digest()


def _size(spans: tuple[Span, ...]) -> int:
    return _ENTRY + _SPAN * len(spans)
