"""How urgent a run is among its tenant's own."""

from typing import Final

from ports.errors import InvalidArgument

LOWEST: Final = 0
HIGHEST: Final = 9
DEFAULT: Final = 5


def check_priority(priority: int) -> None:
    """Raise `InvalidArgument` for what is none."""
    if not LOWEST <= priority <= HIGHEST:
        raise InvalidArgument(f"a priority is from {LOWEST} to {HIGHEST}, the most urgent; {priority} is not")
