"""What Stack A needs from outside: the ports, and the least each must be able to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from msgspec import Struct

from observability.metrics import Metrics
from ports.agent import AgentRegistry
from ports.audit import AuditLog
from ports.auth import PublishedKeys, TokenVerifier
from ports.clock import Clock
from ports.event import EventCapabilities, EventPort
from ports.model import ModelCapabilities, ModelPort
from ports.queue import QueueCapabilities, QueuePort
from ports.run_state import RunStateCapabilities, RunStatePort
from ports.tenant import TenantDirectory
from ports.tool import ToolCapabilities, ToolPort

API_NEEDS: Final[Mapping[str, Struct | None]] = {
    "run_state": RunStateCapabilities(),
    "event": EventCapabilities(),
    "queue": QueueCapabilities(),
    "agent": None,
    "verifier": None,
    "tenant": None,
    "audit": None,
}
"""By port; None where a port has no capabilities."""

WORKER_NEEDS: Final[Mapping[str, Struct | None]] = {
    "run_state": RunStateCapabilities(),
    "queue": QueueCapabilities(),
    "agent": None,
    "model": ModelCapabilities(tools=True),
    "tool": ToolCapabilities(),
}


UPKEEP_NEEDS: Final[Mapping[str, Struct | None]] = {"maintenance": None}
"""Of the process that has the worker in it."""


class Shedding(Struct, frozen=True, kw_only=True):
    """When the API refuses new runs, whoever asks (`stack_a.runs.shed`)."""

    max_queue_depth: int = 100_000
    """Messages of all tenants in the queue; with more, new runs are refused."""
    slow_after: timedelta = timedelta(seconds=1)
    """When a look at the queue takes longer, the database has enough to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDeps:
    clock: Clock
    run_state: RunStatePort
    event: EventPort
    queue: QueuePort
    agent: AgentRegistry
    audit: AuditLog
    verifier: TokenVerifier
    metrics: Metrics
    shedding: Shedding = field(default_factory=Shedding)
    tenant: TenantDirectory | None = None
    """Without one every tenant has the default quotas of requests and streams."""
    published: PublishedKeys | None = None
    """Without, the node's issuer is not known here."""
    share: int = 1
    """Processes that serve this API together: each gives away its part of those quotas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDeps:
    clock: Clock
    run_state: RunStatePort
    queue: QueuePort
    agent: AgentRegistry
    model: ModelPort
    tool: ToolPort
    metrics: Metrics
