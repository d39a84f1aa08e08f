"""`docs/pains.md` names tests that exist."""

from tests.support.named_tests import NAMED, absent, named, page


def test_every_pain_has_a_test_and_every_test_that_is_named_exists() -> None:
    rows = [line for line in page("pains.md").splitlines() if line[:2] == "| "]

    assert [row for row in rows[1:] if NAMED.search(row) is None] == []
    assert absent(page("pains.md")) == []


def test_no_test_is_named_for_nothing() -> None:
    assert len(named(page("pains.md"))) > 20
