"""What was looked at once is not looked at again: in the same tenant, and in bounded memory."""

import pytest

from conformance.people import ACME, GLOBEX
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.pii import PiiCapabilities, Span
from stack_b.policy import decide
from stack_b.redaction.cache import SHORTEST, Remembering

pytestmark = [pytest.mark.anyio]

LONG = "x" * SHORTEST


class Counting:
    """Counts the long texts."""

    capabilities = PiiCapabilities()

    def __init__(self) -> None:
        self.calls = 0
        self.away = False

    def elsewhere(self) -> None:
        return None

    async def detect(self, _auth: AuthContext, text: str) -> tuple[Span, ...]:
        self.calls += len(text) >= SHORTEST
        if self.away:
            raise Unavailable("away")
        return (Span(start=0, end=1, kind="email"),)


async def test_the_hundredth_turn_looks_at_what_is_new_only() -> None:
    detector = Counting()
    remembering = Remembering(detector)
    messages: list[dict[str, str]] = []
    for turn in range(100):
        messages.append({"content": f"{turn}: {LONG}"})
        before = detector.calls
        await decide(remembering, ACME, {"messages": messages})
        assert detector.calls == before + 1


async def test_a_text_is_remembered_for_its_tenant_only() -> None:
    detector = Counting()
    remembering = Remembering(detector)

    first = await remembering.detect(ACME, LONG)
    again = await remembering.detect(ACME, LONG)
    await remembering.detect(GLOBEX, LONG)

    assert first == again
    assert detector.calls == 2


async def test_a_failure_is_not_remembered() -> None:
    detector = Counting()
    remembering = Remembering(detector)
    detector.away = True
    with pytest.raises(Unavailable):
        await remembering.detect(ACME, LONG)
    detector.away = False

    assert await remembering.detect(ACME, LONG)


async def test_the_oldest_are_forgotten_before_the_bound_is_passed() -> None:
    detector = Counting()
    remembering = Remembering(detector, max_bytes=1_000)

    for number in range(50):
        await remembering.detect(ACME, f"{number}{LONG}")
        assert remembering.size <= 1_000
    newest = detector.calls
    await remembering.detect(ACME, f"49{LONG}")
    assert detector.calls == newest
    await remembering.detect(ACME, f"0{LONG}")
    assert detector.calls == newest + 1
