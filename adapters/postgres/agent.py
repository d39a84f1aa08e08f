"""AgentRegistry over PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from adapters.postgres.engine import Database, PostgresConfig, Transaction, open_database
from adapters.postgres.homes import at_homes
from adapters.postgres.rows import Row, by_place, packed, page_size, scope_of
from adapters.postgres.statements import load
from adapters.postgres.together import Together
from ports.adapter import AdapterSpec, Given
from ports.agent import Agent, AgentRegistry, AgentSpec, digest_of
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import NotFound
from ports.ids import AgentId, TenantId
from ports.messages import Page

_SQL: Final = load("agent")
_CURSOR: Final = "agents"
_MAX_PAGE: Final = 200

_Ask: TypeAlias = tuple[TenantId, str, AgentId, int | None]
"""Tenant, namespace, agent, version."""


class AgentCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


class PostgresAgents:
    """Satisfies `AgentRegistry`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._together: Together[_Ask, Agent] = Together(database, _get)

    async def publish(self, auth: AuthContext, spec: AgentSpec) -> Agent:
        agent = {**scope_of(auth), "agent": spec.id}
        asked = {
            **agent,
            "digest": digest_of(spec),
            "spec": packed(spec),
            "principal": auth.principal,
            "correlation_id": auth.trace.correlation_id,
        }
        async with self._database.transaction(auth.tenant) as transaction:
            await transaction.rows(_SQL["lock"], agent)
            row = await transaction.row(_SQL["publish"], asked)
        assert row is not None, "the version made, or the newest"
        return _agent(row)

    async def get(self, auth: AuthContext, agent_id: AgentId, version: int | None = None) -> Agent:
        return await self._together(auth.tenant, (auth.tenant, auth.namespace, agent_id, version), order=agent_id)

    async def list_agents(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Agent]:
        size = page_size(limit, _MAX_PAGE)
        after = "" if cursor is None else decode_cursor(_CURSOR, cursor, tuple[str])[0]
        async with self._database.transaction(auth.tenant) as transaction:
            rows = await transaction.rows(_SQL["list"], {**scope_of(auth), "after": after, "limit": size + 1})
        shown = tuple(_agent(row) for row in rows[:size])
        more = len(rows) > size
        return Page(items=shown, next_cursor=encode_cursor(_CURSOR, (shown[-1].spec.id,)) if more else None)


async def _get(transaction: Transaction, asks: Sequence[_Ask]) -> list[Agent | Exception]:
    """What several ask for is read once."""
    different = list(dict.fromkeys(asks))
    asked = [
        {"place": place, "tenant": tenant, "namespace": namespace, "agent": agent_id, "version": version}
        for place, (tenant, namespace, agent_id, version) in enumerate(different)
    ]
    rows = await transaction.rows(_SQL["get"], {"asks": packed(asked)})
    found = by_place(rows, [tenant for tenant, _, _, _ in different])
    agents = {different[place]: _agent(row) for place, row in found.items()}
    return [agents.get(ask) or _absent(ask[2], ask[3]) for ask in asks]


def _absent(agent_id: AgentId, version: int | None) -> NotFound:
    named = "" if version is None else f" in version {version}"
    return NotFound(f"there is no agent {agent_id!r}{named}")


def _agent(row: Row) -> Agent:
    return Agent(
        spec=msgspec.convert(row["spec"], AgentSpec),
        version=row["version"],
        digest=row["digest"],
        created_at=row["created_at"],
    )


@asynccontextmanager
async def open_agent(config: PostgresConfig, _given: Given) -> AsyncIterator[AgentRegistry]:
    async with open_database(config) as database:
        yield PostgresAgents(database)


SPEC: Final[AdapterSpec[PostgresConfig, AgentRegistry]] = AdapterSpec(
    config=PostgresConfig, capabilities=lambda _: AgentCapabilities(), open=at_homes(open_agent)
)
