"""A move of a tenant under way: between which databases, how far it is, what it tells. For `adapters.postgres.move`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from adapters.postgres.errors import translated
from adapters.postgres.move_link import End, open_end
from adapters.postgres.move_tables import SHARED
from ports.context import AuthContext
from ports.errors import Conflict, InvalidArgument, NotFound
from ports.ids import TenantId, is_tenant_id

SETTLES: Final = timedelta(seconds=60)
"""No transaction is as long as that: what was written earlier is there, and stays as it is."""

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
async def moving(
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
