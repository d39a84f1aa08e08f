"""What the node's own issuer publishes: its keys, and the discovery document that leads to them."""

from pathlib import Path
from typing import Any, Final

import msgspec

from adapters.token_auth.followed import Followed, bounded
from adapters.token_auth.key_set import entries_of
from adapters.token_auth.rotation import living
from ports.clock import Clock
from ports.context import SCOPES

JWKS_PATH: Final = "/.well-known/jwks.json"


class PublishedFile:
    """Satisfies `PublishedKeys`, from the file that the node's own verifiers read."""

    def __init__(self, path: Path, issuer: str, clock: Clock) -> None:
        self._file = Followed(path, lambda file: entries_of(bounded(file)), clock, remedy="run 'agentos up'")
        self._issuer = issuer
        self._clock = clock

    def jwks(self) -> bytes:
        entries = self._file.value()
        return msgspec.json.encode({"keys": living(entries, now=self._clock.now().timestamp())})

    def discovery(self) -> bytes | None:
        if not self._issuer.startswith(("https://", "http://")):
            return None
        document: dict[str, Any] = {
            "issuer": self._issuer,
            "jwks_uri": self._issuer.rstrip("/") + JWKS_PATH,
            "scopes_supported": sorted(SCOPES),
            # Tokens are issued by command, and to the node's own processes: nobody logs in here.
            "response_types_supported": [],
            "grant_types_supported": [],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["EdDSA"],
        }
        return msgspec.json.encode(document)
