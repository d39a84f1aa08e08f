"""Homes: databases of their own that tenants may live in, and the way of each call to its tenant's.

A port over several homes is one adapter for each, as if it were alone, and before them a router that asks where the
caller's tenant lives. It may be late by `LATE_S`: then the old home refuses (`Moved`), also what only reads, and the call
is made again at the new one. With no homes there is no router, and nothing of this is asked.

What crosses tenants (a lease of any tenant's messages, sweeps, leases of workers) is the shared database's here: each home
has workers of its own, which are configured with its database alone.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, Final, TypeAlias, TypeVar, cast

from msgspec.structs import replace

from adapters.postgres.engine import Database, PostgresConfig, open_database
from adapters.postgres.errors import Moved
from adapters.postgres.move_tables import SHARED
from adapters.postgres.statements import statement
from ports.adapter import Given
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.ids import TenantId

PortT = TypeVar("PortT")
Open: TypeAlias = Callable[[PostgresConfig, Given], AbstractAsyncContextManager[PortT]]

LATE_S = 1.0
"""So long a router trusts in what it knows, unless it is refused."""
STALE_S: Final = 10.0
"""So long it goes on with what it knows while the directory does not answer."""
HEARD_S = 30.0
"""By then no router, with a call of its under way, takes a tenant to where it lived before."""
_TRIES: Final = 5
"""Homes that one call is sent to."""
_COME_BACK: Final = timedelta(seconds=2)
_HOMES: Final = statement("SELECT tenant_id, home FROM ao_tenant_homes()")


class Homes:
    """Where tenants live, as the shared database says."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._elsewhere: dict[str, str] | None = None
        self._asked_at = 0.0
        self._heard_at = 0.0
        self._asking = asyncio.Lock()

    async def of(self, tenant: TenantId) -> str:
        if self._elsewhere is None or asyncio.get_running_loop().time() - self._asked_at > LATE_S:
            await self._ask()
        assert self._elsewhere is not None, "it was asked"
        return self._elsewhere.get(tenant, SHARED)

    async def ask_again(self) -> None:
        """Somebody was refused: what is known is old."""
        self._asked_at = float("-inf")
        await self._ask()

    async def _ask(self) -> None:
        asked_at = self._asked_at
        async with self._asking:
            if self._asked_at != asked_at and self._elsewhere is not None:
                return  # somebody else has asked meanwhile
            now = asyncio.get_running_loop().time()
            try:
                rows = await self._database.once(_HOMES, {})
            except Unavailable:
                # Whoever has moved since is refused where they were, until that is cleared.
                if self._elsewhere is None or now - self._heard_at > STALE_S:
                    raise
            else:
                self._elsewhere = {row["tenant_id"]: row["home"] for row in rows}
                self._heard_at = now
            self._asked_at = now


class Routed:
    """Stands in for a port: each call goes to the adapter of its tenant's home."""

    def __init__(self, ports: Mapping[str, Any], homes: Homes) -> None:
        # `Any`: it is a port of any kind.
        self._ports = ports
        self._homes = homes

    def __getattr__(self, name: str) -> Any:
        # Of what is no call, every home has the same; where not, the shared one's counts.
        value = getattr(self._ports[SHARED], name)
        if name.startswith("_") or not callable(value):
            return value
        # Async iterators are routed by a class of their own: they must know where they were.
        assert inspect.iscoroutinefunction(value), f"{name} is routed by nobody"
        routed = self._routed(name, value)
        self.__dict__[name] = routed
        return routed

    def _routed(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(call)
        async def routed(auth: AuthContext, *args: Any, **kwargs: Any) -> Any:
            async def there(port: Any) -> Any:
                return await getattr(port, name)(auth, *args, **kwargs)

            return await self.at_home(auth.tenant, there)

        return routed

    async def at_home(self, tenant: TenantId, act: Callable[[Any], Awaitable[Any]]) -> Any:
        """`act` on the port at the tenant's home, wherever that is by then."""
        home = await self._homes.of(tenant)
        for _ in range(_TRIES):
            try:
                return await act(self.port(home))
            except Moved as moved:
                await self._homes.ask_again()
                known = await self._homes.of(tenant)
                # The mark in the old home is what counts: a move that was killed may not have told the directory yet.
                home = known if known != home else moved.home
        raise Unavailable("the tenant is being moved; try again in a moment", retry_after=_COME_BACK)

    def port(self, home: str) -> Any:
        if (port := self._ports.get(home)) is None:
            raise Unavailable(
                f"the home {home!r} is not configured here; add it to AGENTOS_HOMES and run `agentos redeploy`"
            )
        return port


Route: TypeAlias = Callable[[Mapping[str, Any], Homes], Any]


def at_homes(open_one: Open[PortT], route: Route = Routed) -> Open[PortT]:
    """`open_one`, for a configuration with homes too: then with an adapter for each of them."""

    @asynccontextmanager
    async def opened(config: PostgresConfig, given: Given) -> AsyncIterator[PortT]:
        if not config.homes:
            async with open_one(config, given) as port:
                yield port
            return
        async with AsyncExitStack() as stack:
            ports = {
                name: await stack.enter_async_context(open_one(one, given)) for name, one in each_home(config).items()
            }
            homes = Homes(await stack.enter_async_context(open_database(replace(config, homes=()), apart="homes")))
            yield cast("PortT", route(ports, homes))

    return opened


def each_home(config: PostgresConfig) -> dict[str, PostgresConfig]:
    """The configuration of each home by itself, of the shared one first."""
    alone = replace(config, homes=(), looks_for_moves=True)
    return {SHARED: alone, **{name: replace(alone, dsn=dsn) for name, dsn in config.homes}}
