"""The command: `python -m tests.controls [--row ID …] [--jobs N]`."""

import argparse
import queue
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import groupby
from typing import Final

import msgspec
from msgspec import Struct

from tests.bench.harness import at_least_one
from tests.controls.catalogue import REMOVALS
from tests.controls.removal import Removal
from tests.controls.tree import Said, Tree, copied
from tests.controls.watch import GREEN, RED

_SLOW: Final = ("tests/unit", "conformance", "tests/integration", "tests/e2e")
_SHOWN_CHARS: Final = 44
_ABSENT: Final = Said("absent", "")


class Record(Struct, frozen=True):
    controls: int
    removals: int
    seen_red: int
    green: int
    """Removals of which a test did not fail, or not by what it says, or had failed before."""
    not_tried: int = 0
    """Removals that an interrupted run did not come to."""


class Trees:
    """As many copies as there are runs at once."""

    def __init__(self, trees: Sequence[Tree]) -> None:
        self._free: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for tree in trees:
            self._free.put(tree)
        self._trees = trees
        self.width = len(trees)

    def stop(self) -> None:
        """Ends what runs now, and whatever begins later."""
        for tree in self._trees:
            tree.stop()

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
    parser.add_argument("--jobs", type=at_least_one, default=2, metavar="N", help="runs of tests at once (%(default)s)")
    given = parser.parse_args(arguments)
    removals = [one for one in REMOVALS if given.row is None or one.row in given.row]
    if unknown := set(given.row or ()) - {one.row for one in removals}:
        parser.error(f"no removal for {', '.join(sorted(unknown))}")
    # Asked to end, it says what it has found so far, as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        record = prove(removals, [stack.enter_context(copied()) for _ in range(given.jobs)])
    sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
    return 1 if record.green or record.not_tried else 0


def prove(removals: list[Removal], copies: Sequence[Tree]) -> Record:
    """The quick ones first, each after its tests were seen to pass. Interrupted, it has found what it found until then."""
    trees, reds = Trees(copies), list[bool]()
    with ThreadPoolExecutor(trees.width) as pool:
        try:
            for red, sentences in each(removals, trees, pool):
                reds.append(red)
                say(sentences)
        except KeyboardInterrupt:
            trees.stop()
            pool.shutdown(cancel_futures=True)
    controls = len({one.row for one in removals})
    return Record(controls, len(removals), sum(reds), len(reds) - sum(reds), len(removals) - len(reds))


def each(removals: list[Removal], trees: Trees, pool: ThreadPoolExecutor) -> Iterator[tuple[bool, str]]:
    """Whether it was seen red and a line for each of its tests, as they become known."""
    before: dict[str, Said] = {}
    for level in range(len(_SLOW)):
        those = [one for one in removals if slowness(one) == level]
        before |= seen_whole({test for one in those for test in one.ids} - before.keys(), trees, pool)
        trying = {pool.submit(timed, trees, removal): removal for removal in those}
        for tried in as_completed(trying):
            removal, (said, seconds) = trying[tried], tried.result()
            found = {test: verdict(before.get(test, _ABSENT), said.get(test, _ABSENT)) for test in removal.ids}
            sentences = (
                f"{removal.row:4} {shown(removal):100} {test}  {what} {why}  {seconds:.1f} s\n"
                for test, (what, why) in found.items()
            )
            yield all(what == RED for what, _ in found.values()), "".join(sentences)


def verdict(before: Said, without: Said) -> tuple[str, str]:
    """Of one test, and what it says of why. A test that always fails proves nothing."""
    if before.verdict != GREEN:
        return f"{before.verdict} without the removal", before.why
    return without.verdict, without.why


def seen_whole(tests: set[str], trees: Trees, pool: ThreadPoolExecutor) -> dict[str, Said]:
    """What they say with every control in its place, each once. Tests of one file share what they start."""
    files = groupby(sorted(tests), key=lambda test: test.partition("::")[0])
    by_file = [list(of_one) for _, of_one in files]
    parts = [[test for of_one in by_file[at :: trees.width] for test in of_one] for at in range(trees.width)]
    return {test: said for part in pool.map(trees.whole, filter(None, parts)) for test, said in part.items()}


def timed(trees: Trees, removal: Removal) -> tuple[dict[str, Said], float]:
    began = time.perf_counter()
    said = trees.without(removal)
    return said, time.perf_counter() - began


def shown(removal: Removal) -> str:
    """Where, and the beginning of what was taken out."""
    return f"{removal.path}: {' '.join(removal.old.split())[:_SHOWN_CHARS]}"


def slowness(removal: Removal) -> int:
    """Those that start a node come last."""
    return max(place for place, kind in enumerate(_SLOW) for test in removal.ids if test.startswith(kind))


def say(sentences: str) -> None:
    sys.stderr.write(sentences)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
