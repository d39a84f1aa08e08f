"""The strict parser: what it takes, and what it refuses with which code."""

import pytest

from ports.errors import InvalidArgument
from ports.http.strict_json import MAX_DEPTH, parse


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1, "b": [true, null, 1.5, "x"]}',
        b'"\\ud83d\\ude00"',
        b"9223372036854775807",
        b"-9223372036854775808",
        b'{"a": "[[[[{{{{"}',
        nested(MAX_DEPTH),
    ],
)
def test_ordinary_json_is_parsed(raw: bytes) -> None:
    parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b"[1,]",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'{"a":1,"a":2}',
        b"\xff",
        b'"\x00"',
        b"1 2",
    ],
)
def test_what_is_not_json_is_refused_as_invalid_json(raw: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(raw)

    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf{}",
        b'"\\u0000"',
        b'{"\\u0000": 1}',
        b'"\\ud800"',
        b'["\\udc00 \\ud800"]',
        b"9223372036854775808",
        b"-9223372036854775809",
        b"1" * 5_000,
        b"1e400",
        nested(MAX_DEPTH + 1),
        b'{"a":' * 100_000,
    ],
)
def test_json_we_do_not_take_is_refused_as_validation_failed(raw: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(raw)

    assert refused.value.code == "validation_failed"


def test_the_refusal_does_not_quote_the_body() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(b'{"password": hunter2}')

    assert "hunter2" not in refused.value.message
