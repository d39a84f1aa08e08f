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
# Each way begins with its sign itself: then what has none is passed over at the speed of memory.
ESCAPE: Final = re.compile(
    r"&(?:#[0-9]{1,20};?|#[xX][0-9a-fA-F]{1,20};?|[a-zA-Z]{2,24};)"
    r"|%[0-7][0-9a-fA-F]|%[c-dC-D][0-9a-fA-F]%[89abAB][0-9a-fA-F]"
    r"|%[eE][0-9a-fA-F](?:%[89abAB][0-9a-fA-F]){2}|%[fF][0-7](?:%[89abAB][0-9a-fA-F]){3}"
    r"|\\\\{0,7}u[dD][89abAB][0-9a-fA-F]{2}\\\\{0,7}u[dD][c-fC-F][0-9a-fA-F]{2}|\\\\{0,7}u[0-9a-fA-F]{4}"
    r"|\\\\{0,7}u\{[0-9a-fA-F]{1,6}\}|\\\\{0,7}U[0-9a-fA-F]{8}|\\\\{0,7}x[0-9a-fA-F]{2}|\\\\{0,7}[bfnrt/\"]"
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
Change: TypeAlias = tuple[int, int, int]
"""From where to where, and how many characters are there instead."""


class Written:
    """A text, and of each character where it comes from, which is looked for only where somebody asks."""

    __slots__ = ("_before", "_changes", "_ends", "_starts", "text")

    def __init__(self, text: str, before: "Written | None" = None, changes: Sequence[Change] = ()) -> None:
        """`before`: what it was, where `changes` have made it what it is."""
        self.text = text
        self._before = before
        self._changes = changes
        self._starts: Sequence[int] = range(len(text))
        self._ends: Sequence[int] = range(1, len(text) + 1)

    @property
    def starts(self) -> Sequence[int]:
        self._look()
        return self._starts

    @property
    def ends(self) -> Sequence[int]:
        self._look()
        return self._ends

    def _look(self) -> None:
        before, self._before = self._before, None
        if before is None:
            return
        at = 0
        starts: list[int] = []
        ends: list[int] = []
        for start, end, count in self._changes:
            starts += before.starts[at:start]
            starts += [before.starts[start]] * count
            ends += before.ends[at:start]
            ends += [before.ends[end - 1]] * count
            at = end
        starts += before.starts[at:]
        ends += before.ends[at:]
        self._starts, self._ends = starts, ends


def undone(text: str, *, data: bool) -> Written:
    """`text` without its escapes. `data`: with the texts in its `data:` URLs instead of their base64."""
    written = Written(text)
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
    changes: list[Change] = []
    for match in pattern.finditer(text):
        meant = meaning(match)
        if meant is None:
            continue
        start, end = match.span(group)
        pieces += (text[at:start], meant)
        changes.append((start, end, len(meant)))
        at = end
    if not pieces:
        return written
    pieces.append(text[at:])
    return Written("".join(pieces), written, changes)


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
