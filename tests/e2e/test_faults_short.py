"""The engine's promises over real services that are killed, stopped and cut off: the short forms, with one seed each.

The long forms, with seeds of their own: `./agentos test faults --minutes 10` and `./agentos test faults --points 200`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.faults.driver import Outcome
from tests.faults.points import POINTS
from tests.support.node import ROOT

SEED: Final = 20_260_101


def driven(written: Path, *flags: str) -> Outcome:
    """What the driver found, which must be that everything holds."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *flags, "--seed", str(SEED), "--json", str(written)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return msgspec.json.decode(written.read_bytes(), type=Outcome)


def test_what_was_promised_holds_under_faults(tmp_path: Path) -> None:
    outcome = driven(tmp_path / "outcome.json", "--short")

    assert {one.invariant for one in outcome.records} == {"R1", "R4", "E10", "R5", "R6", "R7", "R17", "exits"}
    # A run in which nothing happened would prove nothing.
    figures = {one.invariant: one.figures for one in outcome.records}
    assert float(str(figures["R1"]["acked"])) >= 10
    assert float(str(figures["R17"]["requests"])) >= 3
    assert float(str(figures["R5"]["taken_over_from_the_stopped"])) >= 1
    # What the stopped worker still wanted to write was refused, or it had no connection to write by and gave up.
    gave_way = ("stale_writes_refused", "workers_fenced_themselves")
    assert sum(float(str(figures["R5"][name])) for name in gave_way) >= 1
    assert len(outcome.faults) >= 3


def test_a_step_is_recorded_once_wherever_its_worker_is_killed(tmp_path: Path) -> None:
    outcome = driven(tmp_path / "outcome.json", "--points", "2")

    assert [one.invariant for one in outcome.records] == ["R1", "kills", "R4", "E10", "R6"]
    figures = {one.invariant: one.figures for one in outcome.records}
    assert figures["kills"]["kills"] == 2 * len(POINTS)
    # A kill that no call was repeated for would have met nothing.
    assert float(str(figures["R4"]["tool_calls"])) > float(str(figures["R4"]["tool_steps"]))
