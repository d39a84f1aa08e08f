"""What the gateway counts of its requests."""

from collections.abc import Iterable

from observability.metrics import Metrics
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.messages import Usage
from ports.model import Attempt
from stack_b.backends.catalog import Candidate
from stack_b.redaction.findings import Finding


class Tell:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def refused(self, error: AgentOSError) -> None:
        """Count what refuses a request, where the HTTP metrics would not say why."""
        if "budget" in error.code:
            self._metrics.budget_refusal(error.code)
        elif error.code == "policy_blocked":
            self._metrics.policy_block("request")

    def decided(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._metrics.redactions(finding.kind, finding.count)

    def attempted(self, candidate: Candidate, attempt: Attempt) -> None:
        self._metrics.model_request(
            backend=attempt.backend,
            model=candidate.card.id,
            seconds=attempt.latency_ms / 1_000,
            error_code=attempt.reason,
        )

    def settled(self, auth: AuthContext, model: str, usage: Usage) -> None:
        self._metrics.usage(model=model, tenant=auth.tenant, usage=usage)
