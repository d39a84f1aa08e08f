"""What becomes of a finding for one tenant, and the placeholder that stands for it. Pure."""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from ports.ids import TenantId
from ports.pii import PiiMode

TAG_LETTERS: Final = 20
"""94 bits: no two values of a tenant ever share one."""
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz"


def new_key() -> bytes:
    """A node's secret, from which the tenants' keys are derived."""
    return secrets.token_bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PiiRules:
    """One tenant's modes, and the key of its placeholders."""

    modes: Mapping[str, PiiMode] = field(default_factory=dict)
    key: bytes = b""

    def mode(self, kind: str) -> PiiMode:
        return self.modes.get(kind, "redact")

    def tag(self, kind: str, value: str) -> str:
        """What makes the placeholder of `value` its own, and says nothing about it to whoever lacks the key.

        The same value has the same one in all requests of the tenant. Letters only: no detector takes it for a number.
        """
        digest = hmac.digest(self.key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256")
        number = int.from_bytes(digest, "big")
        letters: list[str] = []
        for _ in range(TAG_LETTERS):
            number, letter = divmod(number, len(_ALPHABET))
            letters.append(_ALPHABET[letter])
        return "".join(letters)


def rules_for(tenant: TenantId, modes: Mapping[str, PiiMode], node_key: bytes) -> PiiRules:
    return PiiRules(modes=modes, key=_tenant_key(tenant, node_key))


@lru_cache(maxsize=1_024)
def _tenant_key(tenant: TenantId, node_key: bytes) -> bytes:
    return hmac.digest(node_key, f"placeholders\0{tenant}".encode(), "sha256")
