"""What a small request costs to look through: never so much that others wait for it."""

import time

from ports.pii import Span
from stack_b.redaction.parts import is_cut
from stack_b.redaction.spans import rewritten

MANY = 12_000


class TestMemberNames:
    def test_as_many_names_as_fit_that_become_one_are_numbered_in_no_time(self) -> None:
        names = [f"user{number}@example.com" for number in range(MANY)]
        replacements = dict.fromkeys(names, "[EMAIL]")
        started = time.process_time()

        shown = rewritten(dict.fromkeys(names, 1), replacements)

        assert list(shown)[:3] == ["[EMAIL]", "[EMAIL]_2", "[EMAIL]_3"]
        assert len(shown) == MANY
        # It took 10 s and more to try each number again for each name.
        assert time.process_time() - started < 2

    def test_a_number_that_is_taken_is_left_out(self) -> None:
        given = {"[EMAIL]_2": 0, "a@example.com": 1, "b@example.com": 2, "[EMAIL]": 3, "[EMAIL]_4": 4}
        names = dict.fromkeys(("a@example.com", "b@example.com"), "[EMAIL]")

        shown = rewritten(given, names)

        assert list(shown.values()) == [0, 1, 2, 3, 4]


class TestParts:
    def test_as_many_parts_as_fit_with_something_in_each_are_compared_in_no_time(self) -> None:
        parts = ["a@b.example " for _ in range(MANY)]
        spans = [Span(start=12 * at, end=12 * at + 11, kind="email") for at in range(MANY)]
        started = time.process_time()

        assert not is_cut(spans, parts)

        # It took 5 s and more to compare each with each.
        assert time.process_time() - started < 1

    def test_what_goes_over_an_end_is_seen_and_what_stops_there_is_not(self) -> None:
        parts = ["", "abc", "", "def", ""]

        assert not is_cut([Span(start=0, end=3, kind="email"), Span(start=3, end=6, kind="email")], parts)
        assert is_cut([Span(start=0, end=2, kind="email"), Span(start=2, end=4, kind="email")], parts)
