"""The text as a reader sees it, with the way back to the text as it was given. For whoever looks for patterns in it."""

import html
import re
import unicodedata
from typing import Final, NamedTuple

# Shown as nothing although not of the category for it: joiners, fillers, variation selectors.
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0") | frozenset(map(chr, range(0xFE00, 0xFE10)))
_DOTS: Final = frozenset("\u3002\uff61\u2024\u00b7")

# Ways to write a character in HTML, in a URL and in JSON; in JSON that travels inside JSON the backslashes double.
ESCAPE: Final = re.compile(
    r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,24});"
    r"|%[0-7][0-9a-fA-F]|(?:%[89a-fA-F][0-9a-fA-F]){2,4}"
    r"|\\{1,8}u[dD][89abAB][0-9a-fA-F]{2}\\{1,8}u[dD][c-fC-F][0-9a-fA-F]{2}|\\{1,8}u[0-9a-fA-F]{4}|\\{1,8}[nrt/\"]"
)
LONGEST_ESCAPE: Final = 26
"""Characters: a text is cut in none of them where it is cut at the end of a match, or so far from its own end."""
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t"}


class Canonical(NamedTuple):
    """Character i comes from `starts[i]` up to `ends[i]` of the text as it was given; None when nothing moved."""

    text: str
    starts: list[int] | None
    ends: list[int] | None

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` lies in the text as it was given, hidden characters in between included."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[end - 1]


def canonical_form(text: str) -> Canonical:
    """Escapes undone, compatibility forms folded, every script's digits and every dash made ASCII, and what can't be
    seen removed.

    Character by character, so that the way back is known; what composition across characters would add concerns no
    pattern of ours.
    """
    # Nearly every text is plain, and a character is searched a hundred times as fast as a pattern.
    if text.isascii() and not (any(map(text.__contains__, "&%\\")) and ESCAPE.search(text)):
        return Canonical(text, None, None)
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []

    def add(piece: str, start: int, end: int) -> None:
        pieces.append(piece)
        starts.extend([start] * len(piece))
        ends.extend([end] * len(piece))

    at = 0
    for escape in ESCAPE.finditer(text):
        for index in range(at, escape.start()):
            add(_fold(text[index]), index, index + 1)
        meant = _unescaped(escape[0])
        if meant is None:
            for index in range(escape.start(), escape.end()):
                add(_fold(text[index]), index, index + 1)
        else:
            add("".join(map(_fold, meant)), *escape.span())
        at = escape.end()
    for index in range(at, len(text)):
        add(_fold(text[index]), index, index + 1)
    return Canonical("".join(pieces), starts, ends)


def _unescaped(escape: str) -> str | None:
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
    if body[0] != "u":
        return _CONTROLS.get(body, body)
    units = [part.strip("\\") for part in body.split("u") if part]
    return b"".join(int(unit, 16).to_bytes(2, "big") for unit in units).decode("utf-16-be", "replace")


def _fold(char: str) -> str:
    if char.isascii():
        return char
    if char in _DOTS:
        return "."
    match unicodedata.category(char):
        case "Cf":
            return ""
        case "Nd":
            return str(unicodedata.decimal(char))
        case "Pd":
            return "-"
        case "Zs":
            return " "
        case _:
            return "" if char in _INVISIBLE else unicodedata.normalize("NFKC", char)
