"""Administration over PostgreSQL, as the role `ao_control`: no other may change tenants, and erase what is theirs."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from adapters.postgres.administration_homes import AdministrationOfHomes
from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.homes import Homes, each_home
from adapters.postgres.move_tables import SHARED
from adapters.postgres.rows import Row, actor_of, packed, trace_of
from adapters.postgres.run_reads import absent, loaded, run_scope, whole_run
from adapters.postgres.statements import load
from ports.adapter import AdapterSpec, Given
from ports.administration import Administration, Erased, check_erasing, check_reason, still_active, still_running
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import NotFound
from ports.ids import RunId, TenantId, is_tenant_id
from ports.privacy import held
from ports.run_rules import INTERRUPTED, interrupted
from ports.run_state import NewEvent, Run

_SQL: Final = load("administration")


class AdministrationCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class PostgresAdministration:
    """Satisfies `Administration`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def kill(
        self, auth: AuthContext, tenant: TenantId, run_id: RunId, *, reason: str, namespace: str = "default"
    ) -> Run:
        auth.require(ADMIN_PLATFORM)
        check_reason(reason)
        if not is_tenant_id(tenant):
            raise absent(run_id)
        acting = replace(auth, tenant=tenant, namespace=namespace)
        scope = run_scope(acting, run_id)
        async with self._database.transaction(tenant) as transaction:
            if await transaction.row(_SQL["hold"], scope) is None:
                raise absent(run_id)
            events = [
                event
                for step in await transaction.rows(_SQL["begun"], {"tenant": tenant, "run": scope["run"]})
                for event in interrupted(step["n"], step["kind"], step["name"])[1]
            ]
            events.append(NewEvent(type="run.cancelled", data={"reason": reason}))
            rows = [
                {"place": place, "type": event.type, "data": packed(event.data)}
                for place, event in enumerate(events, start=1)
            ]
            told = {"event_count": len(events), "events": packed(rows), "interrupted": packed(INTERRUPTED)}
            whose = {"actor": auth.actor_tenant, "principal": auth.principal}
            row = await transaction.row(_SQL["kill"], {**scope, **trace_of(auth), **whose, **told})
            if row is None:
                return await loaded(transaction, acting, run_id)
            run = await whole_run(transaction, tenant, row)
        self._database.signals.tell(run_id)
        return run

    async def check_quiet(self, tenant: TenantId) -> None:
        async with self._database.transaction(tenant) as transaction:
            standing = await transaction.row(_SQL["standing"], {"tenant": tenant})
        assert standing is not None, "a row of counts"
        if standing["held"]:
            raise held(f"something of {tenant}")
        if standing["erasing"] is None:
            _check_quiet(tenant, standing)

    async def begin_erasing(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str) -> None:
        async with self._database.transaction(tenant) as transaction:
            await _begin(transaction, tenant, {"tenant": tenant, **actor_of(auth), "export_sha256": export_sha256})

    async def erase(self, auth: AuthContext, tenant: TenantId, *, export_sha256: str, limit: int) -> Erased:
        check_erasing(auth, limit)
        if not is_tenant_id(tenant):
            raise NotFound(f"there is no tenant {tenant!r}")
        noted = {"tenant": tenant, **actor_of(auth)}
        async with self._database.transaction(tenant) as transaction:
            await transaction.rows(_SQL["lock"], {"tenant": tenant})
            await _begin(transaction, tenant, {**noted, "export_sha256": export_sha256})
            [row] = await transaction.rows(_SQL["erase_rows"], {"tenant": tenant, "limit": limit})
            done = row["removed"] < limit
            if done:
                await transaction.rows(_SQL["end_erasing"], noted)
        return Erased(removed=row["removed"], done=done)

    async def exported(self, auth: AuthContext, tenant: TenantId) -> str | None:
        auth.require(ADMIN_PLATFORM)
        if not is_tenant_id(tenant):
            return None
        async with self._database.transaction(tenant) as transaction:
            row = await transaction.row(_SQL["exported"], {"tenant": tenant})
        return None if row is None else str(row["export_sha256"])


async def _begin(transaction: Transaction, tenant: TenantId, noted: dict[str, Any]) -> None:
    """Once; whoever finds it begun goes on."""
    standing = await transaction.row(_SQL["standing"], {"tenant": tenant})
    assert standing is not None, "a row of counts"
    if standing["held"]:
        raise held(f"something of {tenant}")
    if standing["erasing"] is None:
        _check_quiet(tenant, standing)
        await transaction.rows(_SQL["begin_erasing"], noted)


def _check_quiet(tenant: TenantId, standing: Row) -> None:
    if standing["status"] is None:
        raise NotFound(f"there is no tenant {tenant!r}")
    if standing["status"] == "active":
        raise still_active(tenant)
    if standing["open_runs"]:
        raise still_running(tenant, standing["open_runs"])


@asynccontextmanager
async def open_administration(config: PostgresConfig, _given: Given) -> AsyncIterator[Administration]:
    shared = replace(config, homes=())
    async with AsyncExitStack() as stack:

        async def opened(one: PostgresConfig) -> Database:
            return await stack.enter_async_context(open_database(one))

        if not config.homes:
            yield PostgresAdministration(await opened(shared))
            return
        routed = {name: PostgresAdministration(await opened(one)) for name, one in each_home(config).items()}
        databases = {SHARED: await opened(shared)}
        databases |= {name: await opened(replace(shared, dsn=dsn)) for name, dsn in config.homes}
        plain = {name: PostgresAdministration(database) for name, database in databases.items()}
        homes = Homes(await stack.enter_async_context(open_database(shared, apart="homes")))
        yield AdministrationOfHomes(routed, plain, databases, homes)


SPEC: Final[AdapterSpec[PostgresConfig, Administration]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: AdministrationCapabilities(), open=open_administration
)
