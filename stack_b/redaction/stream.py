"""Text that comes in pieces, shown as if it had come at once: whatever the pieces, the same text goes out.

What may be the beginning of something is held back: up to the next seam, which is mostly the next blank.
"""

import asyncio
import re
from typing import Final, Literal, NamedTuple

from ports.context import AuthContext
from ports.messages import Json
from ports.pii import PiiDetector, Span
from ports.pii_rules import is_prose, prose_seam, seam
from ports.pii_text import canonical_form
from stack_b.redaction.placeholders import Mark, Placeholders
from stack_b.redaction.rules import PiiRules
from stack_b.redaction.spans import placeholder

MAX_HELD: Final = 8_192
"""Characters without a seam. Then what is old enough goes out, and what may go on from there is kept."""
_KEPT: Final = 1_024

_END_OF_KEY: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}-----")
_LONGEST_END: Final = 64
_END_OF_TOKEN: Final = re.compile(r"\s")


class Shown(NamedTuple):
    """What the client may read of a text."""

    text: str
    kinds: tuple[str, ...] = ()
    """Of what was taken out."""
    blocked: bool = False
    """Something that ends the answer was found where `text` ends."""


_NOTHING: Final = Shown("")


class Lens:
    """How the answer to one request is looked at."""

    def __init__(self, detector: PiiDetector, auth: AuthContext, rules: PiiRules, placeholders: Placeholders) -> None:
        self._detector = detector
        self._auth = auth
        self._rules = rules
        self._placeholders = placeholders
        capabilities = detector.capabilities
        undoes = bool(placeholders)
        self.lines_only = capabilities.plain_words
        self.idle = bool(rules.modes) and not undoes and rules.allows_all(capabilities.classes)
        """There is nothing to look for."""
        self.passes_prose = not capabilities.plain_words and not undoes
        """There is nothing to look for in plain prose."""

    def is_prose(self, text: str) -> bool:
        """Whether there can be nothing in `text` to take out, nor anything to undo."""
        return self.passes_prose and is_prose(text)

    async def clear(self, text: str) -> bool:
        """Whether there is nothing in `text` to take out, nor anything to undo."""
        return not self._placeholders and not await self.found(text)

    async def found(self, text: str) -> list[Span]:
        """What must not be shown, in order."""
        if not text or (self.passes_prose and is_prose(text)):
            return []
        spans = await self._detector.detect(self._auth, text)
        return [span for span in spans if self._rules.mode(span.kind) != "allow"]

    def standing(self, text: str) -> str:
        """What was shown, with the placeholders that were undone in it standing again."""
        return self._placeholders.standing(text)

    def number(self, text: str) -> Json:
        """The number that a text stands for; None where it is a text."""
        return self._placeholders.number(text)

    def marks(self, text: str) -> list[Mark]:
        return list(self._placeholders.marks(text))

    async def shown(self, text: str, *, ends: bool) -> Shown:
        """`text` without what a model may not tell, and with what the client itself had told it.

        `ends`: nothing follows, so that a placeholder which only begins can't become whole any more.
        """
        marks = self.marks(text)
        if ends and (cut := self._placeholders.cut_short(text)) is not None:
            marks = [mark for mark in marks if mark.end <= cut.start] + [cut]
        parts: list[str] = []
        kinds: list[str] = []
        at = 0
        for span in await self.found(text):
            # What stands where a placeholder stands was put there by us; what is more than that is not.
            if any(mark.start <= span.start and span.end <= mark.end for mark in marks):
                continue
            touched = [mark for mark in marks if mark.start < span.end and span.start < mark.end]
            start = min([span.start, *(mark.start for mark in touched)])
            parts += (_undone(text, marks, at, start), placeholder(span.kind))
            at = max([span.end, *(mark.end for mark in touched)])
            kinds.append(span.kind)
            if self._rules.mode(span.kind) == "block":
                return Shown("".join(parts[:-1]), tuple(kinds), blocked=True)
        parts.append(_undone(text, marks, at, len(text)))
        return Shown("".join(parts), tuple(kinds))


class TextStream:
    """One text on its way to the client."""

    def __init__(self, lens: Lens) -> None:
        self._lens = lens
        self._held = ""
        self._looked_at = 0
        """Up to here `_held` has no seam."""
        self._dropping: Literal["no", "key", "token"] = "no"

    @property
    def held(self) -> str:
        """What was not shown yet."""
        return self._held

    async def feed(self, more: str) -> Shown:
        """What may be shown now that `more` has come. Nothing is fed after something was blocked."""
        self._held += more
        if self._lens.passes_prose and self._dropping == "no" and len(self._held) < MAX_HELD:
            # Nearly always.
            cut = prose_seam(self._held)
            if cut is not None:
                piece, self._held = self._held[:cut], self._held[cut:]
                self._looked_at = len(self._held)
                return Shown(piece)
        shown: list[Shown] = []
        while self._held and self._dropped():
            if len(self._held) >= MAX_HELD:
                # Much has come at once: others have a turn between its parts.
                await asyncio.sleep(0)
            cut = seam(self._held[:MAX_HELD], since=self._looked_at, lines_only=self._lens.lines_only)
            if cut:
                shown.append(await self._released(cut))
            elif len(self._held) >= MAX_HELD:
                shown.append(await self._forced())
            else:
                self._looked_at = len(self._held)
                break
            if shown[-1].blocked:
                break
        return _joined(shown)

    async def end(self) -> Shown:
        """The rest of it."""
        rest, self._held = self._held if self._dropped() else "", ""
        return await self._lens.shown(rest, ends=True) if rest else _NOTHING

    async def _released(self, cut: int) -> Shown:
        piece, self._held = self._held[:cut], self._held[cut:]
        self._looked_at = 0
        return await self._lens.shown(piece, ends=False)

    async def _forced(self) -> Shown:
        """Release the older part of a stretch without seams, cutting neither a finding nor a placeholder in two."""
        window = self._held[:MAX_HELD]
        cut = MAX_HELD - _KEPT
        for mark in self._lens.marks(window):
            if mark.start < cut < mark.end:
                cut = mark.start
        spans = await self._lens.found(window)
        for span in spans:
            # Behind any other one something can be seen: the next.
            if span is spans[-1] and not canonical_form(window[span.end :]).text:
                # It may go on for as long as it likes. What stands for it goes out now, the rest of it never.
                self._dropping = "key" if "-----BEGIN" in window[span.start :] else "token"
                return await self._released(len(window))
            if span.start < cut < span.end:
                cut = span.end
        return await self._released(cut)

    def _dropped(self) -> bool:
        """Drop what belongs to a finding that went out already; whether it has come to its end."""
        if self._dropping == "no":
            return True
        match = (_END_OF_KEY if self._dropping == "key" else _END_OF_TOKEN).search(self._held)
        if match is None:
            # The mark of a key's end may have come in part.
            self._held = self._held[-_LONGEST_END:] if self._dropping == "key" else ""
            return False
        self._held = self._held[match.end() if self._dropping == "key" else match.start() :]
        self._dropping = "no"
        return True


def _undone(text: str, marks: list[Mark], start: int, end: int) -> str:
    """`text[start:end]` with its placeholders undone. No mark lies across either end."""
    parts: list[str] = []
    for mark in marks:
        if start <= mark.start and mark.end <= end:
            parts += (text[start : mark.start], mark.shown)
            start = mark.end
    return "".join((*parts, text[start:end]))


def _joined(shown: list[Shown]) -> Shown:
    return Shown(
        "".join(one.text for one in shown),
        tuple(kind for one in shown for kind in one.kinds),
        blocked=bool(shown) and shown[-1].blocked,
    )
