"""What a client gets to read of a model's text, in whatever pieces the model gives it."""

from collections.abc import Iterator, Sequence

from adapters.regex_pii import RegexPii
from conformance.people import ACME
from ports.pii import PiiDetector, PiiMode
from stack_b.policy import decide
from stack_b.redaction.placeholders import Placeholders
from stack_b.redaction.rules import PiiRules, rules_for
from stack_b.redaction.stream import Lens, TextStream

NODE_KEY = b"k" * 32


def rules(**modes: PiiMode) -> PiiRules:
    return rules_for(ACME.tenant, modes, NODE_KEY)


async def asked(text: str, given: PiiRules) -> tuple[str, Placeholders]:
    """What a backend sees of a client's text, and how its answer is undone."""
    decision = await decide(RegexPii(), ACME, {"messages": [{"content": text}]}, given)
    return decision.value["messages"][0]["content"], decision.placeholders


def lens(given: PiiRules, placeholders: Placeholders | None = None, detector: PiiDetector | None = None) -> Lens:
    return Lens(detector or RegexPii(), ACME, given, placeholders or Placeholders(given))


async def told(through: Lens, pieces: Sequence[str]) -> str:
    """Everything that goes out, to the first thing that blocks."""
    stream = TextStream(through)
    out = ""
    for piece in pieces:
        shown = await stream.feed(piece)
        out += shown.text
        if shown.blocked:
            return out
    return out + (await stream.end()).text


def two_cuts(text: str) -> Iterator[tuple[str, str, str]]:
    """Every way to cut `text` in three, empty pieces included."""
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            yield text[:first], text[first:second], text[second:]
