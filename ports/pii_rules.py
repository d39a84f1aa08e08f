"""Where a text may be cut so that no finding is cut in two: PII-5. Pure.

A finding of several words has a digit, a capital or a sign in each of them, or begins with a word that says what
follows. So a text may be cut behind a plain word, and at the end of a line, where the words before announce nothing.
"""

import re
import unicodedata
from typing import Final

from ports.pii_text import canonical_form

REACH: Final = 96
"""How many characters before a cut may announce what follows it. No account number with its separators is longer."""

_MARKS: Final = "\"'()[]{}<>*_`~#,.;:!?…«»„“”‚‘’–—-"
_BLANK: Final = re.compile(r"[ \t\n]|[\u3041-\u30ff\u3400-\u9fff]{2}")
_WORD: Final = re.compile(r"[^ \t\n]*\Z")
_SHORT: Final = 2
# A name for what follows it, also over a few words.
_ANNOUNCED: Final = re.compile(
    r"\b(?:ssn|social security)\b[^\d\n]{0,32}\Z|\bsocial[ \t]*\Z"
    r"|\b(?:bearer|(?:aws_secret_access_key|api[_-]?key|secret[_-]?key|access[_-]?token|password|passwd)"
    r"[\"']?[ \t]{0,4}(?:[=:][ \t]{0,4}[\"']?)?)[ \t]{0,4}\Z",
    re.ASCII | re.IGNORECASE,
)
_KEY: Final = re.compile(r"-----BEGIN[A-Z0-9 ]{0,64}-{0,5}")
_KEY_HEAD: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


def seam(text: str, *, since: int = 0, lines_only: bool = False) -> int:
    """The last place in `text`, behind `since`, where it may be cut; 0 when there is none.

    What stands before the place decides, never what follows, so that a text that grows has its seams where it had them.
    `lines_only` is for detectors that find plain words (`PiiCapabilities.plain_words`).
    """
    keys = _keys(text)
    for blank in reversed(list(_BLANK.finditer(text, max(0, since - 1)))):
        place = blank.end()
        inside = any(start < place <= end for start, end in keys)
        if place > since and not inside and _is_seam(text, place, lines_only=lines_only):
            return place
    return 0


def _is_seam(text: str, place: int, *, lines_only: bool) -> bool:
    if text[place - 1] == "\n":
        return True
    if lines_only:
        return False
    before = text[max(0, place - REACH) : place]
    if not text[place - 1].isspace():
        return _announces_nothing(before)
    found = _WORD.search(before[:-1])
    word = found[0].strip(_MARKS) if found else ""
    return _is_plain(word, before) and _announces_nothing(before)


def _is_plain(word: str, before: str) -> bool:
    if not word.isalpha() or not (word.isascii() or unicodedata.is_normalized("NFKC", word)):
        return False
    # Capitals may be a part of an account number, whose first part is two of them and two digits.
    return not word.isupper() or (len(word) > _SHORT and not any(char.isdigit() for char in before))


def _announces_nothing(before: str) -> bool:
    return _ANNOUNCED.search(canonical_form(before).text) is None


def _keys(text: str) -> list[tuple[int, int]]:
    """Where blocks lie that are private keys, or may become one: those have lines of plain words."""
    canonical = canonical_form(text)
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
