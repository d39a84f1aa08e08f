"""What becomes of a finding for one tenant, and the placeholder that stands for it. Pure."""

import hmac
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from ports.ids import TenantId
from ports.pii import PiiMode

TAG_LETTERS: Final = 20
"""94 bits: no two values of a tenant ever share one."""
MAX_TENANTS: Final = 10_000
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

    def allows_all(self, classes: Collection[str]) -> bool:
        """Whether there are `classes` to find, and none of them is looked for."""
        return bool(self.modes) and bool(classes) and all(self.mode(kind) == "allow" for kind in classes)

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
    return PiiRules(modes=modes, key=hmac.digest(node_key, f"placeholders\0{tenant}".encode(), "sha256"))


class TenantRules:
    """`rules_for`, made once as long as a tenant's modes are the same."""

    def __init__(self, node_key: bytes) -> None:
        self._node_key = node_key
        self._known: dict[TenantId, PiiRules] = {}

    def of(self, tenant: TenantId, modes: Mapping[str, PiiMode]) -> PiiRules:
        known = self._known.get(tenant)
        if known is not None and known.modes == modes:
            return known
        if len(self._known) >= MAX_TENANTS:
            self._known.clear()
        known = self._known[tenant] = rules_for(tenant, modes, self._node_key)
        return known
