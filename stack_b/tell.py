"""What the gateway counts of its requests."""

from collections.abc import Iterable
from typing import Final

from observability.metrics import Metrics
from ports.errors import AgentOSError
from ports.model import Attempt, PolicyOutcome
from stack_b.backends.catalog import Candidate
from stack_b.redaction.findings import Finding

_BLOCKED: Final = {"policy_blocked": "request", "tool_not_permitted": "tools"}


class Tell:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.settled = metrics.usage
        """What a request has consumed, by model and tenant."""

    def refused(self, error: AgentOSError) -> None:
        """Count what refuses a request, where the HTTP metrics would not say why."""
        if "budget" in error.code:
            self._metrics.budget_refusal(error.code)
        elif error.code in _BLOCKED:
            self._metrics.policy_block(_BLOCKED[error.code])

    def decided(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._metrics.redactions(finding.kind, finding.count)

    def answered(self, outcome: PolicyOutcome | None, findings: Iterable[Finding]) -> None:
        """What policy decided on an answer."""
        if findings:
            self.decided(findings)
        if outcome is not None and outcome.decision == "blocked":
            self._metrics.policy_block("answer")

    def attempted(self, candidate: Candidate, attempt: Attempt) -> None:
        self._metrics.model_request(
            backend=attempt.backend,
            model=candidate.card.id,
            seconds=attempt.latency_ms / 1_000,
            error_code=attempt.reason,
        )
