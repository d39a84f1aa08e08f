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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

import asyncpg
import msgspec
from msgspec import Struct

from adapters.postgres import homes
from adapters.postgres.errors import translated
from adapters.postgres.move_guard import guard, unguard
from adapters.postgres.move_link import End, Sum, open_end, typed
from adapters.postgres.move_tables import BY_NAME, COUNTERS, SHARED, TABLES, Moved, changed_keys, quoted
from adapters.postgres.signals import CHANNEL, QUEUE, payloads
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound, Unavailable
from ports.ids import TenantId, is_tenant_id, minted

FREEZE_S: Final = 2.0
"""How long the tenant's writers may wait at the end."""
GRACE: Final = timedelta(days=1)
"""How long what was left behind is kept at least, unless told otherwise."""
_NOTED: Final = 500
"""Changes that are copied at a time."""
_LITTLE: Final = 200
"""So few changes are left to the end."""
_STANDS_STILL_S: Final = 1.0
"""Beyond what its writers may wait, the database itself takes the switch back."""
_LOCK_MS: Final = 500
"""How long the switch waits for the writers there are; who comes meanwhile waits behind it."""
_SETTLES: Final = timedelta(seconds=60)
"""No transaction is as long as that: what was written earlier is there, and stays as it is."""
_SWITCHES: Final = 20
_AGAIN_S: Final = 0.25

Point: TypeAlias = Literal[
    "marked", "guarded", "copied", "caught_up", "frozen", "compared", "written", "left", "directed", "opened", "cleared"
]


class Step(Struct, frozen=True, kw_only=True):
    """How far it is."""

    point: Point
    table: str = ""
    rows: int = 0
    seconds: float = 0.0


class Report(Struct, frozen=True, kw_only=True):
    tenant: str
    source: str
    to: str
    done: str
    """In words."""
    rows: dict[str, int] = {}
    checksums: dict[str, str] = {}
    frozen_s: float = 0.0
    attempts: int = 0
    """Switches that were begun."""


Tell: TypeAlias = Callable[[Step], Awaitable[None]]


class Places(Struct, frozen=True, kw_only=True):
    """Where tenants may live, with the owner's DSN of each; `shared` among them."""

    dsns: Mapping[str, str]

    def dsn(self, home: str) -> str:
        if home not in self.dsns:
            raise InvalidArgument(f"there is no home {home!r}; there are {sorted(self.dsns)}, see AGENTOS_HOMES")
        return self.dsns[home]

    def __repr__(self) -> str:
        return f"Places({sorted(self.dsns)})"


class Standing(Struct, frozen=True, kw_only=True):
    """What a database says of a tenant's move."""

    state: Literal["arriving", "leaving", "left"]
    other: str
    for_s: float
    """How long ago it left; 0 before."""


class Move:
    """One move under way: nobody else moves this tenant meanwhile."""

    def __init__(
        self, auth: AuthContext, tenant: TenantId, directory: End, ends: Mapping[str, End], tell: Tell
    ) -> None:
        self.auth = auth
        self.tenant = tenant
        self.directory = directory
        self.ends = ends
        self.tell = tell

    async def home(self) -> str:
        """Where the directory says that it lives; raises `NotFound` for nobody."""
        row = await self.directory.connection.fetchrow(
            "SELECT h.home FROM tenants t LEFT JOIN tenant_homes h ON h.tenant = t.tenant_id WHERE t.tenant_id = $1",
            self.tenant,
        )
        if row is None:
            raise NotFound(f"there is no tenant {self.tenant!r}")
        return row["home"] or SHARED

    async def standing(self, end: End) -> Standing | None:
        row = await end.connection.fetchrow(
            "SELECT state, other, coalesce(extract(epoch FROM ao_now() - left_at), 0)::float8 AS for_s FROM tenant_moves "
            "WHERE tenant = $1",
            self.tenant,
        )
        return None if row is None else msgspec.convert(dict(row), Standing)

    async def note(self, end: End, action: str, about: str) -> None:
        """In the audit of the shared database, in the caller's transaction."""
        await end.connection.execute(
            "INSERT INTO audit_log (tenant_id, namespace, actor_tenant, principal, action, subject, correlation_id) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7)",
            self.tenant,
            self.auth.namespace,
            self.auth.actor_tenant,
            self.auth.principal,
            action,
            f"{self.tenant}@{about}",
            self.auth.trace.correlation_id,
        )


