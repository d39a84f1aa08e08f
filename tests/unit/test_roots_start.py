"""The collector looks at what came after the start, and not for long."""

import gc
from collections.abc import Iterator

import pytest

from deploy.roots.start import ALLOCATIONS, start_is_over


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_was_built_at_the_start_is_not_looked_at_again() -> None:
    built: list[object] = [[]]

    start_is_over()
    came: list[object] = [[]]

    looked_at = {id(one) for one in gc.get_objects()}
    assert id(built) not in looked_at
    assert id(came) in looked_at
    assert gc.get_threshold()[0] == ALLOCATIONS
