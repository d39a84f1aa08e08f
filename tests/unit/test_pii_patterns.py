"""What the pattern detector finds beyond the kit's samples, what it leaves alone, and how long it takes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.regex_pii import find
from adapters.regex_pii.checks import is_card, luhn, mod97
from ports.pii_text import canonical_form

CARD = "4111111111111111"


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find(text)]


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("联系我alice@example.com谢谢", "email", "alice@example.com"),
        ("o'brien@example.co.uk", "email", "o'brien@example.co.uk"),
        ("?to=alice%40example.com&x", "email", "alice%40example.com"),
        ("почта@пример.рф", "email", "почта@пример.рф"),
        ("'alice@example.com'", "email", "alice@example.com"),
        ("a" * 100 + "@example.com", "email", "a" * 100 + "@example.com"),
        ("rows 12 " + CARD + " 7", "payment_card", CARD),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "payment_card", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
        ("3 of 4111-1111-1111-1111 on 12", "payment_card", "4111-1111-1111-1111"),
        ("card" + CARD + "end", "payment_card", CARD),
        ("٤١١١١١١١١١١١١١١١", "payment_card", "٤١١١١١١١١١١١١١١١"),
        ("4111–1111–1111–1111", "payment_card", "4111–1111–1111–1111"),
        ("IBAN: GB82 WEST 1234 5698 7654 32.", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("gb82west12345698765432", "iban", "gb82west12345698765432"),
        ("SSN: 536221234", "us_ssn", "536221234"),
        ("+49 (0)30 1234567", "phone", "+49 (0)30 1234567"),
        ("call (212) 555-0142 now", "phone", "(212) 555-0142"),
        ("postgres://app:hunter2@db/x", "secret", "hunter2"),
        ("password = 'Tr0ub4dor&3'", "secret", "Tr0ub4dor&3"),
        ("Authorization: Bearer abc123def456", "secret", "abc123def456"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "secret", "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl"),
        ("sk-" + "abcdefghij" * 3, "secret", "sk-" + "abcdefghij" * 3),
        ("x -----BEGIN RSA PRIVATE KEY-----\nMII", "secret", "-----BEGIN RSA PRIVATE KEY-----\nMII"),
    ],
)
def test_it_is_found(text: str, kind: str, part: str) -> None:
    assert found(text) == [(kind, part)]


@pytest.mark.parametrize(
    "text",
    [
        "What is 17.5 % of 2340, and how many words are in: to be or not to be?",
        "run_0192f3a41234712381234111111111111", "evt_41111111111111114111111111111111",
        "run_" + "a" * 8 + CARD + "b" * 8, "sha256:" + "e" * 40 + CARD + "c" * 8, "00-" + "a" * 32 + "-" + CARD + "-01",
        "aaaaaaaa-4111-1111-1111-111111111111", "run_" + "a" * 32 + " and evt_" + "a" * 8 + CARD + "b" * 8,
        "550e8400-e29b-41d4-a716-446655440000", "sha256:" + "4" * 64, "0.4111111111111111", "3.14159265358979323846",
        "4111111111111112", "4111111111111111111111", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "100 200 300 400 500",
        "2026-11-20T17:40:08.123456+01:00", "1732124408123", "ISBN 978-3-16-148410-0", "127.0.0.1:8080",
        "version 10.0.19045", "2+12345678", "password: forgotten", "de 2024 se realizaron 12 obras", "a@b",
        "@everyone", "user@localhost",
        "536-00-1234", "000-12-3456", "912-34-5678", "http://host:8080/a@b", "1,234,567.89", "10:30-11:45",
    ],
)  # fmt: skip
def test_it_is_left_alone(text: str) -> None:
    assert found(text) == []


def test_overlapping_finds_become_one_span_that_covers_both() -> None:
    assert found("postgres://app:pass1@mail.example.com/") == [("secret", "pass1@mail.example.com")]


def test_two_cards_in_a_row_are_two() -> None:
    text = "4111 1111 1111 1111 5500 0055 5555 5559"

    assert [kind for kind, _ in found(text)] == ["payment_card", "payment_card"]


@given(st.text(st.characters(), max_size=200))
def test_spans_are_well_formed_for_any_text(text: str) -> None:
    end = 0
    for span in find(text):
        assert end <= span.start < span.end <= len(text)
        end = span.end


@given(
    before=st.text(st.characters(categories=("Lo", "Zs", "So")), max_size=20),
    after=st.text(st.characters(categories=("Lo", "Zs", "So")), max_size=20),
    hidden=st.lists(st.sampled_from("\u200b\u200d\u00ad\u2060\ufeff\ufe0f\u034f\u202e"), min_size=16, max_size=16),
)
def test_a_card_is_found_whatever_is_hidden_in_it(before: str, after: str, hidden: list[str]) -> None:
    disguised = "".join(digit + char for digit, char in zip(CARD, hidden, strict=True))
    text = f"{before} {disguised} {after}"

    assert any(text[span.start : span.end].startswith(disguised[:-1]) for span in find(text))


@given(st.text(st.characters(), max_size=100))
def test_the_way_back_leads_to_the_character_that_was_folded(text: str) -> None:
    canonical = canonical_form(text)

    if canonical.starts is None or canonical.ends is None:
        assert canonical.text == text
    else:
        assert len(canonical.starts) == len(canonical.ends) == len(canonical.text)
        assert list(canonical.starts) == sorted(canonical.starts)
        assert all(start < end for start, end in zip(canonical.starts, canonical.ends, strict=True))


HOSTILE = (
    "a", "a.", "@", "a@", "1", "1 ", "4111 ", "+1", "eyJ", "eyJaaaaaaaaa.", "a-", "://a:", "bearer ", "bearer 1",
    "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "DE00 ", "de00", "password=", "ssn ", "x@a.", "\u200b1", "a'", "sk-",
    "(212) 555", "%40", "run_" + "0" * 32 + " 1-", "ssn " + " " * 20, "é@",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_the_time_stays_linear_for_texts_made_to_hurt(piece: str) -> None:
    # What some detectors look for before they start is there, at the end.
    text = piece * (200_000 // len(piece)) + " @ %40 1"
    started = time.process_time()

    find(text)

    # Linear takes well under a second; quadratic would take hours.
    assert time.process_time() - started < 10


def test_checksums_hold() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert is_card(CARD)
    assert not is_card("1234567812345670")
    assert mod97("GB82WEST12345698765432")
    assert not mod97("GB82WEST12345698765431")
