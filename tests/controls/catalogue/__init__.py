"""The removals, section by section of the page."""

from typing import Final

from tests.controls.catalogue import administration, audit, clients, database, node, stack_a, stack_b, tools
from tests.controls.removal import Removal

REMOVALS: Final[tuple[Removal, ...]] = (
    *clients.REMOVALS,
    *stack_a.REMOVALS,
    *stack_b.REMOVALS,
    *administration.REMOVALS,
    *database.REMOVALS,
    *audit.REMOVALS,
    *tools.REMOVALS,
    *node.REMOVALS,
)

NOT_REMOVED: Final[dict[str, str]] = {}
"""Rows of which no removal is possible, and why."""
