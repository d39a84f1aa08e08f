"""Roles are bundles of scopes, for people who issue keys; what is checked at every door are the scopes."""

from typing import Final

from ports.errors import InvalidArgument

_VIEW: Final = frozenset({"runs:read", "agents:read", "memory:read", "usage:read"})
_WORK: Final = _VIEW | {"runs:create", "runs:cancel", "tools:invoke", "memory:write", "models:invoke"}
_EDIT: Final = _WORK | {"agents:write", "tools:write", "approvals:decide"}
_ADMINISTER: Final = _EDIT | {"audit:read", "admin:tenant"}

ROLES: Final = {
    "viewer": _VIEW,
    "service": _WORK,
    "editor": _EDIT,
    "tenant_admin": _ADMINISTER,
    "platform_admin": _ADMINISTER | {"admin:platform"},
}


def scopes_of(role: str) -> frozenset[str]:
    """Raises `InvalidArgument` for a role that does not exist; the text lists those that do."""
    try:
        return frozenset(ROLES[role])
    except KeyError:
        raise InvalidArgument(f"there is no role {role!r}; there are {', '.join(sorted(ROLES))}") from None
