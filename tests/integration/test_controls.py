"""What takes controls out tells a test that fails from one that does not, and from code that is broken."""

from tests.controls.__main__ import Record, prove
from tests.controls.catalogue import REMOVALS
from tests.controls.removal import Removal
from tests.controls.tree import Tree, copied

ROW = "T7"
"""A row with a quick test; any would do."""
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
