"""What is told and noted of a request is written in short ways: each says what the long one would, whatever came of the
attempts."""

import asyncio
from datetime import timedelta
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.clock import ManualClock
from conformance.people import ACME
from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.messages import Usage
from ports.model import Attempt, PolicyOutcome, Route
from stack_b.backends.catalog import Candidate
from stack_b.backends.demo import DemoBackend
from stack_b.backends.protocol import ModelCard, Price
from stack_b.budget.estimate import estimated_tokens
from stack_b.budget.meter import events_of
from stack_b.budget.spending import Served, Spending
from stack_b.canonical import About, ChatCall
from stack_b.receipt import Trail
from stack_b.records.recorder import of_success, record_of
from stack_b.usage import kinds_of, usage_of

ABOUT: Final = About(agent="agt_x", session="s")
FAILURES: Final = (
    Unavailable("no", code="upstream_error", details={"upstream_status": 500}),
    Unavailable("late", code="upstream_timeout"),
    InvalidArgument("no", code="invalid_request"),
)

COUNTS = st.integers(0, 5_000)
DETAILS = st.none() | st.fixed_dictionaries(
    {}, optional={"cached_tokens": COUNTS, "cache_write_tokens": COUNTS, "audio_tokens": COUNTS}
)
REPORTED = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": COUNTS,
        "completion_tokens": COUNTS,
        "total_tokens": COUNTS,
        "prompt_tokens_details": DETAILS,
        "completion_tokens_details": st.none() | st.fixed_dictionaries({"reasoning_tokens": COUNTS}),
        "cost": st.floats(0, 1),
    },
)
PRICES = st.none() | st.builds(
    Price,
    prompt=st.integers(0, 10**13),
    completion=st.integers(0, 10**13),
    cache_read=st.none() | st.integers(0, 10**12),
    reasoning=st.none() | st.integers(0, 10**13),
    version=st.sampled_from(["", "m@2026"]),
)
OUTCOMES = st.builds(
    PolicyOutcome,
    decision=st.sampled_from(["allowed", "redacted", "blocked"]),
    reasons=st.lists(st.sampled_from(["pii:email", "pii_output:phone"]), max_size=2, unique=True).map(tuple),
)


class Told:
    """A request as the pipeline would have taken it through its attempts: the last one answers."""

    def __init__(self, price: Price | None, failures: list[tuple[AgentOSError, bool]], reported: Any) -> None:
        self.clock = ManualClock()
        self.trail = Trail(ACME, self.clock, possible_duplicate=bool(failures))
        self.spending = Spending()
        self.trail.spending = self.spending
        self.candidate = Candidate(DemoBackend(self.clock), ModelCard(id="m-1", upstream="up-1", price=price))
        self.trail.candidate = self.candidate
        self.attempts: list[Attempt] = []
        self.reported = reported
        for error, unknown in failures:
            lost = Usage(prompt_tokens=estimated_tokens(801), estimated=True) if unknown else Usage()
            self._attempt(error, lost, Served(model="m-1", backend="b"))
        kinds = kinds_of(reported)
        self._attempt(
            None,
            usage_of(reported, prompt_bytes=801, content_bytes=77, price=price),
            Served(
                model="m-1",
                backend="b",
                price="" if price is None else price.version,
                cache_read=kinds.cache_read,
                cache_write=kinds.cache_write,
                reasoning=kinds.reasoning,
            ),
        )

    def _attempt(self, error: AgentOSError | None, usage: Usage, served: Served) -> None:
        number = len(self.attempts) + 1
        took = number * 0.0123
        self.trail.ended(self.candidate, took, error)
        self.spending.add(usage, served)
        status = 200 if error is None else {0: 500, 1: 504, 2: 400}[FAILURES.index(error)]
        self.attempts.append(
            Attempt(
                backend=self.candidate.backend.name,
                status=status,
                latency_ms=round(took * 1_000),
                tokens=usage.total_tokens,
                cost_nanousd=usage.cost_nanousd,
                reason=None if error is None else error.code,
            )
        )
        assert self.trail.paid(usage) == self.attempts[-1]


