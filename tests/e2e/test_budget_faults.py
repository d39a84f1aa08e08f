"""Budgets hold while gateways are killed in the middle of streams: the short form of `python -m tests.faults.budget`."""

import os
import subprocess
import sys
from typing import Final

import msgspec

from tests.faults.reconcile import Record
from tests.support.node import ROOT

SEED: Final = 20_260_101


def test_nothing_is_overspent_leaked_or_refused_for_nothing() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.faults.budget",
            "--short",
            "--kills",
            "3",
            "--clients",
            "64",
            "--seed",
            str(SEED),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = msgspec.json.decode(done.stdout, type=Record)
    assert (found.invariant, found.ok) == ("R8", True)
    # A run in which nothing happened would prove nothing.
    assert float(str(found.figures["roomy_cut"])) + float(str(found.figures["tight_cut"])) >= 3
    assert float(str(found.figures["roomy_hung_up"])) >= 3
