"""Each control of the threat model can be taken out, and says which tests fail then; `agentos test controls` does it."""

import ast

import pytest

from tests.controls.catalogue import NOT_REMOVED, REMOVALS
from tests.controls.removal import Removal
from tests.controls.tree import files_of, taken_out
from tests.controls.watch import proves
from tests.support.named_tests import ROOT
from tests.support.threat_model import rows


def test_every_row_has_a_removal_or_a_reason_and_not_both() -> None:
    removed = {one.row for one in REMOVALS}

    assert removed | NOT_REMOVED.keys() == rows().keys()
    assert removed & NOT_REMOVED.keys() == set()


def test_every_removal_is_of_a_text_that_is_there_once_and_leaves_code_behind() -> None:
    for one in REMOVALS:
        whole = (ROOT / one.path).read_text(encoding="utf-8")
        left = taken_out(one, whole)
        assert left != whole
        if one.path.endswith(".py"):
            ast.parse(left)


def test_every_removal_names_tests_of_its_row() -> None:
    wrong = [(one.row, one.tests) for one in REMOVALS if not one.tests or len(one.ids) != len(one.tests)]

    assert wrong == []


def test_a_text_that_is_not_there_or_there_twice_is_seen() -> None:
    for whole in ("", "a b a"):
        with pytest.raises(ValueError, match="not once"):
            taken_out(Removal("S1", "x.py", "a", "", ("test_x",)), whole)


def test_a_clause_is_run_for_each_adapter_that_is_bound_to_it() -> None:
    assert files_of(["conformance/run_state_claims.py::test_x", "tests/unit/test_edge.py::test_y"]) == [
        "tests/contract/test_inproc_run_state.py",
        "tests/contract/test_postgres_run_state.py",
        "tests/unit/test_edge.py",
    ]


def test_code_that_is_broken_proves_nothing() -> None:
    assert proves(AssertionError())
    assert proves(ExceptionGroup("", [NameError(), AssertionError()]))
    assert not proves(ExceptionGroup("", [NameError(), ImportError()]))