@asynccontextmanager
async def _moving(
    auth: AuthContext, tenant: TenantId, places: Places, names: Callable[[str], tuple[str, ...]], tell: Tell
) -> AsyncIterator[Move]:
    """`names` says which homes are needed beside the directory, given the present one."""
    auth.require("admin:platform")
    if not is_tenant_id(tenant):
        raise NotFound(f"there is no tenant {tenant!r}")
    with translated():
        async with AsyncExitStack() as stack:
            directory = await stack.enter_async_context(open_end(SHARED, places.dsn(SHARED)))
            # Of the session: it ends with the connection at the latest.
            alone = "SELECT pg_try_advisory_lock(174487341, hashtext($1))"
            if not await directory.connection.fetchval(alone, tenant):
                raise Conflict(f"another move of {tenant} is under way")
            ends: dict[str, End] = {}
            move = Move(auth, tenant, directory, ends, tell)
            for name in names(await move.home()):
                ends[name] = await stack.enter_async_context(open_end(name, places.dsn(name)))
            yield move


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
    async with _moving(auth, tenant, places, lambda home: tuple(dict.fromkeys((home, to))), tell) as move:
        home = await move.home()
        there = move.ends[to]
        if home == to:
            if (standing := await move.standing(there)) is None or standing.state != "arriving":
                return Report(tenant=tenant, source=home, to=to, done=f"{tenant} lives in {to} already")
            await _open(move, there)
            return Report(tenant=tenant, source=standing.other, to=to, done=f"{tenant} lives in {to}")
        here = move.ends[home]
        standing = await move.standing(here)
        if standing is not None and standing.other != to:
            raise Conflict(f"{tenant} is on its way to {standing.other!r}; finish or abort that first")
        if standing is not None and standing.state == "left":
            await _arrive(move, here, there)
            return Report(tenant=tenant, source=home, to=to, done=f"{tenant} lives in {to}")
        await there.make_stages()
        await _begin(move, here, there)
        await _copy(move, here, there)
        report = await _switch(move, here, there, freeze_s)
        await _arrive(move, here, there)
        return report


_KEPT: Final = """
SELECT EXISTS (SELECT FROM legal_holds WHERE tenant_id = $1 AND released_at IS NULL)
    OR EXISTS (SELECT FROM retention_rules WHERE tenant_id = $1)
    OR EXISTS (SELECT FROM subject_tombstones WHERE tenant_id = $1 AND status = 'erasing')
"""


async def _check_free(move: Move) -> None:
    if await move.directory.connection.fetchval(_KEPT, move.tenant):
        raise Conflict(
            f"{move.tenant} has legal holds, retention of its own or an erasing under way; a home knows none of it"
        )


async def _begin(move: Move, here: End, there: End) -> None:
    tenant = move.tenant
    if await move.directory.connection.fetchval("SELECT 1 FROM tenant_tombstones WHERE tenant_id = $1", tenant):
        raise Conflict(f"{tenant} is being removed; it does not move any more")
    if there.name != SHARED:
        await _check_free(move)
    if await move.standing(there) is None:
        for table in TABLES:
            if await there.reach(tenant, table, None) is not None:
                raise Conflict(f"{there.name!r} has rows of {tenant} in {table.name!r} already; see who wrote them")
        await there.connection.execute(
            "INSERT INTO tenant_moves (tenant, state, other) VALUES ($1, 'arriving', $2)", tenant, here.name
        )
    elif (await move.standing(there)) != Standing(state="arriving", other=here.name, for_s=0.0):
        raise Conflict(f"{there.name!r} has remains of {tenant}; clear them first with `agentos tenant move --clear`")
    if await move.standing(here) is None:
        async with move.directory.connection.transaction():
            if there.name != SHARED:
                # Whoever places a hold asks under the same lock whether the tenant stays elsewhere.
                await move.directory.connection.execute("SELECT ao_lock_holds($1)", tenant)
                await _check_free(move)
                # Before anything of it can be noted there: its audit has a chain there from now on.
                await move.directory.connection.execute(
                    "INSERT INTO tenant_stays (tenant, home) VALUES ($1, $2) ON CONFLICT DO NOTHING", tenant, there.name
                )
            await move.note(move.directory, "tenant.move_begin", there.name)
        await here.connection.execute(
            "INSERT INTO tenant_moves (tenant, state, other) VALUES ($1, 'leaving', $2)", tenant, there.name
        )
    await move.tell(Step(point="marked"))
    await guard(here, tenant)
    await move.tell(Step(point="guarded"))


