"""May this run call this tool? Pure."""

from collections.abc import Iterable

from ports.agent import AgentSpec


def permitted(agent: AgentSpec, allowlist: tuple[str, ...] | None) -> frozenset[str]:
    """The tools a run may call: what its agent has, narrowed by what its request allows."""
    offered = frozenset(agent.tools)
    return offered if allowlist is None else offered & frozenset(allowlist)


def unknown(agent: AgentSpec, allowlist: Iterable[str]) -> list[str]:
    """Names in an allow-list that the agent does not have, sorted."""
    return sorted(set(allowlist) - set(agent.tools))
