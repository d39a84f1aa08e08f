"""What the fault driver says at the end: each figure that decides beside its limit, the seed, and by its exit code whether
all hold."""

from pathlib import Path

import msgspec
import pytest

from tests.faults.__main__ import report
from tests.faults.driver import Outcome, drawn
from tests.faults.reconcile import Record, record

HOLDS = record("R5", {"zombie_commits": 0, "takeover_p99_s": 25.3}, limits={"takeover_p99_s": 30.0}, stopped_s=75)
BROKEN = record("E10", {"model_steps_paid_twice": 2, "in_doubt_and_not_said": 0}, examples=["key-1/0: why"])


def outcome(*records: Record) -> Outcome:
    return Outcome(seed=311, records=list(records), faults=[], refusals={})


def test_one_broken_limit_is_exit_code_1_and_is_named_with_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    code = report(outcome(HOLDS, BROKEN), None)

    written, said = capsys.readouterr()
    assert code == 1
    assert [msgspec.json.decode(line, type=Record).invariant for line in written.splitlines()] == ["R5", "E10"]
    assert said.splitlines() == [
        "✓ R5    zombie_commits 0 ≤ 0 · takeover_p99_s 25.3 ≤ 30",
        "✗ E10   model_steps_paid_twice 2 > 0 · in_doubt_and_not_said 0 ≤ 0",
        "        key-1/0: why",
        "seed 311, 0 faults: broken: E10 (model_steps_paid_twice 2 > 0)",
    ]


def test_where_all_hold_it_is_0(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = report(outcome(HOLDS), str(tmp_path / "outcome.json"))

    assert code == 0
    assert capsys.readouterr().err.splitlines()[-1] == "seed 311, 0 faults: all hold"
    assert msgspec.json.decode((tmp_path / "outcome.json").read_bytes(), type=Outcome) == outcome(HOLDS)


def test_a_seed_makes_the_same_choices_of_a_kind_whatever_is_drawn_beside_them() -> None:
    alone, again, beside = drawn(311, "faults"), drawn(311, "faults"), drawn(311, "clients")
    first = [alone.random() for _ in range(3)]

    drawn_between = [(again.random(), beside.random())[0] for _ in range(3)]

    assert drawn_between == first
    assert drawn(311, "clients").random() != first[0]
    assert drawn(312, "faults").random() != first[0]
