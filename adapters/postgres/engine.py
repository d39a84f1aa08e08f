"""Connections, transactions and the tenant they are bound to.

The ports of one process that are configured alike share one pool. Every statement runs in a transaction that is bound by
`SET LOCAL` to the tenants whose rows it may see: one, or those of a batch (ADR 0016). The binding is sent together with
BEGIN in one message and ends with the transaction, so that no connection goes back to the pool with somebody's identity.
Every call has a deadline of ours, because the driver has none: a stopped server would block for ever.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, cast
from weakref import WeakSet

import asyncpg
import msgspec
from msgspec import Struct

from adapters.postgres.errors import translated
from adapters.postgres.migrate import packaged, pending
from adapters.postgres.pool import Pool
from adapters.postgres.rows import Row
from adapters.postgres.signals import CHANNEL, Signals
from adapters.postgres.statements import Statement, constant
from ports.errors import Internal, InvalidArgument, Unavailable
from ports.ids import TenantId, is_tenant_id

# A call gives up after this, whatever it waits for: a connection, a lock, an answer.
CALL_SECONDS: Final = 4.5
CONNECT_SECONDS: Final = 3.0
_CLEANUP_SECONDS: Final = 1.0
_STATEMENTS: Final = 256
"""Prepared per connection at most."""

Connection: TypeAlias = asyncpg.Connection

SERVER_SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "agentos",
    "search_path": "agentos",
    "timezone": "UTC",
    "statement_timeout": "5000",
    "lock_timeout": "2000",
    "idle_in_transaction_session_timeout": "10000",
    "transaction_timeout": "15000",
    # Our statements are short; compiling them costs more than it saves.
    "jit": "off",
    # They find rows by index. A plan made while a table was empty may not do otherwise, because it is kept.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
}


class PostgresConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dsn: str
    """`postgresql://user:password@host:port/database`, of the role `ao_app`."""
    pool_size: int = 10
    """Connections at most; shared by the ports of this process that are configured alike."""
    homes: tuple[tuple[str, str], ...] = ()
    """Names and DSNs of databases that tenants may live in beside this one, see `adapters.postgres.homes`."""
    looks_for_moves: bool = False
    """Refuse tenants that have moved from this database when they are only read, too. Set where there are homes."""

    def __repr__(self) -> str:
        return f"PostgresConfig(dsn=…, pool_size={self.pool_size})"


class Transaction:
    """Statements inside one transaction, which begins with the first of them."""

    def __init__(self, connection: Connection, begin: str, posted: WeakSet[Connection]) -> None:
        """`begin` is what it is begun with; `posted` are the connections that know what is posted, see `post`."""
        self._connection = connection
        self._begin = begin
        self._posted = posted
        self.open = False
        self._untouched = True

    async def rows(self, statement: Statement, parameters: Mapping[str, Any]) -> Sequence[Row]:
        arguments = statement.arguments(parameters)
        if not self.open:
            await self._connection.execute(self._begin)
            self.open = True
        try:
            found = await self._connection.fetch(statement.sql, *arguments)
        except asyncpg.InvalidCachedStatementError:
            # A migration has changed a table since the statement was prepared, and the driver has now forgotten all that
            # were. Before the first statement nothing was done, so that it can begin again.
            if not self._untouched:
                raise
            await self._connection.execute("ROLLBACK")
            await self._connection.execute(self._begin)
            found = await self._connection.fetch(statement.sql, *arguments)
        self._untouched = False
        return cast("Sequence[Row]", found)  # a Record is a mapping in all but name

    async def post(self, statement: Statement, asks: str, *, wake: str) -> None:
        """All of this transaction, from its beginning to its commit, and then the wake-up of `wake`: in one message.

        For a statement that answers nothing, and whose only parameter is JSON. With four messages both sides would wait for
        a processor four times.
        """
        assert not self.open, "a transaction is posted whole"
        name = f"ao_post_{zlib.crc32(statement.sql.encode()):08x}"
        if self._connection not in self._posted:
            await self._connection.execute(f"PREPARE {name} (json) AS {statement.sql}")
            self._posted.add(self._connection)
        # The notification is a transaction by itself: inside the other one its lock would be in the way of all committers.
        posted = f"{self._begin}; EXECUTE {name} ({constant(asks)}); COMMIT"
        await self._connection.execute(f"{posted}; SELECT pg_notify({constant(CHANNEL)}, {constant(wake)})")

    async def row(self, statement: Statement, parameters: Mapping[str, Any]) -> Row | None:
        """The first row, or None."""
        found = await self.rows(statement, parameters)
        return found[0] if found else None


class Database:
    """One pool of connections and one line of wake-ups."""

    def __init__(self, config: PostgresConfig, *, flushed: bool = True) -> None:
        self._dsn = config.dsn
        # What a server waits for (its disk, a replica's) is its operator's to say; only less can be asked for here.
        self._settings = SERVER_SETTINGS if flushed else {**SERVER_SETTINGS, "synchronous_commit": "off"}
        self.pool = Pool(self._connect_prepared, size=config.pool_size, patience_s=CONNECT_SECONDS)
        self.signals = Signals(self._connect)
        self._posted: WeakSet[Connection] = WeakSet()
        self._checked = False
        self._checking = asyncio.Lock()
        self._looks_for_moves = config.looks_for_moves

    async def check(self) -> None:
        """Refuse a role that could see every tenant, and a database that is not migrated. Asks once."""
        async with self._checking:
            if not self._checked:
                with translated():
                    async with asyncio.timeout(CALL_SECONDS):
                        await _check_role_and_schema(self._connect)
                self._checked = True

    @asynccontextmanager
    async def transaction(self, *tenants: TenantId) -> AsyncIterator[Transaction]:
        """A transaction that sees rows of `tenants` only; committed at the end, rolled back by any exception.

        With several it sees those tables only whose policies admit a batch.
        """
        begin = _begin(tenants, looks_for_moves=self._looks_for_moves)
        with translated():
            async with asyncio.timeout(CALL_SECONDS), self.pool.acquire() as connection:
                transaction = Transaction(connection, begin, self._posted)
                try:
                    yield transaction
                    if transaction.open:
                        await _commit(connection)
                except BaseException as error:
                    await _abandon(connection, interrupted=not isinstance(error, Exception))
                    raise

    async def once(self, statement: Statement, parameters: Mapping[str, Any]) -> Sequence[Row]:
        """One statement that is a transaction by itself: one round trip instead of three.

        It is bound to no tenant, so row-level security shows it nothing: for what a function of the schema's does in its
        own name, across tenants.
        """
        with translated():
            async with asyncio.timeout(CALL_SECONDS), self.pool.acquire() as connection:
                try:
                    found = await connection.fetch(statement.sql, *statement.arguments(parameters))
                except BaseException as error:
                    if not isinstance(error, asyncpg.PostgresError):
                        connection.terminate()  # as in `_abandon`: only the server's own word says that it is over
                    raise
        return cast("Sequence[Row]", found)

    async def close(self) -> None:
        await self.signals.close()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self.pool.close()
        except TimeoutError:
            # The server does not answer: the sockets close with the process.
            self.pool.terminate()

    async def _connect_prepared(self) -> Connection:
        connection = await self._connect()
        try:
            # JSON comes and goes as its text.
            for kind in ("json", "jsonb"):
                await connection.set_type_codec(kind, schema="pg_catalog", encoder=str, decoder=msgspec.json.decode)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _connect(self) -> Connection:
        return await asyncpg.connect(
            self._dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=CALL_SECONDS,
            server_settings=dict(self._settings),
            # All of ours are prepared once per connection, and stay.
            statement_cache_size=_STATEMENTS,
            max_cached_statement_lifetime=0,
        )


# Of this process, by event loop, configuration and purpose, with the number of ports that hold each.
_OPEN: Final[dict[tuple[int, PostgresConfig, str, bool], tuple[Database, int]]] = {}


@asynccontextmanager
async def open_database(config: PostgresConfig, *, apart: str = "", flushed: bool = True) -> AsyncIterator[Database]:
    """The database of `config`, shared with the other ports of this event loop; closed by the last of them.

    `apart` names a purpose that has a pool of its own. Unless `flushed`, no commit of that pool waits for the disk, and
    a crash of the server may forget it within the next moments: for what is only a hint.

    Raises:
        InvalidArgument: the role in the DSN could bypass row-level security.
        Unavailable: the database does not answer, or lacks migrations.
    """
    key = (id(asyncio.get_running_loop()), config, apart, flushed)
    database, holders = _OPEN.get(key) or (Database(config, flushed=flushed), 0)
    _OPEN[key] = (database, holders + 1)
    try:
        await database.check()
        yield database
    finally:
        database, holders = _OPEN.pop(key)
        if holders > 1:
            _OPEN[key] = (database, holders - 1)
        else:
            await database.close()


def _begin(tenants: Iterable[TenantId], *, looks_for_moves: bool) -> str:
    """One message: it can't happen that a transaction is open and not bound."""
    for tenant in tenants:
        if not is_tenant_id(tenant):
            raise InvalidArgument(f"{tenant!r} can't be a tenant's id")
    # Safe as a literal, and apart by spaces: `is_tenant_id` allows letters, digits, - and _ only.
    begin = f"BEGIN; SET LOCAL app.tenant_id = '{' '.join(tenants)}'"
    return f"{begin}; SELECT ao_still_here()" if looks_for_moves else begin


