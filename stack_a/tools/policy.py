"""May this run call this tool? Pure."""

from collections.abc import Iterable, Mapping

from ports.agent import AgentSpec
from ports.run_state import Run
from ports.tool import ToolSpec


def permitted(run: Run, agent: AgentSpec, tools: Mapping[str, ToolSpec]) -> tuple[ToolSpec, ...]:
    """The tools and then the agents that a run may call, in the agent's order: what the agent has and the node serves,
    narrowed by what the request allows and by the scopes of who made it."""
    allowed = (*agent.tools, *agent.agents) if run.tool_allowlist is None else run.tool_allowlist
    return tuple(
        tools[name]
        for name in dict.fromkeys((*agent.tools, *agent.agents))
        if name in tools and name in allowed and run.requester.scopes.issuperset(tools[name].scopes)
    )


def unknown(agent: AgentSpec, allowlist: Iterable[str]) -> list[str]:
    """Names in an allow-list that the agent does not have, neither as tools nor as agents, sorted."""
    return sorted(set(allowlist) - set(agent.tools) - set(agent.agents))
