"""What every PiiDetector must show. Clauses: `ports.pii`.

`SAMPLES` are the published samples of PII-2. Each text holds one thing to find, between `«` and `»`, which are taken
out before the text is given.
"""

import pickle
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import PiiHarness
from conformance.people import ACME
from ports.pii import PiiDetector, Span
from ports.pii_rules import is_prose, seam

_HEX: Final = "0123456789abcdef"

SAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "email": (
        "write to «ann@example.com», please",
        "«ann.lee+work@mail.example.co.uk»",
        "Ben <«ben_b@sub.example.org»> and others",
    ),
    "payment_card": (
        "card «4111 1111 1111 1111», thanks",
        "«5500-0055-5555-5559»",
        "pay with «378282246310005» today",
    ),
    "iban": ("to «DE89 3704 0044 0532 0130 00» by Friday", "«GB29NWBK60161331926819»"),
    "us_ssn": ("her number is «536-22-1234».",),
    "phone": ("call «+49 30 901820» now", "call «+1 212 555 0142» now"),
    "secret": (
        # Put together here, so that no scanner takes the kit for a leak.
        "key «" + "sk-" + "aB3dE5gH7jK9mN1pQ3sT5vW7" + "» works",
        "«" + "AKIA" + "IOSFODNN7EXAMPLE" + "»",
        "«" + "aos_prod_" + _HEX * 2 + "_" + _HEX * 4 + "»",
    ),
}

INNOCENT: Final = (
    "",
    "17.5 % of 2340 is 409.5, and 6 * 7 = 42.",
    "On 2026-11-20 at 17:39:59.123456Z, 1,234,567 rows took 3.14159 s.",
    "run_" + _HEX * 2 + " of agt_demo in tnt_acme, event evt_" + _HEX[::-1] * 2,
    "trace 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "to be or not to be; version 1.2.3, commit e69af63, chapter 12",
    "Straße, naïve, 東京, \U0001f600",
)

PROSE: Final = (
    "the quick brown fox jumps over the lazy dog",
    "Wednesday. It's late; don't tell the bearer of bad news!",
    "The password is forgotten, and the secret key opens the door.\n\nSocial security matters",
    "AKIAABCDEFGHIJKL EYJABCDEFGHIJKL IBAN DE GB VISA ",
    "call me at home, write to Ann at example or ask Ben Lee of Springfield",
)

_HIDDEN: Final = ("\u200b", "\u00ad", "\u2060")


def sample_of(marked: str) -> tuple[str, str]:
    """The text, and the part of it that must be found."""
    return marked.replace("«", "").replace("»", ""), marked.partition("«")[2].partition("»")[0]


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def mathematical(text: str) -> str:
    """Bold letters and digits of the mathematical block."""
    starts = (("a", "z", 0x1D41A), ("A", "Z", 0x1D400), ("0", "9", 0x1D7CE))
    return "".join(
        next((chr(start + ord(char) - ord(first)) for first, last, start in starts if first <= char <= last), char)
        for char in text
    )


def in_utf16_escapes(text: str) -> str:
    units = text.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


ENCODINGS: Final[dict[str, Callable[[str], str]]] = {
    "full width": full_width,
    "mathematical": mathematical,
    **{f"U+{ord(hidden):04X} between": hidden.join for hidden in _HIDDEN},
    "HTML, decimal": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "HTML, hexadecimal": lambda text: "".join(f"&#x{ord(char):X};" for char in text),
    "HTML, invisible names": "&shy;".join,
    "percent": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "JSON": in_utf16_escapes,
    "JSON in JSON": lambda text: in_utf16_escapes(text).replace("\\", "\\\\"),
}
"""Ways to write a text that its reader sees, or a program decodes, as the same text."""


def disguises(secret: str) -> Iterator[str]:
    for encoding in ENCODINGS.values():
        yield encoding(secret)


def places_of(text: str, *, lines_only: bool) -> list[int]:
    """Every place where a text that grows may be cut on its way to `text`."""
    return sorted({seam(text[:end], lines_only=lines_only) for end in range(1, len(text) + 1)} - {0})


async def found_in(detector: PiiDetector, text: str, at: int = 0) -> list[tuple[int, int, str]]:
    return [(at + span.start, at + span.end, span.kind) for span in await detector.detect(ACME, text)]


def assert_well_formed(text: str, spans: tuple[Span, ...]) -> None:
    end = 0
    for span in spans:
        assert end <= span.start < span.end <= len(text)
        end = span.end


def found_kinds(text: str, part: str, spans: tuple[Span, ...]) -> set[str]:
    """Kinds of the spans that cover `part` of `text`."""
    start = text.index(part)
    return {span.kind for span in spans if span.start <= start and start + len(part) <= span.end}


