"""What is dear to look through, and what is not."""

import pytest

from adapters.regex_pii import RegexPii
from ports.messages import Json
from ports.pii import PiiCapabilities
from stack_b.inspection.effort import MOST_HERE, NEVER_DEAR, effort
from stack_b.inspection.inspector import Patient
from stack_b.inspection.processes import Processes
from stack_b.redaction.weight import LEAST, weigh


def said(text: Json) -> dict[str, Json]:
    return {"messages": [{"role": "user", "content": text}]}


PROSE = "It was a dark night, and nobody knew of it. "

DEAR: dict[str, Json] = {
    "digits": said("4111 1111 " * 600),
    "escapes": said("&amp;" * 6_000),
    "full width": said("\uff14\uff11" * 2_000),
    "base64": said("NDExMTEx" * 600),
    "base64 behind prose": said(PROSE + "data:text/plain;base64," + "NDExMTEx" * 600),
    "addresses": said("a@b.example " * 6_000),
    "many": said(["x"] * 1_100),
    "numbers": said([4111111111111111] * 1_100),
    "names": {"messages": [dict.fromkeys(map(str, range(1_100)), "")]},
    "long": said(PROSE * 2_000),
}
CHEAP: dict[str, Json] = {
    "prose": said(PROSE * 1_000),
    "a conversation": {"messages": [{"role": "user", "content": PROSE * 5}] * 60},
    "an image": said(
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoA" + "QUJD" * 99_999}}]
    ),
}


@pytest.mark.parametrize("value", DEAR.values(), ids=DEAR)
def test_what_takes_long_is_dear(value: Json) -> None:
    assert effort(value) > MOST_HERE


@pytest.mark.parametrize("value", CHEAP.values(), ids=CHEAP)
def test_what_most_requests_say_is_not(value: Json) -> None:
    assert effort(value) <= MOST_HERE


@pytest.mark.parametrize("text", ["1" * NEVER_DEAR, "\uff11" * (NEVER_DEAR // 4), ["1"] * (NEVER_DEAR // LEAST)])
def test_what_is_short_enough_need_not_be_asked_about(text: Json) -> None:
    assert weigh(text) <= NEVER_DEAR
    assert effort(text) <= MOST_HERE


class Loads(RegexPii):
    """Its finder would load something in every process that it is called in."""

    @property
    def capabilities(self) -> PiiCapabilities:
        return PiiCapabilities()


def test_only_a_detector_that_says_so_is_asked_without_being_awaited() -> None:
    text = "mail ada@example.com"

    assert [span.kind for span in Patient(RegexPii(), Processes()).at_once(text) or ()] == ["email"]
    assert Patient(RegexPii(), Processes()).at_once("x" * NEVER_DEAR) is None
    assert Patient(Loads(), Processes()).at_once(text) is None
