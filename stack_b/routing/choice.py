"""Which backends may serve a request, in the order they are tried, and when the next one is. Pure."""

from collections.abc import Iterable
from typing import Final, Literal

from ports.errors import AgentOSError, Unavailable
from ports.tenant import ALL_MODELS, Entitlements
from stack_b.backends.catalog import Candidate
from stack_b.backends.reach import ANY

# The node's credentials are the operator's to repair: another backend's answer would hide that.
_FINAL: Final = frozenset({"upstream_auth_error"})


def permits(entitlements: Entitlements, model: str) -> bool:
    return ALL_MODELS in entitlements.models or model in entitlements.models


def permits_tier(entitlements: Entitlements, tier: str) -> bool:
    """Whether a tier may be asked for; what is none, may."""
    return not tier or ANY in entitlements.tiers or tier in entitlements.tiers


def permits_backend(entitlements: Entitlements, backend: str) -> bool:
    return ANY in entitlements.backends or backend in entitlements.backends


def choose(
    model: str, kind: Literal["chat", "embed"], entitlements: Entitlements, served: Iterable[Candidate]
) -> tuple[Candidate, ...]:
    """The candidates for `model`, best first: entitled, capable, in the operator's order. Empty: nobody may or can."""
    if not permits(entitlements, model):
        return ()
    return tuple(
        candidate
        for candidate in served
        if candidate.card.id == model and (candidate.card.chat if kind == "chat" else candidate.card.embed)
    )


def may_fall_back(error: AgentOSError) -> bool:
    """Whether another backend may be tried: never after a final refusal of the request itself."""
    return isinstance(error, Unavailable) and error.code not in _FINAL
