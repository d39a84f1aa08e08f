"""Privacy on a node with homes: what is asked about a tenant's data is asked in each database that it ever lived in.

The shared database says what is held, for how long what is kept, and who is barred. Each home has a copy of holds and
rules, since what removes rows looks for them beside the rows; whatever changes them, or removes anything, brings the copies
up to date first, one at a time. An erasing begins in the shared database, comes to its end in one home after the other, and
last in the shared one. Each has a tombstone of its own, which says how far it got there, so that whoever asks again goes
on. See ADR 0044.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol

from msgspec.structs import replace

from adapters.postgres.engine import Database
from adapters.postgres.move_tables import SHARED
from adapters.postgres.privacy_erasing import plus
from adapters.postgres.rows import packed
from adapters.postgres.settled import check_settled, stays_in, stays_of
from adapters.postgres.statements import load
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import NotFound
from ports.ids import PrincipalId, TenantId, is_tenant_id
from ports.privacy import Counts, DataClass, Erasure, Hold, PrivacyPort, no_tenant

_SQL: Final = load("privacy")


class OneDatabase(PrivacyPort, Protocol):
    """What is asked of each database by itself."""

    async def check_erasable(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> None: ...

    async def begun(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure | None: ...

    async def begin(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure: ...

    async def finish(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, begun: Erasure, beside: Counts
    ) -> Erasure: ...

    async def erase_there(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId, begun_at: datetime
    ) -> Erasure: ...

    async def erasing_there(self, tenant: TenantId) -> dict[str, Erasure]: ...


class PrivacyOfHomes:
    """Satisfies `PrivacyPort` over the shared database and those of homes."""

    def __init__(self, places: Mapping[str, OneDatabase], databases: Mapping[str, Database]) -> None:
        self._places = places
        self._shared = places[SHARED]
        self._databases = databases

    async def erase(self, auth: AuthContext, tenant: TenantId, subject: PrincipalId) -> Erasure:
        _check(auth, tenant)
        homes = await check_settled(self._databases, tenant)
        if not homes:
            return await self._shared.erase(auth, tenant, subject)
        await self._copy_kept(tenant)
        if await self._shared.begun(auth, tenant, subject) is None:
            for home in homes:
                await self._places[home].check_erasable(auth, tenant, subject)
        begun = await self._shared.begin(auth, tenant, subject)
        gone = Counts()
        for home in homes:
            there = await self._places[home].erase_there(auth, tenant, subject, begun.begun_at)
            gone = plus(gone, there.counts)
            if not there.done:
                return replace(begun, counts=plus(begun.counts, gone))
        last = await self._shared.finish(auth, tenant, subject, begun, gone)
        return last if last.done else replace(last, counts=plus(last.counts, gone))

    async def erasures(self, auth: AuthContext, tenant: TenantId, *, limit: int = 200) -> tuple[Erasure, ...]:
        found = await self._shared.erasures(auth, tenant, limit=limit)
        if all(one.done for one in found):
            return found
        for home in await stays_of(self._databases, tenant):
            there = await self._places[home].erasing_there(tenant)
            found = tuple(_with(one, there.get(one.name)) for one in found)
        return found

    async def hold(
        self, auth: AuthContext, tenant: TenantId, subject: PrincipalId | None, *, reason: str, request: str = ""
    ) -> Hold:
        await self._check_reached(auth, tenant)
        placed = await self._shared.hold(auth, tenant, subject, reason=reason, request=request)
        await self._copy_kept(tenant)
        return placed

    async def release(self, auth: AuthContext, tenant: TenantId, hold: str) -> Hold:
        await self._check_reached(auth, tenant)
        try:
            released = await self._shared.release(auth, tenant, hold)
        except NotFound:
            # Released before, maybe, by a call that did not reach each home.
            await self._copy_kept(tenant)
            raise
        await self._copy_kept(tenant)
        return released

    async def holds(self, auth: AuthContext, tenant: TenantId) -> tuple[Hold, ...]:
        return await self._shared.holds(auth, tenant)

    async def retain(self, auth: AuthContext, tenant: TenantId, days: Mapping[DataClass, int | None]) -> None:
        await self._check_reached(auth, tenant)
        await self._shared.retain(auth, tenant, days)
        await self._copy_kept(tenant)

    async def retention(self, auth: AuthContext, tenant: TenantId) -> dict[DataClass, int]:
        return await self._shared.retention(auth, tenant)

    async def _check_reached(self, auth: AuthContext, tenant: TenantId) -> None:
        """Before anything is changed: whoever is told so has it in force in each place."""
        _check(auth, tenant)
        for home in await stays_of(self._databases, tenant):
            async with self._databases[home].transaction(tenant):
                pass

    async def _copy_kept(self, tenant: TenantId) -> None:
        """Under the lock of what is held: of two that copy, the later has what the earlier had."""
        async with self._databases[SHARED].transaction(tenant) as transaction:
            await transaction.rows(_SQL["lock"], {"tenant": tenant})
            [kept] = await transaction.rows(_SQL["kept"], {"tenant": tenant})
            for home in await stays_in(transaction, self._databases, tenant):
                async with self._databases[home].transaction(tenant) as there:
                    await there.rows(_SQL["copy_kept"], {name: packed(kept[name]) for name in ("holds", "rules")})


def _check(auth: AuthContext, tenant: TenantId) -> None:
    auth.require(ADMIN_PLATFORM)
    if not is_tenant_id(tenant):
        raise no_tenant(tenant)


def _with(one: Erasure, there: Erasure | None) -> Erasure:
    """What went so far, of an erasing that is not done; at its end all of it is in the shared tombstone."""
    if one.done or there is None or there.begun_at != one.begun_at:
        return one
    return replace(one, counts=plus(one.counts, there.counts))