async def _copy(move: Move, here: End, there: End) -> None:
    found = await here.connection.fetchval("SELECT reached FROM tenant_moves WHERE tenant = $1", move.tenant)
    reached: dict[str, list[str] | None] = msgspec.json.decode(found)
    for table in TABLES:
        if table.name in COUNTERS or (table.name in reached and reached[table.name] is None):
            continue
        after = reached.get(table.name)
        while (upto := await here.reach(move.tenant, table, after)) is not None:
            copied = await here.read(table, _between(move.tenant, table, after, upto))
            async with there.connection.transaction():
                await there.write(table, copied)
            after = reached[table.name] = upto
            await _remember(move, here, reached)
            await move.tell(Step(point="copied", table=table.name, rows=table.rows))
        reached[table.name] = None
        await _remember(move, here, reached)


def _between(tenant: TenantId, table: Moved, after: list[str] | None, upto: list[str]) -> str:
    keys = ", ".join(f"t.{column}" for column in table.columns)
    low = f" AND ({keys}) > ({typed(table, after)})" if after is not None else ""
    return f"t.tenant_id = {quoted(tenant)} AND ({keys}) <= ({typed(table, upto)}){low}"


async def _remember(move: Move, here: End, reached: Mapping[str, list[str] | None]) -> None:
    await here.connection.execute(
        "UPDATE tenant_moves SET reached = $2::json WHERE tenant = $1",
        move.tenant,
        msgspec.json.encode(reached).decode(),
    )


async def _catch_up(move: Move, here: End, there: End) -> None:
    """Until little is left. That the tenant writes faster than this reads would show, and stops nobody."""
    while True:
        async with here.connection.transaction(), there.connection.transaction():
            noted = await _bring(move, here, there)
        await move.tell(Step(point="caught_up", rows=noted))
        if noted < _LITTLE:
            return


async def _bring(move: Move, here: End, there: End) -> int:
    """Some of what was noted, in transactions of the caller's: theirs must be committed before ours. How many changes."""
    rows = await here.connection.fetch(
        "DELETE FROM tenant_changes c USING (SELECT n FROM tenant_changes WHERE tenant = $1 ORDER BY n LIMIT $2) g "
        "WHERE c.tenant = $1 AND c.n = g.n RETURNING c.name, c.key::text AS key",
        move.tenant,
        _NOTED,
    )
    changed = changed_keys((row["name"], msgspec.json.decode(row["key"])) for row in rows)
    for name, keys in changed.items():
        table = BY_NAME[name]
        await there.write(table, await here.read_keys(move.tenant, table, keys))
    for name, keys in reversed(changed.items()):
        await there.remove(move.tenant, BY_NAME[name], keys)
    return len(rows)


