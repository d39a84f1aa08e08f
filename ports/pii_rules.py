"""Where a text may be cut so that no finding is cut in two: PII-5. Pure.

A finding of several words has a digit, a capital or a sign in each of them, or begins with a word that says what
follows. So a text may be cut behind a plain word, and at the end of a line, where the words before announce nothing.
"""

import re
import unicodedata
from itertools import pairwise
from typing import Final

from ports.pii_text import Canonical, readings

REACH: Final = 96
"""How many characters before a cut may announce what follows it. No account number with its separators is longer."""

_MARKS: Final = "\"'()[]{}<>*_`~#,.;:!?…«»„“”‚‘’–—-"
_BLANK: Final = re.compile(r"[ \t\n]|[\u3041-\u30ff\u3400-\u9fff]{2}")
_SHORT: Final = 2
# A name for what follows it, also over a few words.
_ANNOUNCED: Final = re.compile(
    r"\b(?:ssn|social security)\b[^\d\n]{0,32}\Z|\bsocial[ \t]*\Z"
    r"|\b(?:bearer|(?:aws_secret_access_key|api[_-]?key|secret[_-]?key|access[_-]?token|password|passwd)"
    r"[\"']?[ \t]{0,4}(?:[=:][ \t]{0,4}[\"']?)?)[ \t]{0,4}\Z",
    re.ASCII | re.IGNORECASE,
)
_KINDS: Final = bytes(
    ord("a" if char.isalpha() else " " if char in " \n" else "." if char in ",.;!?" else char if char == "'" else "#")
    for char in map(chr, range(128))
) + bytes(128)
"""Of each character of ASCII: a letter, a blank, a mark behind a word, an apostrophe, or another one."""
_TOO_LONG: Final = b"a" * 17
_TOO_WIDE: Final = b" " * 3
_ENDING: Final = re.compile(rb"(?<=a)'a{1,2}(?![a'])")
"""Of `it's` and `we'll`, by kinds; in small letters."""
_CAPITALS: Final = re.compile("'[a-z]?[A-Z]")
_KEY: Final = re.compile(r"-----BEGIN[A-Z0-9 ]{0,64}-{0,5}")
_KEY_HEAD: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


def seam(text: str, *, since: int = 0, lines_only: bool = False) -> int:
    """The last place in `text`, behind `since`, where it may be cut; 0 when there is none.

    What stands before the place decides, never what follows, so that a text that grows has its seams where it had them.
    `lines_only` is for detectors that find plain words (`PiiCapabilities.plain_words`).
    """
    if text.isascii() and not any(map(text.__contains__, "&%\\-")):
        # Mostly it is the last blank, and there is no key.
        place = max(text.rfind(" "), text.rfind("\n"), text.rfind("\t")) + 1
        if place <= since:
            return 0
        if _is_seam(text, place, lines_only=lines_only):
            return place
    keys = _keys(text)
    for blank in reversed(list(_BLANK.finditer(text, max(0, since - 1)))):
        place = blank.end()
        inside = any(start < place <= end for start, end in keys)
        if place > since and not inside and _is_seam(text, place, lines_only=lines_only):
            return place
    return 0


def is_prose(text: str) -> bool:
    """Whether a text is nothing but English words of usual length: no detector but one of `plain_words` finds any there.

    Words of up to 16 letters, perhaps with an ending as in `it's`, perhaps with a mark behind them, one or two blanks
    apart. Nearly all that a model says is so, and asking this is much faster than looking.
    """
    if not text.isascii():
        return False
    # By kinds of characters: bytes are searched many times as fast as a pattern walks.
    seen = text.encode().translate(_KINDS)
    if seen.find(b"#") >= 0 or seen.startswith((b" ", b".")):
        return False
    if seen.find(b"'") >= 0:
        seen = _ENDING.sub(b"", seen)
        if seen.find(b"'") >= 0 or _CAPITALS.search(text) is not None:
            return False
    if seen.find(_TOO_LONG) >= 0 or seen.find(_TOO_WIDE) >= 0:
        return False
    parts = seen.split(b".")
    return len(parts) == 1 or all(word.endswith(b"a") and rest[:1] in (b" ", b"") for word, rest in pairwise(parts))


def prose_seam(text: str) -> int | None:
    """What `seam` says of a text that is prose; None where it isn't, and where `seam` has to be asked."""
    if not is_prose(text):
        return None
    place = max(text.rfind(" "), text.rfind("\n")) + 1
    if not place or text[place - 1] == "\n":
        return place
    before = text[max(0, place - REACH) : place]
    word = before[before.rfind(" ", 0, -1) + 1 : -1].rstrip(",.;!?")
    # No word, one in capitals, one that is two, or a name for what follows: then it isn't that simple.
    return None if not word.isalpha() or word[-1].isupper() or _names_something(before.lower()) else place


def _names_something(folded: str) -> bool:
    """Whether one of the words is there that are in whatever `_ANNOUNCED` matches: to search them is much the faster."""
    return (
        "key" in folded or "token" in folded or "passw" in folded
        or "bearer" in folded or "ssn" in folded or "social" in folded
    )  # fmt: skip


def _is_seam(text: str, place: int, *, lines_only: bool) -> bool:
    if text[place - 1] == "\n":
        return True
    if lines_only:
        return False
    before = text[max(0, place - REACH) : place]
    if not text[place - 1].isspace():
        return _announces_nothing(before)
    words = before[:-1]
    last = words[max(words.rfind(" "), words.rfind("\n"), words.rfind("\t")) + 1 :]
    return _is_plain(last.strip(_MARKS), before) and _announces_nothing(before)


def _is_plain(word: str, before: str) -> bool:
    if not word.isalpha() or not (word.isascii() or unicodedata.is_normalized("NFKC", word)):
        return False
    # Capitals may be a part of an account number, whose first part is two of them and two digits.
    return not word.isupper() or (len(word) > _SHORT and not any(char.isdigit() for char in before))


def _announces_nothing(before: str) -> bool:
    return all(
        not _names_something(one.text.lower()) or _ANNOUNCED.search(one.text) is None for one in readings(before)
    )


def _keys(text: str) -> list[tuple[int, int]]:
    """Where blocks lie that are private keys, or may become one: those have lines of plain words."""
    return [key for canonical in readings(text) for key in _keys_in(canonical)]


def _keys_in(canonical: Canonical) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    begin = _KEY.search(canonical.text)
    while begin is not None:
        end = begin.end()
        head = _KEY_HEAD.match(canonical.text, begin.start())
        if head is not None:
            last = _KEY_END.search(canonical.text, head.end())
            end = last.end() if last else len(canonical.text)
        found.append(canonical.place(begin.start(), end))
        begin = _KEY.search(canonical.text, end)
    return found
