"""Finding personal data and secrets. Numbers count only with a checksum, or in a form that nothing else has.

IP addresses are left out on purpose: in the texts of agents they are versions and configuration far more often than
persons.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

from msgspec import Struct

from adapters.regex_pii import patterns
from adapters.regex_pii.checks import iban_length, is_card, mod97
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.pii import Finder, PiiCapabilities, PiiDetector, Span
from ports.pii_text import canonical_form, hides_letters

# The gravest first: where two overlap, the whole is treated as that.
_BY_GRAVITY: Final = ("secret", "payment_card", "iban", "us_ssn", "email", "phone")
KINDS: Final = frozenset(_BY_GRAVITY)
CAPABILITIES: Final = PiiCapabilities(classes=KINDS, at_once=True)

_CARD_LENGTHS: Final = range(13, 20)
# How many digits of a card people write together.
_GROUP_LENGTHS: Final = range(3, 7)
_PARTS_OF_A_FRACTION: Final = 2

_HINTS: Final = tuple(patterns.SECRET_HINTS.items())

Hit: TypeAlias = tuple[int, int, str]
Group: TypeAlias = tuple[int, str]
"""Where a group of digits starts, and the digits."""


class RegexPiiConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is nothing to choose."""


class RegexPii:
    """PiiDetector without state."""

    @property
    def capabilities(self) -> PiiCapabilities:
        return CAPABILITIES

    def elsewhere(self) -> Finder | None:
        return find

    async def detect(self, _auth: AuthContext, text: str) -> tuple[Span, ...]:
        return find(text)


def find(text: str) -> tuple[Span, ...]:
    """What `text` should not tell: in order, without overlaps. Time and space are linear in its length."""
    canonical = canonical_form(text)
    found = _hits(canonical.text)
    if not found and text.isascii():
        return ()
    hits = [(*canonical.place(start, end), kind) for start, end, kind in found]
    if hides_letters(text):
        canonical = canonical_form(text, "spelled")
        hits += [(*canonical.place(start, end), kind) for start, end, kind in _hits(canonical.text)]
    return _joined(hits) if hits else ()


def _hits(seen: str) -> list[Hit]:
    digits = _count_digits(seen)
    hits = [*_secrets(seen)]
    if "@" in seen:
        hits += _emails(seen)
    if digits:
        hits += _named_secrets(seen)
    if digits >= patterns.FEWEST_DIGITS:
        hits += [*_ibans(seen), *_numbers(seen)]
    return hits


def _count_digits(text: str) -> int:
    given = text.encode("utf-8", "replace")
    return len(given) - len(given.translate(None, b"0123456789"))


def _joined(hits: list[Hit]) -> tuple[Span, ...]:
    """Hits that overlap become one span, so that nothing that was found is left outside."""
    spans: list[Span] = []
    for start, end, kind in sorted(hits):
        if spans and start < spans[-1].end:
            last = spans[-1]
            gravest = min(last.kind, kind, key=_BY_GRAVITY.index)
            spans[-1] = Span(start=last.start, end=max(last.end, end), kind=gravest)
        else:
            spans.append(Span(start=start, end=end, kind=kind))
    return tuple(spans)


def _secrets(text: str) -> Iterator[Hit]:
    for sign, hints in _HINTS:
        if sign in text and any(map(text.__contains__, hints)):
            for match in patterns.SECRET.finditer(text):
                yield match.start(), match.end(), "secret"
            break
    if ":" in text and patterns.URL_HINT in text:
        for match in patterns.URL_PASSWORD.finditer(text):
            yield match.start(1), match.end(1), "secret"
    if "-" in text and patterns.KEY_HINT in text:
        yield from _private_keys(text)


def _named_secrets(text: str) -> Iterator[Hit]:
    folded = text.casefold()
    if any(map(folded.__contains__, patterns.NAMES_OF_SECRETS)):
        for match in patterns.SECRET_NAMED.finditer(text):
            yield match.start(1), match.end(1), "secret"


def _private_keys(text: str) -> Iterator[Hit]:
    at = 0
    while (begin := patterns.PRIVATE_KEY.search(text, at)) is not None:
        end = patterns.PRIVATE_KEY_END.search(text, begin.end())
        # A block that was cut off is no less a key.
        at = end.end() if end else len(text)
        yield begin.start(), at, "secret"


