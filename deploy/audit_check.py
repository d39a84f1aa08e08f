"""Checks of the audit: a tenant's chain in the storage, or in an export of it, against itself and against signed heads."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from deploy.audit_signer import all_heads
from ports.audit import MAX_STRETCH, AuditLog, Head, Link
from ports.audit_rules import Check, Verdict, chain_name, chain_named
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


async def checked_chains(
    log: AuditLog, auth: AuthContext, tenant: TenantId | None, signed: Mapping[str, Mapping[int, str]]
) -> list[Verdict]:
    """Of every chain there is or ever was signed, in every storage of `log`; of one tenant, if it is named."""
    storages = (log, *map(log.at, log.homes))
    if tenant is None:
        heads = [head for storage in storages for head in await all_heads(storage)]
    else:
        heads = [head for storage in storages if (head := await storage.head(auth, tenant)).seq or not head.home]
    # One that is gone altogether is still named by what was signed.
    names = {chain_name(head.tenant, head.home) for head in heads}
    names |= {name for name in signed if tenant is None or chain_named(name)[0] == tenant}
    return [await _checked_chain(log, auth, name, signed.get(name, {})) for name in sorted(names)]


async def _checked_chain(log: AuditLog, auth: AuthContext, name: str, signed: Mapping[int, str]) -> Verdict:
    tenant, home = chain_named(name)
    if home and home not in log.homes:
        why = f"the home {home!r} is not configured here, so that its chain can't be checked; add it to AGENTOS_HOMES"
        return Verdict(
            tenant=tenant, home=home, checked=0, erased=0, signed=max(signed, default=0), head=0, bad=1, why=why
        )
    return await checked(log.at(home) if home else log, auth, tenant, signed)


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
    name = chain_name(opening.tenant, opening.head.home)
    check = Check(
        opening.tenant,
        {seq: hash_ for seq, hash_ in signed.get(name, {}).items() if seq <= opening.head.seq},
    )
    number = 0
    for number, line in enumerate(rest, start=1):
        try:
            check.take([msgspec.json.decode(line, type=Link)])
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidArgument(f"line {number + 1} of the export can't be read") from error
    return check.verdict(opening.head)
