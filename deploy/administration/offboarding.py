"""A tenant leaves: what there is of it is exported, then all of it is removed, in batches that can be gone on with."""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from msgspec import Struct

from adapters.postgres.tenant_export import Export
from ports.administration import Administration, still_active
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import InvalidArgument
from ports.ids import TenantId
from ports.tenant import TenantDirectory

ERASE_AT_ONCE: Final = 2_000
"""Rows of a batch: short enough for a statement that nobody waits behind."""
MAX_BATCHES: Final = 1_000_000

Exporter: TypeAlias = Callable[[TenantId], Awaitable[Export]]
_UNSAFE: Final = re.compile(r"[^0-9A-Za-z]")


class Offboarded(Struct, frozen=True, kw_only=True):
    done: bool
    """False: there is more to remove; the same call goes on."""
    removed: int
    """Rows, by this call."""
    export_sha256: str
    export: Export | None
    """What this call exported; None where an earlier one did."""


def check_confirmed(tenant: TenantId, confirmed: str) -> None:
    """Raise `InvalidArgument` unless somebody wrote the tenant's id again."""
    if confirmed != tenant:
        raise InvalidArgument(
            f"everything of {tenant} will be removed for good; confirm by its id", details={"path": "confirm"}
        )


def export_path(folder: Path, tenant: TenantId, now: datetime) -> Path:
    return folder / f"{tenant}-{_UNSAFE.sub('', now.isoformat(timespec='milliseconds'))}.zip"


async def offboard(
    auth: AuthContext,
    tenant: TenantId,
    *,
    tenants: TenantDirectory,
    administration: Administration,
    export: Exporter,
    batches: int = MAX_BATCHES,
) -> Offboarded:
    """Export, unless that was done, and remove at most so many batches.

    Raises:
        NotFound: there is no such tenant, and there was none that is being erased.
        Conflict: it is active, or has runs that are not over.
    """
    auth.require(ADMIN_PLATFORM)
    exported: Export | None = None
    sha256 = await administration.exported(auth, tenant)
    if sha256 is None:
        # Before an export that may take long; `erase` looks again.
        if (await tenants.get(auth, tenant)).status == "active":
            raise still_active(tenant)
        exported = await export(tenant)
        sha256 = exported.sha256
    removed = 0
    for _ in range(batches):
        erased = await administration.erase(auth, tenant, export_sha256=sha256, limit=ERASE_AT_ONCE)
        removed += erased.removed
        if erased.done:
            return Offboarded(done=True, removed=removed, export_sha256=sha256, export=exported)
    return Offboarded(done=False, removed=removed, export_sha256=sha256, export=exported)