TOLD = st.builds(Told, PRICES, st.lists(st.tuples(st.sampled_from(FAILURES), st.booleans()), max_size=3), REPORTED)


@given(TOLD, OUTCOMES, st.lists(st.sampled_from(["soft", "team"]), max_size=2, unique=True), st.booleans())
def test_a_receipt_is_what_its_structs_would_be_written_as(
    told: Told, outcome: PolicyOutcome, over: list[str], cut: bool
) -> None:
    trail, total = told.trail, told.spending.total
    trail.outcome, trail.over, trail.limited_by = outcome, tuple(over), "day" if cut else ""
    asyncio.run(told.clock.advance(timedelta(seconds=1.5)))
    route = Route(
        backend=told.candidate.backend.name,
        model="up-1",
        attempts=tuple(told.attempts),
        possible_duplicate=len(told.attempts) > 1,
    )
    upstream_s = sum(number * 0.0123 for number in range(1, len(told.attempts) + 1))
    usage = {
        **(told.reported or {}),
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.total_tokens,
        "latency_ms": 1_500,
        "gateway_ms": pytest.approx(1_000 * (1.5 - upstream_s), abs=0.002),
        "cost_nanousd": total.cost_nanousd,
        "estimated": total.estimated,
        **({"budgets_over": over} if over else {}),
        **({"limited_by": "day"} if cut else {}),
    }

    receipt = trail.receipt(total, told.reported)

    assert list(receipt) == ["usage", "policy_outcome", "route", "correlation_id", "tenant_id"]
    assert (list(receipt["usage"]), receipt["usage"]) == (list(usage), usage)
    assert msgspec.json.encode(receipt["route"]) == msgspec.json.encode(route)
    assert msgspec.json.encode(receipt["policy_outcome"]) == msgspec.json.encode(outcome)
    assert (receipt["correlation_id"], receipt["tenant_id"]) == (ACME.trace.correlation_id, ACME.tenant)
    error = Unavailable("no")
    trail.tell(error)
    assert (error.surface["route"], error.surface["policy_outcome"]) == (receipt["route"], receipt["policy_outcome"])


@given(TOLD, OUTCOMES, st.booleans())
def test_a_record_of_what_went_well_is_that_of_any_request(told: Told, outcome: PolicyOutcome, stream: bool) -> None:
    told.trail.outcome = outcome
    call = ChatCall(model="alias", members={}, stream=stream, route="/v1/chat/completions")

    record = of_success(told.trail, call)

    assert record == record_of(told.trail, call, None)
    assert (record.attempts, record.reasons, record.stream) == (tuple(told.attempts), outcome.reasons, stream)


@given(TOLD, st.booleans())
def test_usage_sums_to_what_is_settled_whatever_its_kinds(told: Told, lost: bool) -> None:
    if lost:
        told.spending.assume(Usage(prompt_tokens=9, cost_nanousd=3, estimated=True), Served(model="m-2"))
    events = events_of(ACME, ABOUT, told.spending, "req_1")

    assert sum(event.amount.tokens for event in events) == told.spending.total.total_tokens
    assert sum(event.cost_nanousd for event in events) == told.spending.total.cost_nanousd
    assert [event.attempt for event in events] == sorted({event.attempt for event in events})
    for event in events:
        usage, served = told.spending.attempts()[event.attempt - 1]
        read = min(served.cache_read, usage.prompt_tokens)
        assert event.fresh_tokens + event.cache_read_tokens + event.cache_write_tokens == usage.prompt_tokens
        assert event.output_tokens + event.reasoning_tokens == usage.completion_tokens
        assert (event.cache_read_tokens, event.model, event.price) == (read, served.model, served.price)
        assert min(event.fresh_tokens, event.cache_write_tokens, event.output_tokens, event.reasoning_tokens) >= 0
