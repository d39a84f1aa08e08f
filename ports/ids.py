"""A type for every kind of identifier, and the forms that are accepted from outside.

Ids are opaque to callers. `run_`, `evt_` and `key_` ids carry a UUIDv7 minted by the store, so that they sort
by creation; tenant and agent ids are chosen by people.
"""

import re
import uuid
from typing import Final, NewType

TenantId = NewType("TenantId", str)
PrincipalId = NewType("PrincipalId", str)
AgentId = NewType("AgentId", str)
RunId = NewType("RunId", str)
EventId = NewType("EventId", str)
WorkerId = NewType("WorkerId", str)
NodeId = NewType("NodeId", str)
HoldId = NewType("HoldId", str)
KeyId = NewType("KeyId", str)

MAX_ID_CHARS: Final = 64

_TENANT: Final = re.compile(r"tnt_[a-z0-9][a-z0-9_-]{0,59}")
_AGENT: Final = re.compile(r"agt_[a-z0-9][a-z0-9_-]{0,59}")
_MINTED: Final = re.compile(r"[a-z]{3}_[0-9a-f]{32}")


def is_tenant_id(text: str) -> bool:
    """Whether `text` may name a tenant; such a text is safe inside a quoted SQL literal."""
    return _TENANT.fullmatch(text) is not None


def is_agent_id(text: str) -> bool:
    return _AGENT.fullmatch(text) is not None


def minted(prefix: str, value: uuid.UUID) -> str:
    """The public form of a minted id: `minted("run", uuid)` is `run_` and 32 hexadecimal digits."""
    return f"{prefix}_{value.hex}"


def uuid_of(prefix: str, text: str) -> uuid.UUID | None:
    """The UUID inside a minted id, or None when `text` can't be one of ours (callers answer NotFound)."""
    if _MINTED.fullmatch(text) is None or not text.startswith(prefix + "_"):
        return None
    return uuid.UUID(hex=text[len(prefix) + 1 :])
