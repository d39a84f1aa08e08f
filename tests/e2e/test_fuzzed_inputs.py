"""No input is answered with 5xx, and none is kept: the short form of `python -m tests.faults.fuzz`."""

import os
import subprocess
import sys
from typing import Final

import msgspec

from tests.faults.reconcile import Record
from tests.support.node import ROOT

SEED: Final = 20_260_101
INPUTS: Final = 1_000


def test_no_input_is_answered_with_5xx() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", "--inputs", str(INPUTS), "--seed", str(SEED)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    found = msgspec.json.decode(done.stdout, type=Record)
    assert (found.invariant, found.ok) == ("R16", True)
    # A run in which nothing reached a backend would prove nothing.
    assert float(str(found.figures["asked_upstream"])) > INPUTS * 0.1
    assert float(str(found.figures["of_upstreams"])) > 0
