"""The command: `python -m tests.controls [--row ID …] [--jobs N]`."""

import argparse
import queue
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import msgspec
from msgspec import Struct

from tests.controls.catalogue import REMOVALS
from tests.controls.removal import Removal
from tests.controls.tree import Said, Tree, copied
from tests.controls.watch import GREEN, RED

_SLOW = ("tests/unit", "conformance", "tests/contract", "tests/integration", "tests/e2e")
_ABSENT = Said("absent", "")


class Record(Struct, frozen=True):
    controls: int
    removals: int
    seen_red: int
    green: int
    """Removals of which a test did not fail, or not by what it says, or had failed before."""


class Trees:
    """As many copies as there are runs at once."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        self._free: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for tree in trees:
            self._free.put(tree)
        self.width = len(trees)

    def whole(self, tests: Iterable[str]) -> dict[str, Said]:
        tree = self._free.get()
        try:
            return tree.run(tests)
        finally:
            self._free.put(tree)

    def without(self, removal: Removal) -> dict[str, Said]:
        tree = self._free.get()
        try:
            with tree.without(removal):
                if why := tree.broken_by(removal):
                    return {test: Said("broken", why) for test in removal.ids}
                return tree.run(removal.ids, changed=removal.path)
        finally:
            self._free.put(tree)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.controls", description=__doc__)
    parser.add_argument("--row", action="append", metavar="ID", help="of the threat model; may be repeated (all)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs of tests at once (%(default)s)")
    given = parser.parse_args(arguments)
    removals = sorted((one for one in REMOVALS if given.row is None or one.row in given.row), key=slowness)
    if unknown := set(given.row or ()) - {one.row for one in removals}:
        parser.error(f"no removal for {', '.join(sorted(unknown))}")
    with ExitStack() as stack:
        record = prove(removals, [stack.enter_context(copied()) for _ in range(given.jobs)])
    sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
    return 1 if record.green else 0


def prove(removals: list[Removal], copies: Sequence[Tree]) -> Record:
    trees = Trees(copies)
    before = seen_whole({test for one in removals for test in one.ids}, trees)
    seen_red = 0
    with ThreadPoolExecutor(trees.width) as pool:
        for removal, (said, seconds) in zip(removals, pool.map(lambda one: timed(trees, one), removals), strict=True):
            reds = 0
            for test in removal.ids:
                found = (
                    said.get(test, _ABSENT) if before.get(test, _ABSENT).verdict == GREEN else before.get(test, _ABSENT)
                )
                when = "" if before.get(test, _ABSENT).verdict == GREEN else "without the removal: "
                reds += found.verdict == RED and not when
                what = " ".join(removal.old.split())[:44]
                say(
                    f"{removal.row:4} {removal.path}: {what}  {test}  {when}{found.verdict} {found.why}  {seconds:.1f} s"
                )
            seen_red += reds == len(removal.ids)
    return Record(len({one.row for one in removals}), len(removals), seen_red, len(removals) - seen_red)


def seen_whole(tests: set[str], trees: Trees) -> dict[str, Said]:
    """What they say with every control in its place, each once: a test that always fails proves nothing."""
    kinds = [[test for test in sorted(tests) if test.startswith(kind)] for kind in _SLOW]
    with ThreadPoolExecutor(trees.width) as pool:
        return {test: said for part in pool.map(trees.whole, filter(None, kinds)) for test, said in part.items()}


def timed(trees: Trees, removal: Removal) -> tuple[dict[str, Said], float]:
    began = time.perf_counter()
    said = trees.without(removal)
    return said, time.perf_counter() - began


def slowness(removal: Removal) -> int:
    """Those that start a node come last."""
    return max(place for place, kind in enumerate(_SLOW) for test in removal.ids if test.startswith(kind))


def say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
