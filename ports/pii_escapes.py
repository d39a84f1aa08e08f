"""Ways to write a character that its reader, or a program before it, undoes: of HTML, URLs, JSON, and of all of them in
each other. Pure.

A text is undone in rounds, so that what is written in an escape of an escape is found too, up to `ROUNDS` of them.
"""

import binascii
import html
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

ROUNDS: Final = 4
"""So many times an escape may be escaped. Backslashes that only double take one round, up to `\\\\\\\\\\\\\\\\u0034`."""

SIGNS: Final = "&%\\"
"""Each escape has one of them."""
ESCAPE: Final = re.compile(
    r"&(?:#[0-9]{1,20};?|#[xX][0-9a-fA-F]{1,20};?|[a-zA-Z]{2,24};)"
    r"|%[0-7][0-9a-fA-F]|%[c-dC-D][0-9a-fA-F]%[89abAB][0-9a-fA-F]"
    r"|%[eE][0-9a-fA-F](?:%[89abAB][0-9a-fA-F]){2}|%[fF][0-7](?:%[89abAB][0-9a-fA-F]){3}"
    r"|\\{1,8}u[dD][89abAB][0-9a-fA-F]{2}\\{1,8}u[dD][c-fC-F][0-9a-fA-F]{2}|\\{1,8}u[0-9a-fA-F]{4}"
    r"|\\{1,8}u\{[0-9a-fA-F]{1,6}\}|\\{1,8}U[0-9a-fA-F]{8}|\\{1,8}x[0-9a-fA-F]{2}|\\{1,8}[bfnrt/\"]"
)
LONGEST_ESCAPE: Final = 26
"""Characters."""
MOST_HELD: Final = 256
"""Escapes, and characters between them, that are undone together where a text comes in pieces."""
STRETCH: Final = re.compile(
    rf"(?:{ESCAPE.pattern}|[{re.escape(SIGNS)}])(?:{ESCAPE.pattern}|[A-Za-z0-9#;%&\\/\"{{}}]){{0,{MOST_HELD - 1}}}+"
)
"""From the first sign on, everything that may belong to an escape in an escape."""

DATA_SIGN: Final = "64,"
"""Without it in a text, there is no URL that holds a text in base64. In any case of its letters."""
# Of the alphabet of base64 no letter is in two cases: `ı`, `ſ` and the sign for kelvin would belong to it.
_DATA: Final = re.compile(r"(?i:data:([^,\s]{0,200});base64,)([A-Za-z0-9+/_=-]{4,}+)")
_TEXTUAL: Final = re.compile(
    r"(?:|text/.*|application/(?:.*\+)?(?:json|xml|yaml|javascript|sql|csv|toml|rtf).*)", re.IGNORECASE
)
_URL_SAFE: Final = str.maketrans("-_", "+/", "=")
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_LARGEST: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)

Meaning: TypeAlias = Callable[[re.Match[str]], str | None]


class Written:
    """A text, and of each character where it comes from."""

    __slots__ = ("ends", "starts", "text")

    def __init__(self, text: str, starts: Sequence[int], ends: Sequence[int]) -> None:
        self.text = text
        self.starts = starts
        self.ends = ends


def undone(text: str, *, data: bool) -> Written:
    """`text` without its escapes. `data`: with the texts in its `data:` URLs instead of their base64."""
    written = Written(text, range(len(text)), range(1, len(text) + 1))
    for _ in range(ROUNDS):
        before = written
        if any(map(written.text.__contains__, SIGNS)):
            written = _replaced(written, ESCAPE, lambda escape: _meant(escape[0]), 0)
        if data and DATA_SIGN in written.text:
            written = _replaced(written, _DATA, _inside, 2)
        if written is before:
            break
    return written


def textual(payload: str, kind: str = "?") -> str | None:
    """The text that base64 holds, or the beginning of it; None where it holds none. `kind` is its media type."""
    plain = payload.translate(_URL_SAFE)
    plain = plain[: len(plain) - 1] if len(plain) % 4 == 1 else plain
    found = binascii.a2b_base64(plain + "=" * (-len(plain) % 4)).decode("utf-8", "replace")
    if _TEXTUAL.fullmatch(kind.partition(";")[0]) is None and ("\ufffd" in found or "\0" in found):
        return None
    return found


def _inside(url: re.Match[str]) -> str | None:
    return textual(url[2], url[1])


def _replaced(written: Written, pattern: re.Pattern[str], meaning: Meaning, group: int) -> Written:
    """With what `meaning` has for each match in place of its group; the same object where it has nothing."""
    text, at = written.text, 0
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for match in pattern.finditer(text):
        meant = meaning(match)
        if meant is None:
            continue
        start, end = match.span(group)
        pieces += (text[at:start], meant)
        starts += written.starts[at:start]
        starts += [written.starts[start]] * len(meant)
        ends += written.ends[at:start]
        ends += [written.ends[end - 1]] * len(meant)
        at = end
    if not pieces:
        return written
    pieces.append(text[at:])
    starts += written.starts[at:]
    ends += written.ends[at:]
    return Written("".join(pieces), starts, ends)


def _meant(escape: str) -> str | None:
    """What `escape` stands for; None when it stands for itself."""
    if escape[0] == "&":
        meant = html.unescape(escape)
        return None if meant == escape else meant
    if escape[0] == "%":
        try:
            return bytes.fromhex(escape.replace("%", "")).decode()
        except UnicodeDecodeError:
            return None
    body = escape.lstrip("\\")
    if body[0] not in "uUx":
        return _CONTROLS.get(body, body)
    if "\\" in body:
        units = [part.strip("\\") for part in body.split("u") if part]
        return b"".join(int(unit, 16).to_bytes(2, "big") for unit in units).decode("utf-16-be", "replace")
    number = int(body[1:].strip("{}"), 16)
    return None if number > _LARGEST else "\ufffd" if number in _SURROGATES else chr(number)
