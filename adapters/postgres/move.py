"""Moving a tenant to another database while it works: see ADR 0039.

    begin     mark it 'arriving' there and 'leaving' here; from then on its writes are noted
    copy      each table in stretches by key; where it was is kept, so that it goes on after a crash
    catch up  what was noted is copied again, until little is left
    switch    its writers wait: the rest, the comparison, the marks. At most `freeze_s`, or all of it is taken back
    open      the directory says where it lives, and the workers there begin
    clear     later and by itself: what was left behind

Every step may be made again. One transaction decides: the one that writes 'left' in the old home. Before it the tenant
lives in the old home and the move can be aborted, after it in the new one, whatever else has been done by then.
"""

import asyncio
from datetime import timedelta
from typing import Final

from msgspec import Struct

from adapters.postgres import homes
from adapters.postgres.move_copy import copy, remember
from adapters.postgres.move_guard import guard, unguard
from adapters.postgres.move_job import SETTLES, Move, Places, Report, Standing, Step, Tell, moving
from adapters.postgres.move_kept import bring_kept, forget_kept
from adapters.postgres.move_link import End, Sum
from adapters.postgres.move_switch import arrive, open_up, switch
from adapters.postgres.move_tables import SHARED, TABLES
from ports.context import AuthContext
from ports.errors import Conflict
from ports.ids import TenantId

FREEZE_S: Final = 2.0
"""How long the tenant's writers may wait at the end."""
GRACE: Final = timedelta(days=1)
"""How long what was left behind is kept at least, unless told otherwise."""


async def move_tenant(
    auth: AuthContext, tenant: TenantId, to: str, places: Places, *, tell: Tell, freeze_s: float = FREEZE_S
) -> Report:
    """Move `tenant` to the home `to`, or go on with a move that was begun.

    Raises:
        NotFound: there is no such tenant.
        InvalidArgument: there is no such home.
        Conflict: another move is under way, something of the tenant is left there from before, or what was copied is not
            what there is.
        Unavailable: a database does not answer, or the switch did not come to its end within `freeze_s` so many times.
    """
    places.dsn(to)
    async with moving(auth, tenant, places, lambda home: tuple(dict.fromkeys((home, to))), tell) as move:
        home = await move.home()
        there = move.ends[to]
        if home == to:
            if (standing := await move.standing(there)) is None or standing.state != "arriving":
                return Report(tenant=tenant, source=home, to=to, done=f"{tenant} lives in {to} already")
            await open_up(move, there)
            return Report(tenant=tenant, source=standing.other, to=to, done=f"{tenant} lives in {to}")
        here = move.ends[home]
        standing = await move.standing(here)
        if standing is not None and standing.other != to:
            raise Conflict(f"{tenant} is on its way to {standing.other!r}; finish or abort that first")
        if standing is not None and standing.state == "left":
            await arrive(move, here, there)
            return Report(tenant=tenant, source=home, to=to, done=f"{tenant} lives in {to}")
        await there.make_stages()
        await _begin(move, here, there)
        await copy(move, here, there)
        report = await switch(move, here, there, freeze_s)
        await arrive(move, here, there)
        return report


async def _check_free(move: Move) -> None:
    """Under `ao_lock_holds` what is found stays so: whoever holds or removes something of a tenant's takes it too."""
    tenant = move.tenant
    if await move.directory.connection.fetchval("SELECT 1 FROM tenant_tombstones WHERE tenant_id = $1", tenant):
        raise Conflict(f"{tenant} is being removed; it does not move any more")


async def _begin(move: Move, here: End, there: End) -> None:
    tenant = move.tenant
    await _check_free(move)
    if await move.standing(there) is None:
        for table in TABLES:
            if await there.reach(tenant, table, None) is not None:
                raise Conflict(f"{there.name!r} has rows of {tenant} in {table.name!r} already; see who wrote them")
        await there.connection.execute(
            "INSERT INTO tenant_moves (tenant, state, other) VALUES ($1, 'arriving', $2)", tenant, here.name
        )
    elif (await move.standing(there)) != Standing(state="arriving", other=here.name, for_s=0.0):
        raise Conflict(
            f"{there.name!r} has remains of {tenant}; clear them first with "
            f"`agentos tenant move {tenant} --clear --grace-hours 0`"
        )
    if await move.standing(here) is None:
        async with move.directory.connection.transaction():
            await move.directory.connection.execute("SELECT ao_lock_holds($1)", tenant)
            await _check_free(move)
            if there.name != SHARED:
                # Before anything of it can be noted there: its audit has a chain there from now on, and whoever places a
                # hold tells it.
                await move.directory.connection.execute(
                    "INSERT INTO tenant_stays (tenant, home) VALUES ($1, $2) ON CONFLICT DO NOTHING", tenant, there.name
                )
            async with there.connection.transaction():
                await bring_kept(move, there)
            await move.note(move.directory, "tenant.move_begin", there.name)
        await here.connection.execute(
            "INSERT INTO tenant_moves (tenant, state, other) VALUES ($1, 'leaving', $2)", tenant, there.name
        )
    await move.tell(Step(point="marked"))
    await guard(here, tenant)
    await move.tell(Step(point="guarded"))