async def _commit(connection: Connection) -> None:
    # A transaction in which a statement failed answers COMMIT with ROLLBACK, and no error.
    if (answer := await connection.execute("COMMIT")) != "COMMIT":
        raise Internal(f"the database answered COMMIT with {answer!r}: a statement before it had failed")


async def _abandon(connection: Connection, *, interrupted: bool) -> None:
    """Leave the transaction behind: rolled back when the server just said no, else together with its connection."""
    if not interrupted:
        try:
            async with asyncio.timeout(_CLEANUP_SECONDS):
                await connection.execute("ROLLBACK")
        except asyncio.CancelledError:
            connection.terminate()  # the pool will see that it is closed
            raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            pass
        else:
            return
    # A statement may still be on its way. Waiting for it could take as long as it likes; the server rolls back when the
    # socket closes.
    connection.terminate()


async def _check_role_and_schema(connect: Any) -> None:  # a bound method: a Callable of a vendor's connection
    connection: asyncpg.Connection = await connect()
    try:
        role = await connection.fetchrow(
            """
            SELECT r.rolname, r.rolsuper OR r.rolbypassrls AS bypasses,
                   EXISTS (SELECT FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
                           WHERE s.nspname = 'agentos' AND c.relowner = r.oid) AS owns,
                   to_regclass('agentos.schema_migrations') IS NOT NULL AS migrated
            FROM pg_roles r WHERE r.rolname = current_user
            """
        )
        assert role is not None, "a session has a role"
        if role["bypasses"] or role["owns"]:
            raise InvalidArgument(
                f"the database role {role['rolname']!r} could read every tenant's rows (it is a superuser, bypasses "
                "row-level security or owns the tables); connect as 'ao_app'"
            )
        applied: dict[str, str] = {}
        if role["migrated"]:
            rows = await connection.fetch("SELECT name, sha256 FROM schema_migrations")
            applied = {row["name"]: row["sha256"] for row in rows}
        if due := [migration.name for migration in pending(applied, packaged())]:
            raise Unavailable(f"the database lacks the migrations {due}; apply them with `agentos up` and start again")
    finally:
        await connection.close(timeout=_CLEANUP_SECONDS)
