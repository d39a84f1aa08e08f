"""Every control of `docs/threat-model.md` names tests that exist, and what has no control is said to have none."""

from collections import Counter
from typing import Final

from tests.support.named_tests import absent, named, page
from tests.support.threat_model import OPEN, PAGE, boundaries, sections

STRIDE: Final = frozenset("STRIDE")


def test_every_control_names_tests_and_each_of_them_exists() -> None:
    threats = [row for found in boundaries().values() for row in found]

    assert [row for row in threats if not row.tests or row.more] == []
    assert absent(page(PAGE)) == []


def test_every_boundary_has_threats_and_every_threat_a_letter_and_a_number_of_its_own() -> None:
    assert [name for name, found in boundaries().items() if len(found) < 3] == []
    ids = [row.id for found in boundaries().values() for row in found]
    assert [one for one, times in Counter(ids).items() if times > 1] == []
    assert [one for one in ids if one[0] not in STRIDE or not one[1:].isdecimal()] == []
    assert {one[0] for one in ids} == STRIDE


def test_what_is_not_covered_is_said_and_has_no_tests() -> None:
    assert sections()[OPEN].count("\n* ") > 3
    assert named(sections()[OPEN]) == []


def test_a_test_that_is_not_there_is_seen() -> None:
    assert absent("`tests/unit/test_edge.py::test_nobody` `tests/gone.py::test_it`") == [
        ("tests/unit/test_edge.py", "test_nobody"),
        ("tests/gone.py", "test_it"),
    ]
