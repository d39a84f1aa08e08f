"""R12: one pooled connection, several tenants, and everything that can go wrong between them.

    python -m tests.faults.bleed --rounds 10000

After each accident the same connection, or the one that took its place, is asked whose rows it sees.
"""

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import anyio
import anyio.lowlevel
import asyncpg
import msgspec

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.statements import Statement, statement
from ports.errors import AgentOSError, Conflict
from ports.ids import TenantId
from tests.faults.reconcile import Record, record, told
from tests.support.postgres import cloned

TENANTS: Final = tuple(TenantId(f"tnt_{name}") for name in ("acme", "globex", "initech"))
INSERT: Final = statement(
    "INSERT INTO memory_items (tenant_id, namespace, key, value, metadata, words, updated_at) "
    "VALUES (:tenant, 'default', 'x', '{}', '{}', 0, now())"
)
SEEN: Final = statement("SELECT tenant_id FROM memory_items")
BROKEN: Final = statement("SELECT 1 / 0")

_BOUND: Final = statement("SELECT current_setting('app.tenant_id', true) AS tenant")
_SLOW: Final = statement("SELECT pg_sleep(1)")
_IMPATIENT: Final = statement("SET LOCAL statement_timeout = 1")
_MARK: Final = statement("SAVEPOINT here")
_BACK: Final = statement("ROLLBACK TO SAVEPOINT here")
_BIND: Final = {tenant: statement(f"SET LOCAL app.tenant_id = '{tenant}'") for tenant in TENANTS}
_BIND_SESSION: Final = {tenant: statement(f"SET SESSION app.tenant_id = '{tenant}'") for tenant in TENANTS}

ACCIDENTS: Final = {
    "none": 8,
    "error": 4,
    "statement fails": 4,
    "statement times out": 2,
    "savepoint": 4,
    "savepoint of another": 4,
    "bound to another": 4,
    "session bound to another": 4,
    "cancelled": 2,
    "error while cancelled": 2,
    "cancelled in a statement": 1,
    "out of time": 1,
}
"""With their weights. After the last four the connection is given up, and the next costs a handshake."""
_BORROWERS: Final = 4
_REFUSED: Final = frozenset({"error", "statement fails", "statement times out", "error while cancelled", "out of time"})


async def populate(database: Database) -> None:
    for tenant in TENANTS:
        async with database.transaction(tenant) as transaction:
            await transaction.rows(INSERT, {"tenant": tenant})


async def bleed(database: Database, rounds: int, seed: int) -> Record:
    """Whoever borrows the connection sees its own tenant's rows, and none when it is bound to nobody.

    `database` has one connection and was populated.
    """
    dice = random.Random(seed)  # noqa: S311 - repeats the same accidents each time
    drawn = dice.choices(tuple(ACCIDENTS), tuple(ACCIDENTS.values()), k=rounds)
    waiting = iter(drawn)
    strays: list[str] = []

    async def borrow() -> None:
        for accident in waiting:
            own = dice.choice(TENANTS)
            other = dice.choice([tenant for tenant in TENANTS if tenant != own])
            stray = await _has_accident(database, accident, own, other)
            async with database.transaction() as transaction:
                stray |= await transaction.rows(SEEN, {}) != []
                stray |= (await transaction.rows(_BOUND, {}))[0]["tenant"] not in {None, ""}
            if stray:
                strays.append(accident)

    async with asyncio.TaskGroup() as group:
        for _ in range(_BORROWERS):
            group.create_task(borrow())
    happened = ", ".join(f"{accident}={count}" for accident, count in sorted(Counter(drawn).items()))
    return record("R12", {"ctx_leaks": len(strays)}, rounds=rounds, accidents=happened, examples=strays[:5])


async def _has_accident(database: Database, accident: str, own: TenantId, other: TenantId) -> bool:
    """Whether a transaction of `own` sees, before and after the accident, anything but its own row."""
    stray = False
    try:
        with anyio.CancelScope() as scope:
            async with database.transaction(own) as transaction:
                stray |= await _sees(transaction) != [own]
                await _happen(accident, scope, transaction, other)
                if accident in {"none", "savepoint", "savepoint of another"}:
                    stray |= await _sees(transaction) != [own]
    except (AgentOSError, TimeoutError):
        assert accident in _REFUSED, accident
    return stray


async def _sees(transaction: Transaction) -> list[TenantId]:
    return [row["tenant_id"] for row in await transaction.rows(SEEN, {})]


def _said(accident: str, other: TenantId) -> tuple[Statement, ...]:
    return {
        "statement fails": (BROKEN,),
        "statement times out": (_IMPATIENT, _SLOW),
        "savepoint of another": (_MARK, _BIND[other], _BACK),
        "bound to another": (_BIND[other],),
        "session bound to another": (_BIND_SESSION[other],),
    }.get(accident, ())


async def _happen(accident: str, scope: anyio.CancelScope, transaction: Transaction, other: TenantId) -> None:
    async def said(*statements: Statement) -> None:
        for one in statements:
            await transaction.rows(one, {})

    await said(*_said(accident, other))
    match accident:
        case "error":
            raise Conflict("as it happens")
        case "savepoint":
            await said(_MARK)
            with suppress(asyncpg.PostgresError):
                await said(BROKEN)
            await said(_BACK)
        case "cancelled":
            scope.cancel()
        case "error while cancelled":
            scope.cancel()
            raise Conflict("as it happens")
        case "cancelled in a statement":
            async with anyio.create_task_group() as group:
                group.start_soon(said, _SLOW)
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        case "out of time":
            async with asyncio.timeout(0.001):
                await said(_SLOW)


async def _main(rounds: int, seed: int) -> Record:
    async with cloned() as clone, open_database(PostgresConfig(dsn=clone.app, pool_size=1)) as database:
        await populate(database)
        return await bleed(database, rounds, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.bleed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000, metavar="N", help="accidents (10000)")
    parser.add_argument("--seed", type=int, metavar="N", help="repeats the choices of an earlier run")
    given = parser.parse_args(arguments)
    seed = random.randrange(1_000_000) if given.seed is None else given.seed  # noqa: S311 - no secret
    sys.stderr.write(f"seed {seed}\n")
    found = asyncio.run(_main(given.rounds, seed))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    sys.stdout.flush()
    sys.stderr.write(told(found) + "\n")
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
