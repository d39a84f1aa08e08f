"""The moment at which a tenant leaves one database for another, and what follows from it. For `adapters.postgres.move`."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import asyncpg

from adapters.postgres.move_copy import bring, catch_up
from adapters.postgres.move_job import SETTLES, Move, Report, Step
from adapters.postgres.move_kept import bring_kept, look_again
from adapters.postgres.move_link import End, Sum
from adapters.postgres.move_tables import BY_NAME, COUNTERS, SHARED, quoted
from adapters.postgres.signals import CHANNEL, QUEUE, payloads
from ports.errors import Conflict, Unavailable
from ports.ids import minted

STANDS_STILL_S: Final = 1.0
"""Beyond what its writers may wait, the database itself takes the switch back."""
_LOCK_MS: Final = 500
"""How long the switch waits for the writers there are; who comes meanwhile waits behind it."""
_SWITCHES: Final = 20
_AGAIN_S: Final = 0.25
"""Longer by as much after each switch that was taken back: whoever waited for it goes on meanwhile."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One switch that is tried."""

    until: datetime
    """When rows had settled that were compared before."""
    freeze_s: float
    sums: dict[str, Sum] = field(default_factory=dict)
    """Of the others, once they are compared: known also where nobody heard of the commit."""


async def switch(move: Move, here: End, there: End, freeze_s: float) -> Report:
    loop = asyncio.get_running_loop()
    for attempt in range(1, _SWITCHES + 1):
        await catch_up(move, here, there)
        # The larger part, while everybody works.
        until = await here.connection.fetchval("SELECT ao_now() - $1::interval", SETTLES)
        settled = await _equal(move, here, there, here.settled(move.tenant, until), there.settled(move.tenant, until))
        await catch_up(move, here, there)
        began = loop.time()
        trial = _Trial(until, freeze_s)
        try:
            async with asyncio.timeout(freeze_s):
                await _switched(move, here, there, trial)
        except (TimeoutError, asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            # Taken back in both, and the tenant went on. Unless the answer to the commit was on its way.
            if (standing := await move.standing(here)) is None or standing.state != "left":
                await asyncio.sleep(_AGAIN_S * attempt)
                continue
        frozen = loop.time() - began
        total = {name: one.plus(settled.get(name, Sum(0, "0"))) for name, one in trial.sums.items()}
        await move.tell(Step(point="left", seconds=frozen))
        return Report(
            tenant=move.tenant,
            source=here.name,
            to=there.name,
            done=f"{move.tenant} lives in {there.name}",
            rows={name: one.rows for name, one in total.items()},
            checksums={name: one.checksum for name, one in total.items()},
            frozen_s=round(frozen, 3),
            attempts=attempt,
        )
    raise Unavailable(
        f"the switch did not come to its end within {freeze_s} s, {_SWITCHES} times; {move.tenant} works as before. See "
        "--dry-run for how long the comparison takes, allow more with --freeze-seconds, or wait for a quieter hour"
    )


async def _equal(
    move: Move, here: End, there: End, ours: Awaitable[dict[str, Sum]], theirs: Awaitable[dict[str, Sum]]
) -> dict[str, Sum]:
    """What both found; raises `Conflict` where that is not the same."""
    # Both to their end, whatever becomes of the other: a connection with a query under way can't be rolled back.
    both = await asyncio.gather(ours, theirs, return_exceptions=True)
    for one in both:
        if isinstance(one, BaseException):
            raise one
    found, copied = (one for one in both if not isinstance(one, BaseException))
    wrong = [
        f"{name} ({found[name].rows} rows, {copied[name].rows} there)" for name in found if found[name] != copied[name]
    ]
    if wrong:
        raise Conflict(
            f"what was copied to {there.name!r} differs in {', '.join(wrong)}; {move.tenant} works as before, in "
            f"{here.name!r}. Abort this move with `agentos tenant move {move.tenant} --abort` and begin anew"
        )
    return found


async def _switched(move: Move, here: End, there: End, trial: _Trial) -> None:
    tenant = move.tenant
    async with here.connection.transaction():
        # Should we stand still, the database ends the wait: nobody else could.
        at_most_ms = round((trial.freeze_s + STANDS_STILL_S) * 1000)
        await here.connection.execute(
            f"SET LOCAL lock_timeout = {_LOCK_MS}; SET LOCAL transaction_timeout = {at_most_ms}"
        )
        # Waits for the writers there are; see `ao_move_guard`.
        await here.connection.execute(f"SELECT pg_advisory_xact_lock(174487340, hashtext({quoted(tenant)}))")
        await move.tell(Step(point="frozen"))
        async with there.connection.transaction():
            while await bring(move, here, there):
                pass
            for name in COUNTERS:
                table = BY_NAME[name]
                await there.connection.execute(f"DELETE FROM {name} WHERE tenant_id = {quoted(tenant)}")  # noqa: S608
                await there.write(table, await here.read(table, f"t.tenant_id = {quoted(tenant)}"))
            await _bring_beside(move, here, there)
            sums = await _equal(move, here, there, here.sums(tenant, trial.until), there.sums(tenant, trial.until))
            trial.sums.update(sums)
            await move.tell(Step(point="compared"))
        await move.tell(Step(point="written"))
        await here.connection.execute(
            f"UPDATE tenant_moves SET state = 'left', left_at = ao_now() WHERE tenant = {quoted(tenant)}"  # noqa: S608
        )
        # They would still be looked at with each lease here.
        for name in ("queue_turns", "queue_messages"):
            await here.connection.execute(f"DELETE FROM {name} WHERE tenant_id = {quoted(tenant)}")  # noqa: S608
        if here.name == SHARED:
            await _direct(move, here, there.name)


async def _bring_beside(move: Move, here: End, there: End) -> None:
    """The tenant's line of the directory, by which its limits are known, and the leases of workers that have runs of it.

    Until such a lease ends, nobody there takes the run over: its worker may be in the middle of a tool's call, and has
    until then heard that it is over.
    """
    if there.name != SHARED:
        await _bring_line(move, there)
        await there.connection.execute(
            "INSERT INTO tenant_copies (tenant) VALUES ($1) ON CONFLICT DO NOTHING", move.tenant
        )
    rows = await here.connection.fetch(
        "SELECT DISTINCT w.id, w.lease_until - ao_now() AS left FROM runs r JOIN workers w ON w.id = r.worker_id "
        "WHERE r.tenant_id = $1 AND r.status = 'running' AND w.lease_until > ao_now()",
        move.tenant,
    )
    for worker in rows:
        await there.connection.execute(
            "INSERT INTO workers AS w (id, lease_until) VALUES ($1, ao_now() + $2) "
            "ON CONFLICT (id) DO UPDATE SET lease_until = greatest(w.lease_until, excluded.lease_until)",
            worker["id"],
            worker["left"],
        )


async def _bring_line(move: Move, there: End) -> None:
    """Whoever changes the line meanwhile waits until it is copied."""
    async with move.directory.connection.transaction():
        row = await move.directory.connection.fetchrow(
            "SELECT tenant_id, name, status, entitlements::text, created_at FROM tenants WHERE tenant_id = $1 FOR SHARE",
            move.tenant,
        )
        assert row is not None, "who moves is there"
        await there.connection.execute(
            "INSERT INTO tenants (tenant_id, name, status, entitlements, created_at) VALUES ($1, $2, $3, $4::json, $5) "
            "ON CONFLICT (tenant_id) DO UPDATE SET name = excluded.name, status = excluded.status, "
            "entitlements = excluded.entitlements",
            *row,
        )


async def _direct(move: Move, end: End, to: str) -> None:
    """Tell everybody, in a transaction of the caller's."""
    if to == SHARED:
        await end.connection.execute("DELETE FROM tenant_homes WHERE tenant = $1", move.tenant)
    else:
        await end.connection.execute(
            "INSERT INTO tenant_homes (tenant, home) VALUES ($1, $2) "
            "ON CONFLICT (tenant) DO UPDATE SET home = excluded.home, since = ao_now()",
            move.tenant,
            to,
        )
    await move.note(end, "tenant.move", to)


async def arrive(move: Move, here: End, there: End) -> None:
    """What is left to do once the tenant has left."""
    if await move.home() != there.name:
        async with move.directory.connection.transaction():
            await _direct(move, move.directory, there.name)
    await move.tell(Step(point="directed"))
    # Whoever follows a run looks again, is refused, and goes on there.
    rows = await here.connection.fetch(
        "SELECT id FROM runs WHERE tenant_id = $1 AND status NOT IN ('succeeded', 'failed', 'cancelled')", move.tenant
    )
    for payload in payloads({minted("run", row["id"]) for row in rows}):
        await here.connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
    await open_up(move, there)


async def open_up(move: Move, there: End) -> None:
    if there.name != SHARED:
        # Who changed it after it was brought and before everybody was told has not copied it.
        await _bring_line(move, there)
    async with move.directory.connection.transaction(), there.connection.transaction():
        await move.directory.connection.execute("SELECT ao_lock_holds($1)", move.tenant)
        await look_again(move, there)
        await there.connection.execute(
            "INSERT INTO queue_turns AS q (tenant_id, vtime, next_at, served_at) "
            "SELECT $1::text, v.last_value, ao_now(), ao_now() FROM queue_vtime v "
            "ON CONFLICT (tenant_id) DO UPDATE SET next_at = ao_now(), parked = false",
            move.tenant,
        )
        await there.connection.execute("DELETE FROM tenant_moves WHERE tenant = $1 AND state = 'arriving'", move.tenant)
        # From here on its rules are in force.
        await bring_kept(move, there)
    await there.connection.execute("SELECT pg_notify($1, $2)", CHANNEL, QUEUE)
    await move.tell(Step(point="opened"))
