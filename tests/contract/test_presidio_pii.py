"""The kit over Presidio's recognisers, and what is Presidio's own: other processes, and no call to anybody."""

import importlib.util
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from msgspec import Struct

from adapters import presidio_pii
from adapters.presidio_pii import PresidioConfig, PresidioPii
from adapters.presidio_pii.detector import merged
from adapters.regex_pii import RegexPii
from conformance.clock import ManualClock
from conformance.people import ACME
from conformance.pii import PiiContract
from ports.adapter import Given
from ports.errors import InvalidArgument, Unavailable
from ports.pii import PiiDetector, Span

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("presidio_analyzer") is None, reason="the extra `presidio` is not installed"
    ),
    # Presidio's dependencies warn about each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

GIVEN = Given(clock=ManualClock(), ports={"pii_patterns": RegexPii()})


class PresidioHarness:
    def __init__(self, closing: AsyncExitStack, config: PresidioConfig) -> None:
        self._closing = closing
        self._config = config

    @property
    def declared(self) -> Struct:
        return presidio_pii.SPEC.capabilities(self._config)

    async def open(self) -> PiiDetector:
        return await self._closing.enter_async_context(presidio_pii.SPEC.open(self._config, GIVEN))


class TestPresidioPii(PiiContract):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[PresidioHarness]:
        async with AsyncExitStack() as closing:
            yield PresidioHarness(closing, PresidioConfig())


class Nothing:
    """Patterns that find nothing: what is found then is Presidio's."""

    capabilities = RegexPii().capabilities

    def elsewhere(self) -> None:
        return None

    async def detect(self, _auth: object, _text: str) -> tuple[Span, ...]:
        return ()


@pytest.mark.anyio
async def test_presidio_itself_finds_what_it_is_asked_for_and_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a call to somebody")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    alone = Given(clock=ManualClock(), ports={"pii_patterns": Nothing()})
    async with presidio_pii.SPEC.open(PresidioConfig(entities=("EMAIL_ADDRESS", "IP_ADDRESS")), alone) as detector:
        spans = await detector.detect(ACME, "ann@example.com at 192.168.17.4")

    assert [(span.start, span.end, span.kind) for span in spans] == [(0, 15, "email"), (19, 31, "ip_address")]


@pytest.mark.anyio
async def test_a_long_text_goes_to_another_process_whose_end_is_survived() -> None:
    text = "plain words " * 40 + "ann@example.com"
    async with presidio_pii.SPEC.open(PresidioConfig(long_chars=256), GIVEN) as detector:
        assert isinstance(detector, PresidioPii)
        with anyio.fail_after(120):
            before = await detector.detect(ACME, text)
            executor: Any = detector._pool._executor
            for child in list(executor._processes):
                os.kill(child, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await detector.detect(ACME, text)
            after = await detector.detect(ACME, text)

    assert before == after == (Span(start=480, end=495, kind="email"),)


@pytest.mark.anyio
async def test_too_many_long_texts_are_refused_for_now() -> None:
    async with presidio_pii.SPEC.open(PresidioConfig(long_chars=256), GIVEN) as detector:
        assert isinstance(detector, PresidioPii)
        detector._pool._room = 0
        with pytest.raises(Unavailable, match="ask again"):
            await detector.detect(ACME, "12345 " * 100)


def test_findings_that_overlap_are_one_with_our_name() -> None:
    known = (Span(start=4, end=9, kind="secret"),)

    assert merged(known, [(0, 6, "email"), (7, 12, "person"), (20, 22, "person")]) == (
        Span(start=0, end=12, kind="secret"),
        Span(start=20, end=22, kind="person"),
    )


def test_a_configuration_that_can_not_work_is_refused_before_anything_opens() -> None:
    with pytest.raises(InvalidArgument, match="does not know"):
        presidio_pii.SPEC.capabilities(PresidioConfig(entities=("SHOE_SIZE",)))
    with pytest.raises(InvalidArgument, match="language model"):
        presidio_pii.SPEC.capabilities(PresidioConfig(entities=("PERSON",)))


@pytest.mark.anyio
async def test_a_model_that_is_not_installed_is_named() -> None:
    with pytest.raises(InvalidArgument, match="no_such_model"):
        async with presidio_pii.SPEC.open(PresidioConfig(model="no_such_model"), GIVEN):
            pass