async def _switch(move: Move, here: End, there: End, freeze_s: float) -> Report:
    loop = asyncio.get_running_loop()
    for attempt in range(1, _SWITCHES + 1):
        await _catch_up(move, here, there)
        # The larger part, while everybody works.
        until = await here.connection.fetchval("SELECT ao_now() - $1::interval", _SETTLES)
        settled = await _equal(move, here, there, here.settled(move.tenant, until), there.settled(move.tenant, until))
        await _catch_up(move, here, there)
        began = loop.time()
        try:
            async with asyncio.timeout(freeze_s):
                sums = await _switched(move, here, there, until, freeze_s)
        except (TimeoutError, asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            # Both transactions are rolled back, and the tenant went on. Unless it was told to have left just then.
            if (standing := await move.standing(here)) is not None and standing.state == "left":
                return Report(tenant=move.tenant, source=here.name, to=there.name, done="switched", attempts=attempt)
            await asyncio.sleep(_AGAIN_S * attempt)
            continue
        frozen = loop.time() - began
        total = {name: one.plus(settled.get(name, Sum(0, "0"))) for name, one in sums.items()}
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
    found, copied = await asyncio.gather(ours, theirs)
    wrong = [
        f"{name} ({found[name].rows} rows, {copied[name].rows} there)" for name in found if found[name] != copied[name]
    ]
    if wrong:
        raise Conflict(
            f"what was copied to {there.name!r} differs in {', '.join(wrong)}; {move.tenant} works as before, in "
            f"{here.name!r}. Abort this move with `agentos tenant move --abort` and begin anew"
        )
    return found


async def _switched(move: Move, here: End, there: End, until: datetime, freeze_s: float) -> dict[str, Sum]:
    """`until` is when rows had settled that were compared before."""
    tenant = move.tenant
    async with here.connection.transaction():
        # Should we stand still, the database ends the wait: nobody else could.
        at_most_ms = round((freeze_s + _STANDS_STILL_S) * 1000)
        await here.connection.execute(
            f"SET LOCAL lock_timeout = {_LOCK_MS}; SET LOCAL transaction_timeout = {at_most_ms}"
        )
        # Waits for the writers there are; see `ao_move_guard`.
        await here.connection.execute(f"SELECT pg_advisory_xact_lock(174487340, hashtext({quoted(tenant)}))")
        await move.tell(Step(point="frozen"))
        async with there.connection.transaction():
            while await _bring(move, here, there):
                pass
            for name in COUNTERS:
                table = BY_NAME[name]
                await there.connection.execute(f"DELETE FROM {name} WHERE tenant_id = {quoted(tenant)}")  # noqa: S608
                await there.write(table, await here.read(table, f"t.tenant_id = {quoted(tenant)}"))
            await _bring_beside(move, here, there)
            ours = await _equal(move, here, there, here.sums(tenant, until), there.sums(tenant, until))
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
    return ours


async def _bring_beside(move: Move, here: End, there: End) -> None:
    """The tenant's line of the directory, by which its limits are known, and the leases of workers that have runs of it.

    Until such a lease ends, nobody there takes the run over: its worker may be in the middle of a tool's call, and has
    until then heard that it is over.
    """
    if there.name != SHARED:
        row = await move.directory.connection.fetchrow(
            "SELECT tenant_id, name, status, entitlements::text, created_at FROM tenants WHERE tenant_id = $1",
            move.tenant,
        )
        assert row is not None, "who moves is there"
        await there.connection.execute(
            "INSERT INTO tenants (tenant_id, name, status, entitlements, created_at) VALUES ($1, $2, $3, $4::json, $5) "
            "ON CONFLICT (tenant_id) DO UPDATE SET name = excluded.name, status = excluded.status, "
            "entitlements = excluded.entitlements",
            *row,
        )
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


async def _arrive(move: Move, here: End, there: End) -> None:
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
    await _open(move, there)


async def _open(move: Move, there: End) -> None:
    async with there.connection.transaction():
        await there.connection.execute(
            "INSERT INTO queue_turns AS q (tenant_id, vtime, next_at, served_at) "
            "SELECT $1::text, v.last_value, ao_now(), ao_now() FROM queue_vtime v "
            "ON CONFLICT (tenant_id) DO UPDATE SET next_at = ao_now(), parked = false",
            move.tenant,
        )
        await there.connection.execute("DELETE FROM tenant_moves WHERE tenant = $1 AND state = 'arriving'", move.tenant)
    await there.connection.execute("SELECT pg_notify($1, $2)", CHANNEL, QUEUE)
    await move.tell(Step(point="opened"))


async def abort_move(auth: AuthContext, tenant: TenantId, places: Places, *, tell: Tell) -> Report:
    """Take back a move that has not come to its switch; the tenant works as before, all along.

    Raises:
        Conflict: there is none, or the tenant has left already.
    """
    async with _moving(auth, tenant, places, lambda _: tuple(places.dsns), tell) as move:
        here = move.ends[await move.home()]
        standing = await move.standing(here)
        if standing is None or standing.state != "leaving":
            raise Conflict(f"no move of {tenant} is to be aborted; where it lives, `agentos tenant move {tenant}` says")
        there = move.ends[standing.other]
        # Should this be killed and the move be gone on with, then from the beginning: what comes now is not noted.
        await _remember(move, here, {})
        await unguard(here, tenant)
        await _clear(move, there)
        await here.connection.execute("DELETE FROM tenant_changes WHERE tenant = $1", tenant)
        async with move.directory.connection.transaction():
            await move.note(move.directory, "tenant.move_abort", there.name)
        await here.connection.execute("DELETE FROM tenant_moves WHERE tenant = $1", tenant)
        return Report(tenant=tenant, source=here.name, to=here.name, done=f"{tenant} stays in {here.name}")


async def clear_remains(
    auth: AuthContext, tenant: TenantId, places: Places, *, tell: Tell, grace: timedelta = GRACE
) -> Report:
    """Remove what a move has left behind, but for the audit.

    Raises:
        Conflict: there is nothing to clear, or it has not been there for `grace`.
    """
    async with _moving(auth, tenant, places, lambda _: tuple(places.dsns), tell) as move:
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
    async with _moving(auth, tenant, places, lambda home: tuple(dict.fromkeys((home, *wanted))), silent) as move:
        home = await move.home()
        here = move.ends[home]
        until = await here.connection.fetchval("SELECT ao_now() - $1::interval", _SETTLES)
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
