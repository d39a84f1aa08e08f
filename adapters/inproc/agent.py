"""AgentRegistry in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from adapters.inproc.store import InprocConfig, Store, page_size, store
from ports.adapter import AdapterSpec, Given
from ports.agent import Agent, AgentRegistry, AgentSpec, digest_of
from ports.clock import Clock
from ports.context import AuthContext
from ports.cursor import decode_cursor, encode_cursor
from ports.errors import NotFound
from ports.ids import AgentId, TenantId
from ports.messages import Page

_CURSOR: Final = "agents"
_MAX_PAGE: Final = 200


class AgentCapabilities(Struct, frozen=True, kw_only=True):
    """The port has no abilities to choose among."""


@dataclass(slots=True)
class Versions:
    """A table of a `Store`: each agent's versions, the newest last."""

    rows: dict[tuple[TenantId, str, AgentId], list[Agent]] = field(default_factory=dict)


class InprocAgents:
    """Satisfies `AgentRegistry`. Specs are frozen through and through, so they are handed out as they are."""

    def __init__(self, storage: Store, clock: Clock) -> None:
        self._rows = storage.table(Versions).rows
        self._clock = clock

    async def publish(self, auth: AuthContext, spec: AgentSpec) -> Agent:
        versions = self._rows.setdefault((auth.tenant, auth.namespace, spec.id), [])
        digest = digest_of(spec)
        if versions and versions[-1].digest == digest:
            return versions[-1]
        agent = Agent(spec=spec, version=len(versions) + 1, digest=digest, created_at=self._clock.now())
        versions.append(agent)
        return agent

    async def get(self, auth: AuthContext, agent_id: AgentId, version: int | None = None) -> Agent:
        versions = self._rows.get((auth.tenant, auth.namespace, agent_id), [])
        number = len(versions) if version is None else version
        if not 1 <= number <= len(versions):
            asked = "" if version is None else f" in version {version}"
            raise NotFound(f"there is no agent {agent_id!r}{asked}")
        return versions[number - 1]

    async def list_agents(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Agent]:
        size = page_size(limit, _MAX_PAGE)
        after = "" if cursor is None else decode_cursor(_CURSOR, cursor, tuple[str])[0]
        newest = [rows[-1] for key, rows in self._rows.items() if key[:2] == (auth.tenant, auth.namespace)]
        later = sorted((agent for agent in newest if agent.spec.id > after), key=lambda agent: agent.spec.id)
        shown = tuple(later[:size])
        more = len(later) > size
        return Page(items=shown, next_cursor=encode_cursor(_CURSOR, (shown[-1].spec.id,)) if more else None)


@asynccontextmanager
async def open_agent(config: InprocConfig, given: Given) -> AsyncIterator[AgentRegistry]:
    yield InprocAgents(store(config.name), given.clock)


SPEC: Final[AdapterSpec[InprocConfig, AgentRegistry]] = AdapterSpec(
    config=InprocConfig, capabilities=lambda _: AgentCapabilities(), open=open_agent
)
