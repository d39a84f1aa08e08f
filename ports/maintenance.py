"""Maintenance port: what a storage must have done to it now and then, so that it doesn't grow for ever.

Clauses (each has a test in `conformance.maintenance`):

* MNT-1  `upkeep` needs the scope `runs:any-tenant`, and works across tenants.
* MNT-2  Once `upkeep` has no `more` to do, every run that was created more than `retention` and a day ago, and ended more
         than `MIN_RETENTION` ago, is gone with its journal, its events and its idempotency key: as if it had never been.
* MNT-3  A run that is open, younger than `retention`, or ended less than `MIN_RETENTION` ago, stays as it was, and so do
         its journal, its events and its key.
* MNT-4  A `retention` shorter than `MIN_RETENTION` raises `InvalidArgument`, and nothing is removed.
* MNT-5  A call does a bounded amount of work; `more` says that another one is worth while, and calling again comes to an
         end. Any number of callers may do so at once; each run is removed, and counted, once.
* MNT-6  What is removed of one run takes nothing from another, also where both hold equal bodies.
* MNT-7  Requests that were recorded more than `retention` and a day ago are gone too, and stay until it is over. Texts and
         replies that are kept no longer are gone from the storage, whatever the retention is.
"""

from datetime import timedelta
from typing import Final, Protocol

from msgspec import Struct

from ports.context import AuthContext
from ports.errors import InvalidArgument

MIN_RETENTION: Final = timedelta(days=7)
"""Idempotency keys are promised for this long, and so is reading a run after its end."""


class Upkeep(Struct, frozen=True, kw_only=True):
    """What one call has done."""

    runs_removed: int
    more: bool


class MaintenancePort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many processes, as often as one likes."""

    async def upkeep(self, auth: AuthContext, *, retention: timedelta) -> Upkeep:
        """Remove what is older than `retention`, and prepare for what is to come.

        Raises:
            Unavailable: the storage is away or busy; try again later.
        """
        ...


def check_retention(retention: timedelta) -> None:
    """Raises `InvalidArgument` when it is too short."""
    if retention < MIN_RETENTION:
        raise InvalidArgument(f"runs and requests are kept for at least {MIN_RETENTION.days} days, not {retention}")
