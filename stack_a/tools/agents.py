"""Agents as functions that other agents may call: what a model is offered, and what it may ask for."""

from collections.abc import Mapping
from typing import Final

from ports.agent import MAX_RUN_DEPTH, AgentRegistry, AgentSpec
from ports.context import AuthContext
from ports.errors import NotFound
from ports.messages import Fault, Json
from ports.run_state import Run
from ports.tool import ToolSpec

_INPUT: Final = "input"


async def with_agents(
    registry: AgentRegistry, auth: AuthContext, agent: AgentSpec, tools: Mapping[str, ToolSpec]
) -> Mapping[str, ToolSpec]:
    """`tools`, and those agents that `agent` may hand work to and that are there, under their ids."""
    if not agent.agents:
        return tools
    # An agent's id means the agent, whatever a tool is called.
    offered = {name: spec for name, spec in tools.items() if name not in agent.agents}
    for agent_id in agent.agents:
        try:
            other = (await registry.get(auth, agent_id)).spec
        except NotFound:
            continue
        offered[agent_id] = function_of(other)
    return offered


def function_of(agent: AgentSpec) -> ToolSpec:
    described = agent.description or f"Hands work to the agent {agent.id}."
    return ToolSpec(
        name=agent.id,
        description=described,
        input_schema={
            "type": "object",
            "properties": {_INPUT: {"description": "What it shall do: text, or any JSON."}},
            "required": [_INPUT],
            "additionalProperties": False,
        },
        effect="idempotent",
        # The run that it makes is the requester's.
        scopes=("runs:create",),
    )


def refused(run: Run, agent: AgentSpec, arguments: Json) -> Fault | None:
    """Why `run` may not hand this on; None when it may."""
    most = MAX_RUN_DEPTH if agent.limits.max_depth is None else min(MAX_RUN_DEPTH, agent.limits.max_depth)
    if run.depth >= most:
        message = f"this run is {run.depth} runs deep and may hand work on to a depth of {most} only"
        return Fault(code="max_depth_exceeded", message=message)
    if not isinstance(arguments, dict) or arguments.keys() != {_INPUT}:
        return Fault(code="tool_bad_arguments", message=f"the arguments must have the member {_INPUT!r}, and no other")
    return None


def input_of(arguments: Json) -> Json:
    return arguments[_INPUT]
