"""Random ids that are fetched many at a time."""

import os
import re

from ports.randoms import AT_ONCE, Randoms


def test_none_is_given_twice() -> None:
    randoms = Randoms(10)
    taken = [randoms.take() for _ in range(10 * AT_ONCE)]

    assert len(set(taken)) == len(taken)
    assert all(re.fullmatch("[0-9a-f]{20}", one) for one in taken)


def test_a_child_process_has_its_own() -> None:
    randoms = Randoms(16)
    randoms.take()
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.write(theirs, randoms.take().encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(ours, 100).decode()
    os.close(ours)
    os.close(theirs)

    assert len(said) == 32
    assert said not in {randoms.take() for _ in range(AT_ONCE)}