async def abort_move(auth: AuthContext, tenant: TenantId, places: Places, *, tell: Tell) -> Report:
    """Take back a move that has not come to its switch; the tenant works as before, all along.

    Raises:
        Conflict: there is none, or the tenant has left already.
    """
    async with moving(auth, tenant, places, lambda _: tuple(places.dsns), tell) as move:
        here = move.ends[await move.home()]
        standing = await move.standing(here)
        if standing is None or standing.state != "leaving":
            raise Conflict(f"no move of {tenant} is to be aborted; where it lives, `agentos tenant move {tenant}` says")
        there = move.ends[standing.other]
        # Should this be killed and the move be gone on with, then from the beginning: what comes now is not noted.
        await remember(move, here, {})
        await unguard(here, tenant)
        await _clear(move, there)
        await here.connection.execute("DELETE FROM tenant_changes WHERE tenant = $1", tenant)
        async with move.directory.connection.transaction():
            await move.directory.connection.execute("SELECT ao_lock_holds($1)", tenant)
            await _forget_stay(move, there)
            await move.note(move.directory, "tenant.move_abort", there.name)
        await here.connection.execute("DELETE FROM tenant_moves WHERE tenant = $1", tenant)
        return Report(tenant=tenant, source=here.name, to=here.name, done=f"{tenant} stays in {here.name}")


async def _forget_stay(move: Move, there: End) -> None:
    """Where it never lived, nothing of it is to be looked for. Where it did before, its audit has a chain."""
    if there.name == SHARED:
        return
    if await there.connection.fetchval("SELECT 1 FROM audit_heads WHERE tenant_id = $1", move.tenant):
        # Its rules, which were not in force while it arrived.
        async with there.connection.transaction():
            await bring_kept(move, there)
        return
    await forget_kept(move, there)
    await move.directory.connection.execute(
        "DELETE FROM tenant_stays WHERE tenant = $1 AND home = $2", move.tenant, there.name
    )


async def clear_remains(
    auth: AuthContext, tenant: TenantId, places: Places, *, tell: Tell, grace: timedelta = GRACE
) -> Report:
    """Remove what a move has left behind, but for the audit.

    Raises:
        Conflict: there is nothing to clear, or it has not been there for `grace`.
    """
    async with moving(auth, tenant, places, lambda _: tuple(places.dsns), tell) as move:
        home = await move.home()
        for end in move.ends.values():
            standing = await move.standing(end)
            if end.name == home or standing is None or standing.state != "left":
                continue
            if standing.for_s < grace.total_seconds():
                raise Conflict(
                    f"{tenant} left {end.name!r} {standing.for_s / 3600:.1f} hours ago; remains are kept for "
                    f"{grace.total_seconds() / 3600:.0f} hours. Wait, or give --grace-hours 0"
                )
            # Until every router has heard of it, the mark is what refuses them.
            await asyncio.sleep(max(0.0, homes.HEARD_S - standing.for_s))
            await _clear(move, end)
            await unguard(end, tenant)
            await end.connection.execute("DELETE FROM tenant_changes WHERE tenant = $1", tenant)
            async with move.directory.connection.transaction():
                await move.note(move.directory, "tenant.move_clear", end.name)
            await end.connection.execute("DELETE FROM tenant_moves WHERE tenant = $1", tenant)
            return Report(tenant=tenant, source=end.name, to=home, done=f"nothing of {tenant} is left in {end.name}")
        raise Conflict(f"there are no remains of {tenant} to clear; it lives in {home!r}")


async def _clear(move: Move, end: End) -> None:
    """Everything of the tenant's that moves, in `end`."""
    for table in reversed(TABLES):
        while rows := await end.clear(move.tenant, table):
            await move.tell(Step(point="cleared", table=table.name, rows=rows))
    await end.connection.execute("DELETE FROM queue_turns WHERE tenant_id = $1", move.tenant)
    if end.name != SHARED:
        await end.connection.execute("DELETE FROM tenants WHERE tenant_id = $1", move.tenant)
        await end.connection.execute("DELETE FROM tenant_copies WHERE tenant = $1", move.tenant)
    await end.connection.execute("DELETE FROM tenant_moves WHERE tenant = $1 AND state = 'arriving'", move.tenant)


class Plan(Struct, frozen=True, kw_only=True):
    """What a move would be about."""

    tenant: str
    home: str
    to: str
    rows: dict[str, int]
    compare_s: float
    """How long it takes to compare, which the tenant's writers wait for."""
    remarks: tuple[str, ...]


async def plan_move(auth: AuthContext, tenant: TenantId, to: str | None, places: Places) -> Plan:
    """Look, and change nothing."""

    async def silent(_: Step) -> None:
        pass

    wanted = () if to is None else (to,)
    async with moving(auth, tenant, places, lambda home: tuple(dict.fromkeys((home, *wanted))), silent) as move:
        home = await move.home()
        here = move.ends[home]
        until = await here.connection.fetchval("SELECT ao_now() - $1::interval", SETTLES)
        settled = await here.settled(tenant, until) if to is not None else {}
        began = asyncio.get_running_loop().time()
        sums = await here.sums(tenant, until) if to is not None else {}
        compare_s = asyncio.get_running_loop().time() - began
        remarks = [
            f"in {end.name!r} it is {standing.state}, other {standing.other!r}"
            for end in move.ends.values()
            if (standing := await move.standing(end)) is not None
        ]
        rows = {name: one.plus(settled.get(name, Sum(0, "0"))).rows for name, one in sums.items()}
        return Plan(
            tenant=tenant, home=home, to=to or home, rows=rows, compare_s=round(compare_s, 3), remarks=tuple(remarks)
        )
