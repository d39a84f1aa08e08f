"""In which order files are run when processes share them."""

import pytest

from tests.support.order import FOLDERS, LONGEST, ROOT, misplaced, place


def test_the_longest_come_first_and_then_folder_by_folder() -> None:
    files = ["tests/unit/test_x.py", "tests/e2e/test_x.py", LONGEST[1], "tests/contract/test_x.py", LONGEST[0]]

    assert sorted(files, key=place) == [
        LONGEST[0],
        LONGEST[1],
        "tests/e2e/test_x.py",
        "tests/contract/test_x.py",
        "tests/unit/test_x.py",
    ]


@pytest.mark.parametrize("name", LONGEST + FOLDERS)
def test_what_is_named_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_a_test_that_wants_to_be_alone_where_nobody_looks_is_named(request: pytest.FixtureRequest) -> None:
    assert misplaced([request.node]) == []

    request.node.add_marker(pytest.mark.alone)

    assert misplaced([request.node]) == [request.node.nodeid]
