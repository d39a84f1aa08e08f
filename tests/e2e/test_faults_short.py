"""The engine's promises over real services that are killed, stopped and cut off: the short form, a minute with one seed.

The long form, with seeds of its own: `./agentos test faults --minutes 10`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.faults.driver import Outcome
from tests.support.node import ROOT

SEED: Final = 20_260_101


def test_what_was_promised_holds_under_faults(tmp_path: Path) -> None:
    written = tmp_path / "outcome.json"

    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--short", "--seed", str(SEED), "--json", str(written)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    outcome = msgspec.json.decode(written.read_bytes(), type=Outcome)
    assert {one.invariant for one in outcome.records} == {"R1", "R4", "R5", "R6", "R7", "R17", "exits"}
    # A run in which nothing happened would prove nothing.
    figures = {one.invariant: one.figures for one in outcome.records}
    assert float(str(figures["R1"]["acked"])) >= 10
    assert float(str(figures["R17"]["requests"])) >= 3
    assert float(str(figures["R5"]["stale_writes_refused"])) >= 1
    assert len(outcome.faults) >= 3
