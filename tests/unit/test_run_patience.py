"""Which failures are waited for, how often, and how long."""

from datetime import timedelta
from itertools import pairwise

import pytest

from ports.errors import AgentOSError, Conflict, PermissionDenied, ResourceExhausted, Unavailable
from stack_a.runs.patience import FIRST_BACKOFF, MAX_BACKOFF, MAX_TOLD, Patience

AWAY = Unavailable("restarting")
UNREACHED = Unavailable("the provider can't be reached", code="upstream_error", details={"sent": False})
IN_PROGRESS = Conflict("another one asks", code="idempotency_in_progress", retry_after=timedelta(seconds=1))
FAILING = Unavailable("the provider failed", code="upstream_error", details={"upstream_status": 500})
LATE = Unavailable("the provider is silent", code="upstream_timeout", details={"outcome": "unknown"})
TOO_FAST = ResourceExhausted("too fast", code="rate_limited")
FULL = ResourceExhausted("held by others", code="budget_in_flight", retry_after=timedelta(seconds=7))


def waits(patience: Patience, *errors: AgentOSError) -> list[timedelta | None]:
    return [patience.wait_after(error) for error in errors]


@pytest.mark.parametrize("error", [AWAY, UNREACHED, IN_PROGRESS], ids=lambda error: error.message)
def test_an_outage_is_waited_for_without_a_number_of_attempts(error: AgentOSError) -> None:
    assert None not in waits(Patience(6, outlasts=True), *[error] * 20_000)


@pytest.mark.parametrize("error", [FAILING, LATE, TOO_FAST, FULL], ids=lambda error: error.message)
def test_whoever_answered_is_asked_a_few_times_only(error: AgentOSError) -> None:
    given = waits(Patience(6, outlasts=True), *[error] * 6)

    assert None not in given[:5]
    assert given[5] is None


def test_without_an_end_to_outages_they_count_like_other_failures() -> None:
    assert waits(Patience(2), AWAY, AWAY)[1] is None


def test_an_outage_uses_up_nothing_of_what_other_failures_have() -> None:
    patience = Patience(3, outlasts=True)

    assert None not in waits(patience, *[AWAY] * 50, FAILING, AWAY, FAILING, AWAY)
    assert patience.wait_after(FAILING) is None


@pytest.mark.parametrize(
    "error", [PermissionDenied("no", code="model_not_entitled"), ResourceExhausted("spent", code="budget_exceeded")]
)
def test_what_stays_as_it_is_is_not_waited_for(error: AgentOSError) -> None:
    assert Patience(6, outlasts=True).wait_after(error) is None


def test_waits_grow_to_a_bound() -> None:
    given = [wait for wait in waits(Patience(6, outlasts=True), *[AWAY] * 40) if wait is not None]

    assert given[0] <= FIRST_BACKOFF
    assert all(later > earlier for earlier, later in pairwise(given[:4]))
    assert all(0.75 * MAX_BACKOFF <= wait <= MAX_BACKOFF for wait in given[4:])
    assert len(set(given[4:])) > 1


def test_what_was_told_is_waited_for_and_no_refusal_longer_than_a_minute() -> None:
    def refusing(told: timedelta) -> ResourceExhausted:
        return ResourceExhausted("later", retry_after=told)

    def away(told: timedelta) -> Unavailable:
        return Unavailable("later", retry_after=told)

    assert Patience(6).wait_after(refusing(timedelta(seconds=30))) == timedelta(seconds=30)
    assert Patience(6).wait_after(refusing(MAX_TOLD * 2)) is None
    assert Patience(6, outlasts=True).wait_after(away(timedelta(seconds=30))) == timedelta(seconds=30)
    assert Patience(6, outlasts=True).wait_after(away(MAX_TOLD * 2)) == MAX_TOLD