def _emails(text: str) -> Iterator[Hit]:
    for match in patterns.EMAIL.finditer(text):
        yield match.start(), match.end(), "email"


def _ibans(text: str) -> Iterator[Hit]:
    for match in patterns.IBAN_START.finditer(text):
        length = iban_length(match[1])
        end = _after(text, match.start(), length) if length else None
        if end is None:
            continue
        written = text[match.start() : end]
        compact = written.replace(" ", "").replace("-", "")
        # In groups it is written in capitals; small words between numbers are prose.
        if (written == compact or compact.isupper()) and mod97(compact):
            yield match.start(), end, "iban"


def _after(text: str, at: int, count: int) -> int | None:
    """Where `count` letters or digits from `at` on end, not counting single blanks and hyphens between them."""
    for _ in range(count):
        if at < len(text) and text[at] in " -":
            at += 1
        if not _alphanumeric(text, at):
            return None
        at += 1
    return None if _alphanumeric(text, at) else at


def _alphanumeric(text: str, at: int) -> bool:
    return at < len(text) and text[at].isascii() and text[at].isalnum()


def _numbers(text: str) -> Iterator[Hit]:
    """Cards, social security numbers and telephone numbers, outside identifiers."""
    hits = sorted([*_cards(text), *_ssns(text), *_phones(text)])
    if not hits:
        return
    nowhere = len(text), len(text) + 1
    identifiers = (match.span() for match in patterns.IDENTIFIER.finditer(text))
    start, end = next(identifiers, nowhere)
    for hit in hits:
        while end <= hit[0]:
            start, end = next(identifiers, nowhere)
        if not (start < hit[1] and hit[0] < end):
            yield hit


def _cards(text: str) -> Iterator[Hit]:
    for run in patterns.DIGIT_RUN.finditer(text):
        if len(run[0]) < _CARD_LENGTHS.start:
            continue
        groups = [(run.start() + match.start(), match[0]) for match in patterns.DIGITS.finditer(run[0])]
        is_fraction = len(groups) == _PARTS_OF_A_FRACTION and "." in run[0]
        if not is_fraction and is_card("".join(digits for _, digits in groups)):
            yield run.start(), run.end(), "payment_card"
        else:
            yield from _cards_among(text, groups)


def _cards_among(text: str, groups: list[Group]) -> Iterator[Hit]:
    """Cards in the middle of other numbers: one long group, or neighbours of the lengths that people write."""
    first = 0
    while first < len(groups):
        last = _card_from(text, groups, first)
        if last is None:
            first += 1
            continue
        at, digits = groups[last]
        yield groups[first][0], at + len(digits), "payment_card"
        first = last + 1


def _card_from(text: str, groups: list[Group], first: int) -> int | None:
    """The index of the last group of a card that starts with the group `first`."""
    at, digits = groups[first]
    if len(digits) >= _CARD_LENGTHS.start:
        fraction = at > 1 and text[at - 1] == "." and text[at - 2].isdigit()
        return first if is_card(digits) and not fraction else None
    number = ""
    for index in range(first, len(groups)):
        digits = groups[index][1]
        number += digits
        if len(digits) not in _GROUP_LENGTHS or len(number) >= _CARD_LENGTHS.stop:
            return None
        if is_card(number):
            return index
    return None


def _ssns(text: str) -> Iterator[Hit]:
    for match in patterns.SSN.finditer(text):
        yield match.start(), match.end(), "us_ssn"
    for match in patterns.SSN_NAMED.finditer(text):
        yield match.start(1), match.end(1), "us_ssn"


def _phones(text: str) -> Iterator[Hit]:
    for match in patterns.PHONE.finditer(text):
        yield match.start(), match.end(), "phone"


@asynccontextmanager
async def open_regex_pii(_config: RegexPiiConfig, _given: Given) -> AsyncIterator[PiiDetector]:
    yield RegexPii()


SPEC: Final = AdapterSpec(
    config=RegexPiiConfig,
    capabilities=lambda _config: CAPABILITIES,
    open=open_regex_pii,
)
