"""R14: personal data never goes upstream, downstream or into a log, however it is written and wherever a stream is cut."""

import logging
import sys
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import pytest

from adapters.regex_pii import RegexPii, find
from conformance.people import ACME
from conformance.pii import ENCODINGS, SAMPLES, sample_of
from ports.pii import PiiMode
from ports.pii_text import canonical_form, readings
from stack_b.policy import decide
from tests.support.answers import asked, lens, rules, told
from tests.support.clean_corpus import CLEAN

FORMS: Final[dict[str, Callable[[str], str]]] = {"as it is": str, **ENCODINGS}
MOST_OVER_REDACTION: Final = 0.02
LONG: Final = 120
"""Characters. Of longer texts every fifth cut is tried: their values take the same way through the code."""


def corpus() -> Iterator[tuple[str, str, str]]:
    """Kind, form, and a value written in it."""
    for kind, marked in SAMPLES.items():
        for form, write in FORMS.items():
            for sample in marked:
                yield kind, form, write(sample_of(sample)[1])


def tells(text: str, value: str) -> bool:
    """Whether a reader of `text` learns the value, or most of one end of it."""
    secret = canonical_form(value).text
    half = len(secret) // 2 + 1
    return any(secret[:half] in one.text or secret[-half:] in one.text for one in readings(text))


@pytest.mark.anyio
async def test_no_value_leaks_in_any_form_at_any_cut_and_clean_text_stays(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    modes: dict[str, PiiMode] = dict.fromkeys(SAMPLES, "reversible")
    through, reversible = lens(rules()), rules(**modes)
    leaks: list[str] = []
    checks = 0
    for kind, form, value in corpus():
        text = f"It is {value} they said."
        sent = (await decide(RegexPii(), ACME, {"messages": [{"content": text}]})).value["messages"][0]["content"]
        masked, placeholders = await asked(text, reversible)
        undone = await told(lens(reversible, placeholders), list(masked))
        leaks += [f"{kind}, {form}: upstream"] * (tells(sent, value) or tells(masked, value))
        leaks += [f"{kind}, {form}: not undone"] * (undone != text)
        for cut in range(0, len(text) + 1, 1 if len(text) < LONG else 5):
            checks += 1
            shown = await told(through, (text[:cut], text[cut:]))
            leaks += [f"{kind}, {form}: downstream, cut at {cut}"] * tells(shown, value)
    values = [value for _, _, value in corpus()]
    leaks += [f"log: {record.getMessage()}" for record in caplog.records if any(v in str(vars(record)) for v in values)]
    touched = [text for text in CLEAN if find(text)]
    share = len(touched) / len(CLEAN)

    record = {
        "invariant": "R14",
        "ok": not leaks and share <= MOST_OVER_REDACTION,
        "gates": {"leaks": len(leaks), "over_redaction": share},
        "limits": {"leaks": 0, "over_redaction": MOST_OVER_REDACTION},
        "figures": {"values": len(values), "encodings": len(FORMS), "cuts": checks, "clean_texts": len(CLEAN)},
    }
    with capsys.disabled():
        sys.stdout.write(f"\n{msgspec.json.encode(record).decode()}\n")
    assert leaks == []
    assert share <= MOST_OVER_REDACTION, touched


def test_there_are_twelve_forms() -> None:
    assert len(FORMS) == 12
