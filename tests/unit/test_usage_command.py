"""`agentos usage`: requests are counted by their records, and paid as the ledger says."""

from datetime import date
from typing import Final

from deploy.administration.standing import joined
from ports.budget import Spent
from ports.request_log import Counted

DAY: Final = date(2026, 3, 1)


def spent(model: str, cost: int) -> Spent:
    return Spent(day=DAY, model=model, calls=1, prompt_tokens=10, completion_tokens=1, cost_nanousd=cost)


def test_what_was_asked_and_what_was_paid_are_one_line_by_day_and_model() -> None:
    lines = joined([Counted(day=DAY, model="m-1", requests=3, denied=0)], [spent("m-1", 5)])

    [line] = lines
    assert (line.day, line.model, line.requests, line.denied) == (DAY, "m-1", 3, 0)
    assert (line.calls, line.prompt_tokens, line.completion_tokens, line.cost_nanousd) == (1, 10, 1, 5)


def test_what_was_paid_is_told_where_no_record_is_left_of_it_and_the_other_way_round() -> None:
    """A gateway that was killed took its last records with it; what was denied has cost nothing."""
    lines = joined([Counted(day=DAY, model="", requests=1, denied=1)], [spent("", 7), spent("m-2", 9)])

    assert [(one.model, one.requests, one.denied, one.cost_nanousd) for one in lines] == [
        ("", 1, 1, 7),
        ("m-2", 0, 0, 9),
    ]
