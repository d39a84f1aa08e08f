"""Requests about one's data: hand it over, and have it erased. For the admin API and the commands."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

from adapters.postgres.tenant_export import Export
from deploy.administration.offboarding import export_path
from ports.audit import AuditLog, Note
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import InvalidArgument
from ports.ids import PrincipalId, TenantId
from ports.privacy import EXPORTED, Erasure, PrivacyPort, check_subject
from ports.tenant import TenantDirectory

SubjectExporter: TypeAlias = Callable[[TenantId, PrincipalId], Awaitable[Export]]
ERASE_CALLS_PER_REQUEST: Final = 20
"""Of an erasing over HTTP: it is asked for again until it is done."""
MAX_CALLS: Final = 1_000_000
_DIGITS: Final = 12


def subject_export_path(folder: Path, tenant: TenantId, subject: PrincipalId, now: datetime) -> Path:
    """A name of a file that does not say whose it is."""
    digest = hashlib.sha256(f"{tenant} {subject}".encode()).hexdigest()[:_DIGITS]
    return export_path(folder, TenantId(f"{tenant}-subject-{digest}"), now)


async def export_for(
    auth: AuthContext,
    tenant: TenantId,
    subject: PrincipalId,
    *,
    tenants: TenantDirectory,
    audit: AuditLog,
    export: SubjectExporter,
) -> Export:
    """The file, once the tenant's audit says that it was made.

    Raises:
        NotFound: there is no such tenant.
    """
    auth.require(ADMIN_PLATFORM)
    check_subject(subject)
    await tenants.get(auth, tenant)
    made = await export(tenant, subject)
    try:
        await audit.note(auth, Note(action=EXPORTED, subject=subject, detail=made.sha256), tenant=tenant)
    except BaseException:
        await asyncio.to_thread(Path(made.path).unlink)
        raise
    return made


def check_erasing_confirmed(subject: str, confirmed: str) -> None:
    """Raise `InvalidArgument` unless somebody wrote the subject's name again."""
    if confirmed != subject:
        raise InvalidArgument(
            f"all that is kept of {subject!r} will be removed for good; confirm by its name",
            details={"path": "confirm"},
        )


async def erase_for(
    auth: AuthContext,
    tenant: TenantId,
    subject: PrincipalId,
    *,
    privacy: PrivacyPort,
    calls: int = MAX_CALLS,
    tell: Callable[[Erasure], None] = lambda _: None,
) -> Erasure:
    """At most so many batches; done or not. Raises `Conflict` for what is held, and for runs that have not ended."""
    for call in range(1, calls + 1):
        erasure = await privacy.erase(auth, tenant, subject)
        tell(erasure)
        if erasure.done or call == calls:
            return erasure
    raise InvalidArgument("at least one batch is erased at once")
