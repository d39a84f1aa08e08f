"""The receipt of a request: what it consumed, what policy decided, who served it. Also what a failed one may tell."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import force_setattr

from ports.budget import Balance
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.http.envelope import status_of
from ports.messages import Json, Usage
from ports.model import Attempt, PolicyOutcome
from ports.request_log import new_request_id
from stack_b.backends.catalog import Candidate
from stack_b.budget.balances import Standing
from stack_b.budget.spending import Spending
from stack_b.kept_texts import Texts

_NOTHING: Final[Mapping[str, Json]] = {}


class Trail:
    """Gathers one request's receipt as the request passes its stages."""

    # As each one begins.
    spending: Spending | None = None
    texts: Texts | None = None
    """To be kept, where the tenant wants it."""
    candidate: Candidate | None = None
    """Whom it was asked last."""
    outcome: PolicyOutcome | None = None
    standing: Standing | None = None
    over: tuple[str, ...] = ()
    """Soft budgets that are beyond their limits."""
    limited_by = ""
    """The budget that left no room for more of the answer."""
    attempts: tuple[Attempt, ...] = ()
    """Calls of backends that are over, the last one without what it consumed until that is known."""
    _upstream_s = 0.0
    _first_content_s: float | None = None

    def __init__(self, auth: AuthContext, clock: Clock, *, possible_duplicate: bool = False) -> None:
        self.auth = auth
        self.at = clock.now()
        self.request = new_request_id(self.at)
        """Its id, in the log of requests and in its usage."""
        self._possible_duplicate = possible_duplicate
        self._clock = clock
        self._started = clock.monotonic()

    def tell(self, error: AgentOSError) -> None:
        """What refuses the request says as much of the receipt as is known."""
        error.surface.update(self._known())

    def ended(self, candidate: Candidate, took: float, error: BaseException | None) -> None:
        """A call of a backend is over."""
        self._upstream_s += took
        status, reason = (200, None) if error is None else _outcome(error)
        last = Attempt(backend=candidate.backend.name, status=status, latency_ms=round(took * 1_000), reason=reason)
        self.attempts = (*self.attempts, last)

    def took_ms(self) -> int:
        return round((self._clock.monotonic() - self._started) * 1_000)

    def first_content(self) -> None:
        if self._first_content_s is None:
            self._first_content_s = self._clock.monotonic() - self._started

    def paid(self, usage: Usage) -> Attempt:
        """The last attempt, with what it consumed."""
        last = self.attempts[-1]
        # Nobody else has seen it yet.
        force_setattr(last, "tokens", usage.prompt_tokens + usage.completion_tokens)
        force_setattr(last, "cost_nanousd", usage.cost_nanousd)
        return last

    def receipt(self, usage: Usage, reported: dict[str, Json] | None) -> dict[str, Json]:
        """The members a reply gets. `reported` is the backend's own usage, kept where it says more than we count."""
        took = self._clock.monotonic() - self._started
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        members: dict[str, Json] = {
            **(reported or _NOTHING),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "latency_ms": round(took * 1_000),
            "gateway_ms": int((took - self._upstream_s) * 1_000_000) / 1_000,
            "cost_nanousd": usage.cost_nanousd,
            "estimated": usage.estimated,
        }
        if self._first_content_s is not None:
            members["ttft_ms"] = round(self._first_content_s * 1_000)
        if self.over:
            members["budgets_over"] = list(self.over)
        if self.limited_by:
            members["limited_by"] = self.limited_by
        auth = self.auth
        return {
            "usage": members,
            "policy_outcome": self._decided(),
            "route": self._route(),
            "correlation_id": auth.trace.correlation_id,
            "tenant_id": auth.tenant,
        }

    def _decided(self) -> dict[str, Json] | None:
        """As `PolicyOutcome` is written."""
        outcome = self.outcome
        return None if outcome is None else {"decision": outcome.decision, "reasons": list(outcome.reasons)}

    def _route(self) -> dict[str, Json] | None:
        """As `Route` is written."""
        candidate = self.candidate
        if candidate is None:
            return None
        return {
            "backend": candidate.backend.name,
            "model": candidate.card.upstream,
            "attempts": [
                {
                    "backend": one.backend,
                    "status": one.status,
                    "latency_ms": one.latency_ms,
                    "tokens": one.tokens,
                    "cost_nanousd": one.cost_nanousd,
                    "reason": one.reason,
                }
                for one in self.attempts
            ],
            "replayed": False,
            "joined": False,
            "possible_duplicate": self._possible_duplicate,
        }

    def _known(self) -> dict[str, Json]:
        balance = None if self.standing is None else self.standing.told()
        known: dict[str, Json] = {
            "policy_outcome": self._decided(),
            "budget": None if balance is None else budget_members(balance),
            "route": self._route(),
            "tenant_id": self.auth.tenant,
        }
        return {name: value for name, value in known.items() if value is not None}


def _outcome(error: BaseException) -> tuple[int, str]:
    """The status and the reason of an attempt that came to nothing."""
    if isinstance(error, AgentOSError):
        return int(error.details.get("upstream_status", status_of(error))), error.code
    return 499, "cancelled"


def budget_members(balance: Balance) -> dict[str, Json]:
    return {
        "unit": "tokens",
        "limit": balance.limit,
        "settled": balance.settled,
        "held": balance.held,
        "window_end": balance.window_end.isoformat(),
    }
