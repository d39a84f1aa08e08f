"""The receipt of a request: what it consumed, what policy decided, who served it. Also what a failed one may tell."""

import msgspec

from ports.budget import Balance
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.http.envelope import status_of
from ports.messages import Json, Usage
from ports.model import Attempt, PolicyOutcome, Route
from ports.request_log import new_request_id
from stack_b.backends.catalog import Candidate
from stack_b.budget.balances import Standing
from stack_b.budget.spending import Spending
from stack_b.kept_texts import Texts


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
        self._attempts: list[Attempt] = []

    def tell(self, error: AgentOSError) -> None:
        """What refuses the request says as much of the receipt as is known."""
        error.surface.update(self._known())

    def ended(self, candidate: Candidate, took: float, error: BaseException | None) -> None:
        """A call of a backend is over."""
        self._upstream_s += took
        status, reason = _outcome(error)
        self._attempts.append(
            Attempt(backend=candidate.backend.name, status=status, latency_ms=_ms(took), reason=reason)
        )

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return tuple(self._attempts)

    def took_ms(self) -> int:
        return _ms(self._clock.monotonic() - self._started)

    def first_content(self) -> None:
        if self._first_content_s is None:
            self._first_content_s = self._clock.monotonic() - self._started

    def paid(self, usage: Usage) -> Attempt:
        """The last attempt, with what it consumed."""
        self._attempts[-1] = msgspec.structs.replace(
            self._attempts[-1], tokens=usage.total_tokens, cost_nanousd=usage.cost_nanousd
        )
        return self._attempts[-1]

    def receipt(self, usage: Usage, reported: dict[str, Json] | None) -> dict[str, Json]:
        """The members a reply gets. `reported` is the backend's own usage, kept where it says more than we count."""
        took = self._clock.monotonic() - self._started
        members: dict[str, Json] = {
            **(reported or {}),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "latency_ms": _ms(took),
            "gateway_ms": int((took - self._upstream_s) * 1_000_000) / 1_000,
            "cost_nanousd": usage.cost_nanousd,
            "estimated": usage.estimated,
        }
        if self._first_content_s is not None:
            members["ttft_ms"] = _ms(self._first_content_s)
        if self.over:
            members["budgets_over"] = list(self.over)
        if self.limited_by:
            members["limited_by"] = self.limited_by
        return {
            "usage": members,
            "policy_outcome": msgspec.to_builtins(self.outcome),
            "route": msgspec.to_builtins(self._route()),
            "correlation_id": self.auth.trace.correlation_id,
            "tenant_id": self.auth.tenant,
        }

    def _route(self) -> Route | None:
        if self.candidate is None:
            return None
        return Route(
            backend=self.candidate.backend.name,
            model=self.candidate.card.upstream,
            attempts=self.attempts,
            possible_duplicate=self._possible_duplicate,
        )

    def _known(self) -> dict[str, Json]:
        balance = None if self.standing is None else self.standing.told()
        known: dict[str, Json] = {
            "policy_outcome": msgspec.to_builtins(self.outcome),
            "budget": None if balance is None else budget_members(balance),
            "route": msgspec.to_builtins(self._route()),
            "tenant_id": self.auth.tenant,
        }
        return {name: value for name, value in known.items() if value is not None}


def _outcome(error: BaseException | None) -> tuple[int, str | None]:
    """The status and the reason of an attempt."""
    if error is None:
        return 200, None
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


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
