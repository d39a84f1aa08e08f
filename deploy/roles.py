"""Roles, as commands know them."""

from ports.roles import ROLES, scopes_of

__all__ = ["ROLES", "scopes_of"]
