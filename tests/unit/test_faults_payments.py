"""What excuses a model call that was paid twice, for the fault driver: a gateway lost within the call, nothing else."""

import math
from typing import Final

import pytest

from tests.faults.payments import WRITTEN_WITHIN_S, Disturbed, Payment, Span, paid_twice
from tests.faults.upstream import base_url, life_of

STEP: Final = "key-1/0"
FIRST: Final = Payment(life=1, asked_at=100, answered_at=101)
SECOND: Final = Payment(life=2, asked_at=120, answered_at=121)


def judged(
    *payments: Payment, killed: dict[int, float], journaled_at: float = 121, spans: tuple[Span, ...] = ()
) -> str | None:
    """What is said against a step paid like this; None where it is in doubt."""
    found = paid_twice({STEP: payments}, {STEP: journaled_at}, Disturbed(killed=killed, spans=list(spans)))
    assert len(found.in_doubt) + len(found.unexplained) == 1
    return found.unexplained.get(STEP)


@pytest.mark.parametrize(
    ("killed_at", "answered_at"),
    [(100.5, 101), (100.5, math.inf), (99.9, math.inf), (101.2, 101), (101 + WRITTEN_WITHIN_S, 101)],
    ids=[
        "while the model thinks",
        "no answer ever",
        "before the model has read it",
        "after the answer",
        "at the last moment",
    ],
)
def test_a_gateway_killed_within_the_call_leaves_the_step_in_doubt(killed_at: float, answered_at: float) -> None:
    first = Payment(life=1, asked_at=100, answered_at=answered_at)

    assert judged(first, SECOND, killed={1: killed_at}) is None


@pytest.mark.parametrize("killed", [{}, {2: 100.5}, {1: 120.5}], ids=["nobody", "another one", "later"])
def test_it_is_a_violation_where_the_gateway_that_asked_first_was_alive(killed: dict[int, float]) -> None:
    assert "was not killed" in (judged(FIRST, SECOND, killed=killed) or "")


def test_it_is_a_violation_where_one_gateway_asked_twice_although_it_was_killed_afterwards() -> None:
    again = Payment(life=1, asked_at=102, answered_at=103)

    assert "was not killed" in (judged(FIRST, again, killed={1: 104}) or "")


def test_it_is_a_violation_where_the_journal_had_the_reply_whoever_was_killed() -> None:
    assert "in the journal" in (judged(FIRST, SECOND, killed={1: 102}, journaled_at=101.5) or "")


def test_a_reply_that_the_gateway_kept_to_itself_is_no_excuse_for_long() -> None:
    assert "was not in the journal" in (judged(FIRST, SECOND, killed={1: 101.1 + WRITTEN_WITHIN_S}) or "")


def test_a_gateway_that_can_not_reach_its_database_keeps_the_reply_for_longer() -> None:
    away = (Span(118, 119), Span(100, 109))

    assert judged(FIRST, SECOND, killed={1: 119}, spans=away) is None
    assert "was not in the journal" in (
        judged(FIRST, SECOND, killed={1: 119}, spans=(Span(90, 99), Span(118, 119))) or ""
    )


@pytest.mark.parametrize("away", [Span(100, 119), Span(100.5, 100.5)], ids=["cut off", "killed"])
def test_a_database_that_was_away_is_no_excuse_for_a_gateway_that_lives(away: Span) -> None:
    assert "was not killed" in (judged(FIRST, SECOND, killed={}, spans=(away,)) or "")


def test_each_payment_after_the_first_needs_an_excuse_of_its_own() -> None:
    third = Payment(life=3, asked_at=140, answered_at=141)

    assert judged(FIRST, SECOND, third, killed={1: 101, 2: 121}, journaled_at=141) is None
    assert "was not killed" in (judged(FIRST, SECOND, third, killed={1: 101}, journaled_at=141) or "")


def test_what_was_paid_once_needs_none() -> None:
    found = paid_twice({STEP: [FIRST], "key-2/0": []}, {}, Disturbed())

    assert (found.in_doubt, found.unexplained) == ([], {})


def test_the_model_knows_which_process_of_the_gateway_asks() -> None:
    path = base_url("http://127.0.0.1:1", 17).removeprefix("http://127.0.0.1:1") + "/chat/completions"

    assert life_of(path) == 17
