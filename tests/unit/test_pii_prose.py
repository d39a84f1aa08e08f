"""What need not be looked at, because no detector of patterns finds anything there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.regex_pii import find
from ports import pii_rules
from ports.pii_rules import is_prose, prose_seam, seam

_WORD = st.from_regex(r"[A-Za-z]{1,16}(?:'[a-z]{1,2})?[,.;!?]?", fullmatch=True)
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
        st.one_of(_WORD, st.sampled_from(["", "a.b", "so..", ",", "it's", "x'y'z", "don'", "a" * 17, "a1", "\t"])),
        max_size=6,
    ),
    st.sampled_from([" ", "\n", "  ", " \n", "   "]),
    st.sampled_from(["", " ", "the end", "\n\n"]),
)
def test_a_long_text_is_prose_by_the_same_rule_as_a_short_one(words: list[str], blank: str, end: str) -> None:
    text = "word " * 40 + blank.join(words) + end

    assert len(text) >= pii_rules._LONG
    assert is_prose(text) is (pii_rules._PROSE.fullmatch(text) is not None)


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
