"""The strict parser: what it takes, and what it refuses with which code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ports.errors import InvalidArgument
from ports.http import strict_json
from ports.http.strict_json import MAX_DEPTH, MAX_VALUES, parse

# Everything that is of interest to a parser, in texts that are JSON more often than not.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(-(2**70), 2**70), st.text(max_size=8),
    st.sampled_from(["\x00", "\ud800", "\u007f", "\u2028", "/", '"', "\\", "\\u0000"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)
SPELLINGS = st.sampled_from([{}, {"separators": (",", ":")}, {"separators": (",", ":"), "ensure_ascii": False}])
SPOILED = st.tuples(
    st.integers(0, 2**16),
    st.sampled_from(
        [b"", b" ", b'"', b"\\", b"0", b"-0", b"1e400", b"9" * 19, b"\xff", b"\xed\xa0\x80", b'"a":1,', b"[", b"}"]
    ),
)


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
        b"[" + b"0," * MAX_VALUES + b"0]",
        b"[" + b",".join([b"{}"] * (MAX_VALUES + 1)) + b"]",
        b"{" + b",".join(b'"%d":[]' % number for number in range(MAX_VALUES)) + b"}",
        b"[" + b",".join([b'"]\\","'] * (MAX_VALUES + 1)) + b"]",
        b"[[]," + b"," * MAX_VALUES,
    ],
)
def test_json_we_do_not_take_is_refused_as_validation_failed(raw: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(raw)

    assert refused.value.code == "validation_failed"


@pytest.mark.parametrize(
    "value",
    [
        list(range(MAX_VALUES)),
        {str(number): number for number in range(MAX_VALUES)},
        "[a, b], {c: d}, " * MAX_VALUES,
        ['",[{\\' * MAX_VALUES] * 3,
    ],
    ids=["items", "members", "prose", "escapes"],
)
def test_as_many_values_as_are_taken_and_what_looks_like_more_is_parsed(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value


def test_the_refusal_does_not_quote_the_body() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(b'{"password": hunter2}')

    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize(
    "raw",
    [
        "b'['*65 + b'\"' + b'\\\\\"' * 500_000",
        "b'['*65 + b'\"\\\\' * 300_000",
        "b'[' * 65 + b'\"' * 1_000_001",
        "b'{\"a\":' * 200_000",
        "b'[' + b',' * 65_536 + b'\"\"' * 4_000_000",
    ],
    ids=["unterminated", "escapes", "quotes", "nested", "strings"],
)
def test_a_megabyte_made_to_be_slow_is_refused_in_no_time(raw: str) -> None:
    program = f"""
from ports.errors import InvalidArgument
from ports.http.strict_json import parse
try:
    parse({raw})
except InvalidArgument:
    print("refused")
"""

    # The bound is only there to end what would take hours.
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip

    assert done.stdout == "refused\n"


def outcome(read: Any, raw: bytes) -> tuple[str, str]:
    try:
        return "value", repr(read(raw))
    except InvalidArgument as error:
        return error.code, error.message


# A busy machine draws slowly; that is nothing of ours.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES, SPELLINGS, st.lists(SPOILED, max_size=2))
def test_the_quick_look_at_a_body_finds_what_the_thorough_one_does(
    value: Any, spelling: dict[str, Any], spoiled: list[tuple[int, bytes]]
) -> None:
    raw = json.dumps(value, **spelling).encode("utf-8", "surrogatepass")
    for where, what in spoiled:
        at = where % (len(raw) + 1)
        raw = raw[:at] + what + raw[at:]

    quick = strict_json._plainly(raw)

    assert quick is None or ("value", repr(quick)) == outcome(strict_json._thoroughly, raw)
    if not raw.startswith(b"\xef\xbb\xbf"):
        assert outcome(strict_json.parse, raw) == outcome(strict_json._thoroughly, raw)


def test_a_body_as_clients_write_it_is_read_at_once() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Grüße"}] * 100, "temperature": 0.7, "n": 1}

    assert strict_json._plainly(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()) == body
    assert strict_json._plainly(msgspec.json.encode(body)) == body
