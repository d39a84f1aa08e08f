"""The receipt of a request: what it consumed, what policy decided, who served it. Also what a failed one may tell."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ports.budget import Balance
from ports.clock import Clock
from ports.context import AuthContext
from ports.errors import AgentOSError
from ports.http.envelope import status_of
from ports.messages import Json, Usage
from ports.model import Attempt, PolicyOutcome, Route
from stack_b.backends.catalog import Candidate


class Trail:
    """Gathers one request's receipt as the request passes its stages."""

    def __init__(self, auth: AuthContext, clock: Clock, *, possible_duplicate: bool = False) -> None:
        self._auth = auth
        self._possible_duplicate = possible_duplicate
        self._clock = clock
        self._started = clock.monotonic()
        self._upstream_s = 0.0
        self._first_content_s: float | None = None
        self._attempts: list[Attempt] = []
        self._candidate: Candidate | None = None
        self.outcome: PolicyOutcome | None = None
        self.balance: Balance | None = None
        self.over: tuple[str, ...] = ()
        """Soft budgets that are beyond their limits."""
        self.limited_by = ""
        """The budget that left no room for more of the answer."""

    @contextmanager
    def told(self) -> Iterator[None]:
        """Whatever refuses the request inside the block says as much of the receipt as is known."""
        try:
            yield
        except AgentOSError as error:
            error.surface.update(self._known())
            raise

    @contextmanager
    def attempt(self, candidate: Candidate) -> Iterator[None]:
        """Time one call of a backend, and note how it ended."""
        self._candidate = candidate
        began = self._clock.monotonic()
        status = 499
        reason: str | None = "cancelled"
        try:
            yield
            status, reason = 200, None
        except AgentOSError as error:
            status, reason = int(error.details.get("upstream_status", status_of(error))), error.code
            raise
        finally:
            took = self._clock.monotonic() - began
            self._upstream_s += took
            self._attempts.append(
                Attempt(backend=candidate.backend.name, status=status, latency_ms=_ms(took), reason=reason)
            )

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
            "gateway_ms": round((took - self._upstream_s) * 1_000, 3),
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
            "correlation_id": self._auth.trace.correlation_id,
            "tenant_id": self._auth.tenant,
        }

    def _route(self) -> Route | None:
        if self._candidate is None:
            return None
        return Route(
            backend=self._candidate.backend.name,
            model=self._candidate.card.upstream,
            attempts=tuple(self._attempts),
            possible_duplicate=self._possible_duplicate,
        )

    def _known(self) -> dict[str, Json]:
        balance = self.balance
        known: dict[str, Json] = {
            "policy_outcome": msgspec.to_builtins(self.outcome),
            "budget": None if balance is None else budget_members(balance),
            "route": msgspec.to_builtins(self._route()),
            "tenant_id": self._auth.tenant,
        }
        return {name: value for name, value in known.items() if value is not None}


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
