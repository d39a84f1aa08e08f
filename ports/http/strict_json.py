"""One strict JSON parser for all surfaces.

Beyond RFC 8259 it refuses what parsers disagree about or stores can't hold: duplicate members, NaN and Infinity,
integers beyond 64 bits, floats that overflow, nesting beyond a limit, more values than a limit, a byte-order mark, NUL
and lone surrogates.
What is not JSON raises `invalid_json`; JSON with a value we don't take raises `validation_failed`.
"""

import json
import math
import re
from typing import Final, NoReturn

import msgspec

from ports.errors import InvalidArgument
from ports.messages import Json

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 65_536
"""In one body, members and items at any depth. Small ones make megabytes that take seconds to read, for everybody."""

_INT64: Final = range(-(2**63), 2**63)
_INT64_CHARS: Final = 20
# A string token. One without an end counts to the end of the body, and nothing is ever read twice: the time stays linear
# for whatever is sent.
_STRING: Final = rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)'
_STRINGS: Final = re.compile(_STRING, re.DOTALL)
_STARTS: Final = re.compile(_STRING + rb"|([\[{,])", re.DOTALL)
"""Strings, and what a value or member begins after."""
_SEPARATORS: Final = b",[{"
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_SUSPECT_ESCAPE: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_FEWEST_DIGITS: Final = 19
"""Of an integer that does not fit 64 bits."""
_DIGITS: Final = bytes(ord("0") if chr(code).isdecimal() else ord("-") for code in range(128)) + bytes(128)
"""Of each byte: a digit, or another one."""
_LONG_NUMBER: Final = b"0" * _FEWEST_DIGITS


def parse(raw: bytes, *, max_depth: int = MAX_DEPTH) -> Json:
    """The value in `raw`. The caller has bounded its size.

    Raises:
        InvalidArgument: `invalid_json` or `validation_failed`, with the reason and never the content.
    """
    if raw.startswith(b"\xef\xbb\xbf"):
        raise _refused("the body starts with a byte-order mark; send plain UTF-8")
    # In prose there are many commas, and few outside of strings.
    if len(raw) > MAX_VALUES and len(raw) - len(raw.translate(None, _SEPARATORS)) > MAX_VALUES and _too_many(raw):
        raise _refused(f"the body has more than {MAX_VALUES} members and items")
    if _opened(raw, max_depth + 1) > max_depth and _depth(raw) > max_depth:
        raise _refused(f"the body is nested deeper than {max_depth} levels")
    value = _plainly(raw)
    return _thoroughly(raw) if value is None else value


def _plainly(raw: bytes) -> Json:
    """The value in most bodies, at once; None where only a thorough look can tell.

    What our encoder makes of the value is the body itself: so there is no member twice, and nothing that another parser
    could read in another way. What is left are numbers that are too large, and characters that are escaped.
    """
    if (raw.find(b"\\") >= 0 and raw.find(b"\\u") >= 0) or _has_long_number(raw):
        return None
    try:
        value: Json = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if msgspec.json.encode(value) == raw else None


def _has_long_number(raw: bytes) -> bool:
    """Whether there are as many digits one after the other. Of so many bytes in a row, one is looked at first."""
    some = raw[_FEWEST_DIGITS - 1 :: _FEWEST_DIGITS].translate(_DIGITS)
    return some.find(b"0") >= 0 and raw.translate(_DIGITS).find(_LONG_NUMBER) >= 0


def _thoroughly(raw: bytes) -> Json:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8 (byte {error.start})") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    if _SUSPECT_ESCAPE.search(raw):
        _check_strings(value)
    return value


def _malformed(reason: str) -> InvalidArgument:
    return InvalidArgument(f"the body is not valid JSON: {reason}", code="invalid_json")


def _refused(reason: str) -> InvalidArgument:
    return InvalidArgument(reason, code="validation_failed")


def _too_many(raw: bytes) -> bool:
    """Whether more values begin in it than are taken. Looks no further than it must: where there are fewer, strings are at
    most twice as many."""
    begun = 0
    for tokens, match in enumerate(_STARTS.finditer(raw)):
        begun += match.lastindex is not None
        if begun > MAX_VALUES or tokens > 3 * MAX_VALUES:
            return True
    return False


def _opened(raw: bytes, most: int) -> int:
    """How many brackets open, of each kind counted to `most`. Where there are few, finding them to leave them out takes a
    tenth of what counting does, which looks at byte after byte."""
    return 2 * len(raw) - len(raw.replace(b"[", b"", most)) - len(raw.replace(b"{", b"", most))


def _depth(raw: bytes) -> int:
    deepest = level = 0
    for bracket in _STRINGS.sub(b"", raw).translate(None, _NO_BRACKETS):
        if bracket in b"[{":
            level += 1
            deepest = max(deepest, level)
        else:
            level -= 1
    return deepest


def _members(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _malformed("an object has the same member twice")
    return members


def _integer(text: str) -> int:
    if len(text) > _INT64_CHARS or int(text) not in _INT64:
        raise _refused("an integer does not fit 64 bits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _refused("a number is too large for a 64-bit float")
    return value


def _constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not a JSON number")


def _check_strings(value: Json) -> None:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise _refused("a string holds a NUL or a lone surrogate, which can't be stored")
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_strings(name)
            _check_strings(member)
    elif isinstance(value, list):
        for item in value:
            _check_strings(item)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
