"""What takes controls out tells a test that fails from one that does not, and from code that is broken."""

import signal
import subprocess
import sys

import msgspec

from tests.controls.__main__ import Record, prove
from tests.controls.catalogue import REMOVALS
from tests.controls.removal import Removal
from tests.controls.tree import Tree, copied
from tests.support.named_tests import ROOT

ROW = "T7"
"""A row with a quick test; any would do."""
SOME_ROW = "R2"
"""One with some removals, all of them quick."""
TEST = "test_a_malformed_or_foreign_event_id_is_refused"
PATH = "ports/http/sse.py"


def _prove(tree: Tree, *removals: Removal) -> Record:
    return prove(list(removals), [tree])


def test_only_a_test_that_fails_by_what_it_says_is_seen_red() -> None:
    control = next(one for one in REMOVALS if one.row == ROW)
    red = Removal(ROW, PATH, control.old, control.new, (TEST,))
    green = Removal(ROW, PATH, "Server-sent events: framing", "Server-sent events: frames", (TEST,))
    nobodys_name = Removal(ROW, PATH, "    match = _CURSOR.fullmatch(text)\n", "    match = nobody\n", (TEST,))
    no_module = Removal(ROW, PATH, "import msgspec\n", "import msgspec.nobody\n", (TEST,))

    with copied() as tree:
        assert _prove(tree, red, green) == Record(controls=1, removals=2, seen_red=1, green=1)
        assert _prove(tree, nobodys_name, no_module) == Record(controls=1, removals=2, seen_red=0, green=2)
        # The tree is whole again each time.
        assert _prove(tree, red).seen_red == 1


def test_a_run_that_is_asked_to_end_says_what_it_has_found() -> None:
    command = (sys.executable, "-m", "tests.controls", "--row", SOME_ROW, "--jobs", "1")
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        first = run.stderr.readline()
        run.send_signal(signal.SIGTERM)
        record = msgspec.json.decode(run.stdout.read(), type=Record)

    assert "  red " in first
    removals = sum(one.row == SOME_ROW for one in REMOVALS)
    assert record == Record(controls=1, removals=removals, seen_red=1, green=0, not_tried=removals - 1)
    assert run.returncode == 1