def declared_samples(detector: PiiDetector) -> list[tuple[str, str]]:
    classes = detector.capabilities.classes
    return [(kind, marked) for kind, texts in SAMPLES.items() if kind in classes for marked in texts]


@pytest.mark.anyio
class PiiContract(Contract):
    async def test_the_capabilities_are_those_the_spec_declares(self, harness: PiiHarness) -> None:
        detector = await harness.open()

        assert detector.capabilities == harness.declared
        assert detector.capabilities.classes & SAMPLES.keys()

    @clause("PII-1")
    async def test_spans_lie_in_the_text_in_order_and_apart(self, harness: PiiHarness) -> None:
        detector = await harness.open()
        samples = [sample_of(marked)[0] for _, marked in declared_samples(detector)]
        everything = " / ".join(samples)

        spans = await detector.detect(ACME, everything)

        assert_well_formed(everything, spans)
        assert len(spans) >= len(samples)

    @clause("PII-1")
    async def test_spans_are_well_formed_whatever_the_text(self, harness: PiiHarness) -> None:
        detector = await harness.open()
        hostile = (
            "@" * 500, "1" * 500, "1 " * 300, "a@" * 300, "a@b." * 300, "\u200b" * 500, "\u202e" + "4111" * 8, "é" * 300,
            "\ufb03" * 99 + "@example.com", "DE" + "0" * 300, "sk-" * 300, "-----BEGIN PRIVATE KEY-----", "\x00@\x00.\x00",
        )  # fmt: skip

        for text in hostile:
            assert_well_formed(text, await detector.detect(ACME, text))

    @clause("PII-2")
    async def test_every_declared_class_is_found_in_its_samples(self, harness: PiiHarness) -> None:
        detector = await harness.open()

        for kind, marked in declared_samples(detector):
            text, part = sample_of(marked)
            assert kind in found_kinds(text, part, await detector.detect(ACME, text)), f"{kind}: {text!r}"

    @clause("PII-2")
    async def test_only_declared_classes_are_found(self, harness: PiiHarness) -> None:
        detector = await harness.open()

        for texts in SAMPLES.values():
            for marked in texts:
                spans = await detector.detect(ACME, sample_of(marked)[0])
                assert {span.kind for span in spans} <= detector.capabilities.classes

    @clause("PII-3")
    @pytest.mark.parametrize("text", INNOCENT)
    async def test_a_text_without_personal_data_gives_no_spans(self, harness: PiiHarness, text: str) -> None:
        detector = await harness.open()

        assert await detector.detect(ACME, text) == ()

    @clause("PII-6")
    @pytest.mark.parametrize("text", PROSE)
    async def test_nothing_is_found_in_plain_prose(self, harness: PiiHarness, text: str) -> None:
        detector = await harness.open()

        assert is_prose(text)
        assert detector.capabilities.plain_words or await detector.detect(ACME, text) == ()

    @clause("PII-4")
    async def test_disguised_data_is_found_at_its_place_in_the_text_given(self, harness: PiiHarness) -> None:
        detector = await harness.open()

        for kind, marked in declared_samples(detector):
            _, part = sample_of(marked)
            for disguised in disguises(part):
                text = f"before {disguised} after"
                spans = await detector.detect(ACME, text)
                assert_well_formed(text, spans)
                assert kind in found_kinds(text, disguised, spans), f"{kind}: {text!r}"

    @clause("PII-7")
    async def test_what_is_sent_to_another_process_finds_the_same(self, harness: PiiHarness) -> None:
        detector = await harness.open()
        finder = detector.elsewhere()

        if finder is not None:
            # As it comes out there.
            found = pickle.loads(pickle.dumps(finder))  # noqa: S301 - our own, of this moment
            for _, marked in declared_samples(detector):
                text, _ = sample_of(marked)
                assert found(text) == await detector.detect(ACME, text)
                assert not detector.capabilities.at_once or finder(text) == found(text)

    @clause("PII-5")
    async def test_what_is_found_in_a_text_is_found_in_its_pieces(self, harness: PiiHarness) -> None:
        detector = await harness.open()

        for kind, marked in declared_samples(detector):
            text = f"Look at this one here: {sample_of(marked)[0]} and then, said Ben Lee,\nat the other one."
            whole = await found_in(detector, text)
            places = places_of(text, lines_only=detector.capabilities.plain_words)
            assert places, "a text of plain words has seams"
            for place in places:
                pieces = [*await found_in(detector, text[:place]), *await found_in(detector, text[place:], place)]
                assert pieces == whole, f"{kind}: {text[:place]!r} | {text[place:]!r}"
