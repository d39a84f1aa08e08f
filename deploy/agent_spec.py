"""An agent as its author writes it down: strict JSON of `ports.agent.AgentSpec`, in and out."""

from collections.abc import Collection
from typing import Final

import msgspec

from ports.agent import MAX_RUN_DEPTH, AgentLimits, AgentSpec
from ports.errors import InvalidArgument
from ports.http import strict_json
from ports.ids import is_agent_id

MAX_SPEC_BYTES: Final = strict_json.MAX_BODY_BYTES

MOST: Final = AgentLimits(
    max_steps=50,
    deadline_s=24 * 60 * 60,
    max_parallel_tools=16,
    max_completion_tokens=131_072,
    max_cost_nanousd=10**15,
    max_depth=MAX_RUN_DEPTH,
)
"""The published caps of a run, of a request for one, and of a request to a model; an agent stays within them. A million
dollars for a run is beyond any that was meant."""


def parse_spec(raw: bytes, *, tools: Collection[str]) -> AgentSpec:
    """The agent in `raw`, which may use `tools`.

    Raises:
        InvalidArgument: everything that is wrong with it, each with its path and what would be right.
    """
    if len(raw) > MAX_SPEC_BYTES:
        raise InvalidArgument(f"it is too long; an agent has at most {MAX_SPEC_BYTES} bytes")
    value = strict_json.parse(raw)
    try:
        spec = msgspec.convert(value, AgentSpec)
    except msgspec.ValidationError as error:
        members = ", ".join(AgentSpec.__struct_fields__)
        limits = ", ".join(AgentLimits.__struct_fields__)
        raise InvalidArgument(f"{error}; an agent has {members}, and its limits {limits}") from None
    if found := _problems(spec, tools):
        raise InvalidArgument("; ".join(found))
    return spec


def render_spec(spec: AgentSpec) -> str:
    """JSON that `parse_spec` takes, every member named, for people to edit."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2).decode() + "\n"


def _problems(spec: AgentSpec, tools: Collection[str]) -> list[str]:
    found = []
    if not is_agent_id(spec.id):
        found.append(f"$.id: {spec.id!r} can't name an agent: write agt_ and small letters, digits, - or _")
    if not spec.model.strip():
        found.append("$.model: name a model; GET /v1/models of the gateway lists them")
    found += [
        f"$.tools: there is no tool {tool!r}; there are {', '.join(sorted(tools))}"
        for tool in dict.fromkeys(spec.tools)
        if tool not in tools
    ]
    if len(set(spec.tools)) < len(spec.tools):
        found.append("$.tools: a tool is named twice")
    found += [
        f"$.agents: {agent!r} can't name an agent: write agt_ and small letters, digits, - or _"
        for agent in dict.fromkeys(spec.agents)
        if not is_agent_id(agent)
    ]
    if len(set(spec.agents)) < len(spec.agents):
        found.append("$.agents: an agent is named twice")
    found += [f"$.agents: {name!r} is among the tools, too" for name in spec.tools if name in spec.agents]
    for name in AgentLimits.__struct_fields__:
        value, most = getattr(spec.limits, name), getattr(MOST, name)
        if value is not None and not 1 <= value <= most:
            found.append(f"$.limits.{name}: must be 1 to {most}, not {value}")
    return found
