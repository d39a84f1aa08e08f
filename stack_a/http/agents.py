"""Agents: list and get. Publishing is administration."""

from litestar import Response, get

from ports.errors import NotFound
from ports.http.edge import exchange
from ports.ids import AgentId, is_agent_id
from stack_a.http import wire
from stack_a.http.given import Deps, HttpRequest, Limit, PathText, QueryText, Version


@get("/v1/agents")
async def list_agents(
    request: HttpRequest, deps: Deps, limit: Limit = wire.DEFAULT_PAGE, cursor: QueryText = None
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
async def get_agent(request: HttpRequest, agent_id: PathText, deps: Deps, version: Version = None) -> Response[bytes]:
    auth = exchange(request.scope).identity
    if not is_agent_id(agent_id):
        raise NotFound(f"there is no agent {agent_id!r}")
    agent = await deps.agent.get(auth, AgentId(agent_id), version)
    return wire.json_response(wire.agent_view(agent, auth))
