"""The removals, by section of the page."""

from typing import Final

from tests.controls.catalogue import clients

REMOVALS: Final = (*clients.REMOVALS,)
