"""What need not be looked at, because no detector of patterns finds anything there."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.regex_pii import find
from ports.pii_rules import is_prose, prose_seam, seam

_WORD = st.from_regex(r"[A-Za-z]{1,16}(?:'[a-z]{1,2})?[,.;!?]?", fullmatch=True)
_PROSE = re.compile(
    r"(?:[A-Za-z]{1,16}+(?:'[a-z]{1,2})?[,.;!?]?[ \n]{1,2})*+(?:[A-Za-z]{1,16}+(?:'[a-z]{1,2})?[,.;!?]?)?"
)
"""What is told by kinds of characters."""
_SAMPLED = st.sampled_from(
    ["password", "secret", "Bearer", "ssn", "social security", "api key", "AKIAIOSFODNNEXAM", "token"]
)


@given(st.lists(st.one_of(_WORD, _SAMPLED), max_size=12), st.sampled_from([" ", "\n", "  ", " \n"]))
def test_nothing_is_found_in_prose(words: list[str], blank: str) -> None:
    text = blank.join(words)

    assert is_prose(text)
    assert find(text) == ()


@given(st.lists(st.one_of(_WORD, _SAMPLED), max_size=12), st.sampled_from([" ", "\n", "  ", " \n"]), st.integers(0, 80))
def test_a_seam_in_prose_is_where_seams_are(words: list[str], blank: str, length: int) -> None:
    text = blank.join(words)[:length]

    assert prose_seam(text) in {None, seam(text)}


@given(
    st.lists(
        st.one_of(
            _WORD,
            st.sampled_from(["", "a.b", "so..", ",", "it's", "x'y'z", "don'", "'tis", "it''s", "a'B", "it's,", "a.'s"]),
            st.sampled_from(
                ["a" * 16 + "'s", "a" * 17, "a" * 15 + "'st", "a1", "\t", "we'll'", "it'sn", "\u017f", "\u212a"]
            ),
        ),
        max_size=6,
    ),
    st.sampled_from([" ", "\n", "  ", " \n", "   ", ""]),
    st.sampled_from(["", " ", "the end", "\n\n", "'", "'s"]),
)
def test_prose_is_what_the_pattern_says(words: list[str], blank: str, end: str) -> None:
    text = blank.join(words) + end

    assert is_prose(text) is (_PROSE.fullmatch(text) is not None)


@given(st.text("aB' .,\n1", max_size=24))
def test_the_same_of_any_text(text: str) -> None:
    assert is_prose(text) is (_PROSE.fullmatch(text) is not None)


def test_most_prose_has_its_seam_behind_its_last_blank() -> None:
    assert prose_seam("the quick brown fox, it") == len("the quick brown fox, ")
    assert prose_seam("one line\n") == len("one line\n")
    assert prose_seam("word") == 0
    assert prose_seam("the password ") is None


@pytest.mark.parametrize(
    "text",
    [
        "a@b.co", "call 5550142", "sk-abcdefghijklmnopqrstuvwx", "AKIAABCDEFGHIJKLMNOP", "http://x", "a_b", "Stra\u00dfe",
        "x\u200by", "word.word", "-----BEGIN", "tab\there", "50 %", "&amp;", "[EMAIL]", "a\u00a0b", "\\u0041",
    ],
)  # fmt: skip
def test_whatever_may_hold_something_is_not_prose(text: str) -> None:
    assert not is_prose(text)
    assert not is_prose(f"some words before {text} and after")
