"""What a backend may be sent, by what the caller's token and the tenant's entitlements say. Pure."""

from typing import Final

from msgspec import Struct

from ports.context import PolicyContext

ANY: Final = "*"
USUAL: Final = ("public", "internal")
"""What a backend may see that declares nothing; whatever is classified otherwise needs one that says so."""


class Reach(Struct, frozen=True, kw_only=True):
    """What an operator declares of a backend."""

    regions: frozenset[str] = frozenset()
    """Empty: unknown."""
    classifications: frozenset[str] = frozenset(USUAL)
    passes: frozenset[str] = frozenset()
    """Members of requests that it may be sent beside those that every backend may."""

    def may_see(self, context: PolicyContext, regions: frozenset[str]) -> bool:
        """Whether a request of this context may go there. `regions`: the tenant's, `*` for anywhere."""
        if ANY not in self.classifications and context.classification not in self.classifications:
            return False
        return self._lies_in(regions) and self._lies_in(frozenset(context.regions) or frozenset((ANY,)))

    def _lies_in(self, regions: frozenset[str]) -> bool:
        return ANY in regions or (bool(self.regions) and self.regions <= regions)
