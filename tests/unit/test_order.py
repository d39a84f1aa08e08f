"""In which order files are run when processes share them."""

import pytest

from tests.support.order import FOLDERS, LONGEST, ROOT, misplaced, place, turned


def test_the_longest_come_first_and_then_folder_by_folder() -> None:
    files = ["tests/unit/test_x.py", "tests/e2e/test_x.py", LONGEST[1], "tests/contract/test_x.py", LONGEST[0]]

    assert sorted(files, key=place) == [
        LONGEST[0],
        LONGEST[1],
        "tests/e2e/test_x.py",
        "tests/contract/test_x.py",
        "tests/unit/test_x.py",
    ]


def test_each_process_begins_to_read_elsewhere_and_reads_all() -> None:
    assert [turned("abcdef", number, 4) for number in range(4)] == [
        ["a", "b", "c", "d", "e", "f"],
        ["b", "c", "d", "e", "f", "a"],
        ["d", "e", "f", "a", "b", "c"],
        ["e", "f", "a", "b", "c", "d"],
    ]
    assert turned([], 3, 4) == []


@pytest.mark.parametrize("name", LONGEST + FOLDERS)
def test_what_is_named_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_a_test_that_wants_to_be_alone_where_nobody_looks_is_named(request: pytest.FixtureRequest) -> None:
    assert misplaced([request.node]) == []

    request.node.add_marker(pytest.mark.alone)

    assert misplaced([request.node]) == [request.node.nodeid]
