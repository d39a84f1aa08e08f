"""Checks of the audit: a tenant's chain in the storage, or in an export of it, against itself and against signed heads."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from deploy.audit_signer import SIGNER
from ports.audit import MAX_STRETCH, AuditLog, Head, Link
from ports.audit_rules import Check, Verdict
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.ids import TenantId

FORMAT: Final = 1


class Opening(Struct, frozen=True, kw_only=True):
    """The first line of an export. The others are links, one a line, from number 1 on."""

    agentos_audit: int = FORMAT
    tenant: TenantId
    exported_at: datetime
    head: Head


async def links_of(log: AuditLog, auth: AuthContext, head: Head) -> AsyncIterator[Sequence[Link]]:
    """The chain up to `head`, in stretches. What comes later, such as that we look, is not of it."""
    after = 0
    while after < head.seq:
        part = await log.chain(auth, head.tenant, after=after, limit=min(MAX_STRETCH, head.seq - after))
        if not part:
            return
        yield part
        after = part[-1].seq


async def checked(log: AuditLog, auth: AuthContext, tenant: TenantId, signed: Mapping[int, str]) -> Verdict:
    head = await log.head(auth, tenant)
    check = Check(tenant, signed)
    async for part in links_of(log, auth, head):
        check.take(part)
    return check.verdict(head)


async def tenants_of(log: AuditLog) -> list[TenantId]:
    found: list[TenantId] = []
    while part := await log.heads(SIGNER, after=found[-1] if found else None, limit=MAX_STRETCH):
        found += (one.tenant for one in part)
    return found


async def exported(log: AuditLog, auth: AuthContext, tenant: TenantId, now: datetime) -> AsyncIterator[bytes]:
    """Lines of an export."""
    head = await log.head(auth, tenant)
    yield msgspec.json.encode(Opening(tenant=tenant, exported_at=now, head=head)) + b"\n"
    async for part in links_of(log, auth, head):
        yield b"".join(msgspec.json.encode(one) + b"\n" for one in part)


def opening_of(line: bytes) -> Opening:
    try:
        found = msgspec.json.decode(line, type=Opening)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidArgument("this is no export of the audit: its first line can't be read") from error
    if found.agentos_audit != FORMAT:
        raise InvalidArgument(f"this export has the form {found.agentos_audit}; {FORMAT} can be checked")
    return found


def checked_export(lines: Iterable[bytes], signed: Mapping[str, Mapping[int, str]]) -> Verdict:
    """Of an export, without the storage. What was signed after it was made says nothing of it."""
    rest = iter(lines)
    opening = opening_of(next(rest, b""))
    check = Check(
        opening.tenant,
        {seq: hash_ for seq, hash_ in signed.get(opening.tenant, {}).items() if seq <= opening.head.seq},
    )
    number = 0
    for number, line in enumerate(rest, start=1):
        try:
            check.take([msgspec.json.decode(line, type=Link)])
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidArgument(f"line {number + 1} of the export can't be read") from error
    return check.verdict(opening.head)
