"""Every control of `docs/threat-model.md` names tests that exist, and what has no control is said to have none."""

import re
from typing import Final

from tests.support.named_tests import NAMED, absent, named, page

PAGE: Final = "threat-model.md"
STRIDE: Final = frozenset("STRIDE")
_SECTION: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_BEFORE: Final = "What is guarded, and from whom"
_OPEN: Final = "Not covered"


def sections() -> dict[str, str]:
    _, *parts = _SECTION.split(page(PAGE))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(section: str) -> list[list[str]]:
    """The cells of its threats."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if not line.startswith("| |")]


def boundaries() -> dict[str, list[list[str]]]:
    return {name: rows(text) for name, text in sections().items() if name not in {_BEFORE, _OPEN}}


def test_every_control_names_tests_and_each_of_them_exists() -> None:
    threats = [row for found in boundaries().values() for row in found]

    assert [row for row in threats if len(row) != 4] == []
    assert [row for row in threats if NAMED.search(row[3]) is None or NAMED.sub("", row[3]).strip()] == []
    assert absent(page(PAGE)) == []


def test_every_boundary_has_threats_and_every_threat_a_letter() -> None:
    assert [name for name, found in boundaries().items() if len(found) < 3] == []
    assert {row[0] for found in boundaries().values() for row in found} == STRIDE


def test_what_is_not_covered_is_said_and_has_no_tests() -> None:
    assert sections()[_OPEN].count("\n* ") > 3
    assert named(sections()[_OPEN]) == []


def test_a_test_that_is_not_there_is_seen() -> None:
    assert absent("`tests/unit/test_edge.py::test_nobody` `tests/gone.py::test_it`") == [
        ("tests/unit/test_edge.py", "test_nobody"),
        ("tests/gone.py", "test_it"),
    ]
