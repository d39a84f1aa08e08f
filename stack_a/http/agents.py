"""Agents: list and get. Publishing is administration."""

from typing import Annotated, TypeAlias

from litestar import Response, get
from litestar.params import Parameter

from ports.errors import NotFound
from ports.http.edge import exchange
from ports.ids import AgentId, is_agent_id
from stack_a.deps import ApiDeps
from stack_a.http import wire
from stack_a.http.runs import HttpRequest, Limit

Version: TypeAlias = Annotated[int | None, Parameter(ge=1, le=2**31 - 1)]


@get("/v1/agents")
async def list_agents(
    request: HttpRequest, deps: ApiDeps, limit: Limit = wire.DEFAULT_PAGE, cursor: str | None = None
) -> Response[bytes]:
    auth = exchange(request.scope).identity
    page = await deps.agent.list_agents(auth, limit=limit, cursor=cursor)
    return wire.json_response(
        wire.AgentPage(
            items=tuple(wire.agent_view(agent, auth) for agent in page.items),
            next_cursor=page.next_cursor,
            tenant_id=auth.tenant,
            correlation_id=auth.trace.correlation_id,
        )
    )


@get("/v1/agents/{agent_id:str}")
async def get_agent(request: HttpRequest, agent_id: str, deps: ApiDeps, version: Version = None) -> Response[bytes]:
    auth = exchange(request.scope).identity
    if not is_agent_id(agent_id):
        raise NotFound(f"no agent {agent_id!r}")
    agent = await deps.agent.get(auth, AgentId(agent_id), version)
    return wire.json_response(wire.agent_view(agent, auth))
