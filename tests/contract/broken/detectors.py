"""Broken detectors of personal data."""

from typing import ClassVar

import pytest
from msgspec import Struct
from msgspec.structs import replace

from adapters import regex_pii
from adapters.regex_pii import RegexPii, find
from adapters.regex_pii.detector import RegexPiiConfig
from conformance.pii import PiiContract
from ports.context import AuthContext
from ports.pii import Finder, PiiDetector, Span
from tests.contract.broken.mutant import Mutant


class Here(RegexPii):
    """Looks at every text itself."""

    def elsewhere(self) -> None:
        return None


class BrokenPiiHarness:
    def __init__(self, broken: type[RegexPii]) -> None:
        self._broken = broken

    @property
    def declared(self) -> Struct:
        return regex_pii.SPEC.capabilities(RegexPiiConfig())

    async def open(self) -> PiiDetector:
        return self._broken()


class BrokenPii(Mutant, PiiContract):
    broken: ClassVar[type[RegexPii]] = RegexPii

    @pytest.fixture
    def harness(self) -> BrokenPiiHarness:
        return BrokenPiiHarness(self.broken)


class TestIsHonest(BrokenPii):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class SaysItTwice(Here):
    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        return tuple(span for span in await super().detect(auth, text) for _ in range(2))


class TestSaysItTwice(BrokenPii):
    broken = SaysItTwice
    caught_by = frozenset(
        {
            "test_spans_lie_in_the_text_in_order_and_apart",
            "test_spans_are_well_formed_whatever_the_text",
            "test_disguised_data_is_found_at_its_place_in_the_text_given",
        }
    )


class KnowsNoTelephones(Here):
    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        return tuple(span for span in await super().detect(auth, text) if span.kind != "phone")


class TestKnowsNoTelephones(BrokenPii):
    broken = KnowsNoTelephones
    caught_by = frozenset(
        {
            "test_spans_lie_in_the_text_in_order_and_apart",
            "test_every_declared_class_is_found_in_its_samples",
            "test_disguised_data_is_found_at_its_place_in_the_text_given",
        }
    )


class CallsThemByOtherNames(Here):
    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        return tuple(replace(span, kind=span.kind.upper()) for span in await super().detect(auth, text))


class TestCallsThemByOtherNames(BrokenPii):
    broken = CallsThemByOtherNames
    caught_by = frozenset(
        {
            "test_every_declared_class_is_found_in_its_samples",
            "test_only_declared_classes_are_found",
            "test_disguised_data_is_found_at_its_place_in_the_text_given",
        }
    )


class TakesDatesForTelephones(Here):
    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        at = text.find("2026-11-20")
        return (Span(start=at, end=at + 10, kind="phone"),) if at >= 0 else await super().detect(auth, text)


class TestTakesDatesForTelephones(BrokenPii):
    broken = TakesDatesForTelephones
    caught_by = frozenset({"test_a_text_without_personal_data_gives_no_spans"})


class ReadsLettersOnly(Here):
    """Sees what stands there, not what it is read as."""

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        plain = text.isascii() and not any(sign in text for sign in ("&", "%", "\\"))
        return await super().detect(auth, text) if plain else ()


class TestReadsLettersOnly(BrokenPii):
    broken = ReadsLettersOnly
    caught_by = frozenset({"test_disguised_data_is_found_at_its_place_in_the_text_given"})


class CountsFromTheEnd(Here):
    """Gives the place in the text that it has made of the one given."""

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        shift = 0 if text.isascii() else 1
        return tuple(
            replace(span, start=max(0, span.start - shift), end=span.end - shift)
            for span in await super().detect(auth, text)
        )


class TestCountsFromTheEnd(BrokenPii):
    broken = CountsFromTheEnd
    caught_by = frozenset({"test_disguised_data_is_found_at_its_place_in_the_text_given"})


class NeedsToBeTold(Here):
    """Finds only what an earlier word announces, however far away."""

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        return () if text.startswith(("and", "one", "here")) else await super().detect(auth, text)


class TestNeedsToBeTold(BrokenPii):
    broken = NeedsToBeTold
    caught_by = frozenset({"test_what_is_found_in_a_text_is_found_in_its_pieces"})


class KnowsAName(Here):
    """Without saying that it finds plain words."""

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        at = text.find("Wednesday")
        named = (Span(start=at, end=at + len("Wednesday"), kind="email"),) if at >= 0 else ()
        return (*named, *await super().detect(auth, text))


class TestKnowsAName(BrokenPii):
    broken = KnowsAName
    caught_by = frozenset({"test_nothing_is_found_in_plain_prose"})


def find_less(text: str) -> tuple[Span, ...]:
    return find(text)[1:]


class FindsLessElsewhere(RegexPii):
    def elsewhere(self) -> Finder | None:
        return find_less


class TestFindsLessElsewhere(BrokenPii):
    broken = FindsLessElsewhere
    caught_by = frozenset({"test_what_is_sent_to_another_process_finds_the_same"})
