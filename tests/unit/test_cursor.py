"""Cursors come back as they were given, and nothing else is taken for one."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ports.cursor import MAX_CURSOR_CHARS, decode_cursor, encode_cursor
from ports.errors import InvalidArgument

POSITION = (datetime(2030, 1, 1, 12, 30, 15, 123456, tzinfo=UTC), "run_1")


def test_a_cursor_comes_back_as_it_was_given() -> None:
    cursor = encode_cursor("runs", POSITION)

    assert decode_cursor("runs", cursor, tuple[datetime, str]) == POSITION
    assert cursor.isascii()
    assert not set(cursor) & set("+/= ")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "AAAA",
        "nonsense",
        "é",
        "\x00",
        " ",
        encode_cursor("runs", POSITION) + "A",
        encode_cursor("runs", POSITION)[:-2],
        encode_cursor("agents", POSITION),
        encode_cursor("runs", "run_1"),
        encode_cursor("runs", (*POSITION, "more")),
        encode_cursor("runs", (POSITION[0], "nul\x00")),
        encode_cursor("runs", (POSITION[0], "x" * MAX_CURSOR_CHARS)),
    ],
)
def test_what_can_not_be_ours_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_cursor("runs", cursor, tuple[datetime, str])


@given(st.text(max_size=100))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        position = decode_cursor("runs", text, tuple[str])
    except InvalidArgument:
        return
    assert isinstance(position[0], str)
