"""Every surface answers as its OpenAPI document says, whatever it is sent: the short form of `tests.faults.schemas`."""

import os
import subprocess
import sys
from typing import Final

import msgspec
import pytest

from tests.faults.reconcile import Record
from tests.support.node import ROOT

SEED: Final = 20_260_101
MINUTES: Final = 0.6

pytestmark = pytest.mark.alone


def test_no_answer_is_a_5xx_and_each_is_what_the_document_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.schemas", "--minutes", str(MINUTES), "--seed", str(SEED)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    found = msgspec.json.decode(done.stdout, type=Record)
    assert (found.invariant, found.ok) == ("R16", True)
