"""AgentRegistry: versioned agents. A run pins the digest of the version it started with.

Clauses (each has a test in `conformance.agent`):

* AGT-1  `publish` of a spec whose digest is new for the agent stores it as the next version, from 1; the version is never
         changed after.
* AGT-2  `publish` of the same spec as the newest version stores nothing and returns that version.
* AGT-3  `get` gives the newest version, or the one asked for.
* AGT-4  Absent and foreign agents raise the same `NotFound`, word for word; an absent version too.
* AGT-5  `list_agents` gives the newest version of every agent of the caller's tenant and namespace, sorted by id, in pages.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from ports.context import AuthContext
from ports.ids import AgentId
from ports.messages import Page

MAX_RUN_DEPTH: Final = 5
"""How many runs deep agents may hand work on, counted from the run without a parent."""


class AgentLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one run. `max_steps` counts model and tool steps together."""

    max_steps: int = 50
    deadline_s: int = 600
    max_parallel_tools: int = 16
    max_completion_tokens: int = 1_024
    """Per model call."""
    max_cost_nanousd: Annotated[
        int | None,
        Meta(
            description="What the run's model calls may cost together, in 10⁻⁹ US dollars. Once they have cost that much, "
            "no other is made and the run fails with `max_cost_exceeded`; the last one may go beyond it. What the runs it "
            "hands work to have cost counts. Null: no limit."
        ),
    ] = None
    max_depth: Annotated[
        int | None,
        Meta(
            description="How many runs deep this agent may hand work on, counted from the one without a parent: with 1 it "
            "only may in that one. Null: as deep as anybody may."
        ),
    ] = None


class AgentSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent is. Changing any member makes a new version."""

    id: AgentId
    description: str = ""
    instructions: str = ""
    model: str
    tools: tuple[str, ...] = ()
    limits: AgentLimits = AgentLimits()
    agents: tuple[AgentId, ...] = ()
    """Agents of the same namespace that it may hand work to."""


class Agent(Struct, frozen=True, kw_only=True):
    spec: AgentSpec
    version: int
    digest: str
    created_at: datetime


def digest_of(spec: AgentSpec) -> str:
    """`sha256:` and the hexadecimal digest of the spec's canonical JSON."""
    members = msgspec.to_builtins(spec)
    # A limit that is not set is none: agents from before it existed keep their digests.
    members["limits"] = {name: value for name, value in members["limits"].items() if value is not None}
    if not members["agents"]:
        del members["agents"]
    # Members in the order in which they are declared; new ones come last.
    canonical = msgspec.json.encode(members)
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


class AgentRegistry(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently."""

    async def publish(self, auth: AuthContext, spec: AgentSpec) -> Agent: ...

    async def get(self, auth: AuthContext, agent_id: AgentId, version: int | None = None) -> Agent: ...

    async def list_agents(self, auth: AuthContext, *, limit: int, cursor: str | None = None) -> Page[Agent]: ...
