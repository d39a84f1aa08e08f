"""What Stack B needs from outside, and the least each port must be able to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from observability.metrics import Metrics
from ports.auth import TokenVerifier
from ports.budget import BudgetLedger
from ports.clock import Clock
from ports.pii import PiiCapabilities, PiiDetector
from ports.reply_journal import ReplyJournal
from ports.request_log import RequestLog
from ports.tenant import TenantDirectory
from stack_b.backends.catalog import Catalog
from stack_b.budget.prices import Prices
from stack_b.following import Standing
from stack_b.limits import Limits
from stack_b.policies.desk import Policies
from stack_b.redaction.rules import new_key
from stack_b.routing.router import Router
from stack_b.vault import Vault, new_vault

NEEDS: Final[Mapping[str, Struct | None]] = {
    "verifier": None,
    "tenant": None,
    "budget": None,
    "reply_journal": None,
    "request_log": None,
    "pii": PiiCapabilities(),
}
"""By port; None where a port has no capabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackBDeps:
    clock: Clock
    metrics: Metrics
    verifier: TokenVerifier
    tenant: TenantDirectory
    budget: BudgetLedger
    reply_journal: ReplyJournal
    request_log: RequestLog
    pii: PiiDetector
    catalog: Catalog
    router: Router
    policies: Policies = field(default_factory=Policies)
    limits: Limits = field(default_factory=Limits)
    prices: Prices = field(default_factory=Prices)
    standing: Standing = field(default_factory=Standing)
    """Which configuration `catalog`, `router` and `prices` go by."""
    share: int = 1
    """Processes that serve these tenants together: each gives away its part of the quotas of requests and streams."""
    budget_in_chunks: bool = False
    """Hold more of a budget than a request needs, for those to come: where a call of the ledger costs something."""
    vault: Vault = field(default_factory=new_vault, repr=False)
    """Seals replies in the journal, and prompts and answers that a tenant wants kept."""
    placeholder_key: bytes = field(default_factory=new_key, repr=False)
    """A node's secret. With the same one, a value has the same placeholder in every process and after a restart."""
