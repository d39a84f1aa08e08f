"""Which calls cost only what was written until they are cut off: by where a backend is, or by what the operator says."""

import pytest

from adapters.system_clock import SystemClock
from ports.errors import InvalidArgument
from stack_b.backends.billing import StopsBilling, usual
from stack_b.backends.demo import DemoBackend
from stack_b.backends.settings import open_backend, parse_settings

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("host", "how"),
    [
        ("127.0.0.1", True),
        ("10.0.0.7", True),
        ("::1", True),
        ("vllm", True),
        ("models.internal", True),
        ("tgi.models.svc.cluster.local", True),
        ("api.openai.com", "streams"),
        ("eu.api.openai.com", "streams"),
        ("acme.openai.azure.com", "streams"),
        ("api.groq.com", False),
        ("api.mistral.ai", False),
        ("api.openai.com.evil.example", False),
        ("notapi.openai.com", False),
        ("8.8.8.8", False),
    ],
)
def test_where_a_backend_is_says_what_is_usual_there(host: str, how: StopsBilling) -> None:
    assert usual(host) == how


@pytest.mark.parametrize(
    ("said", "streamed", "whole"),
    [("true", True, True), ("false", False, False), ('"streams"', True, False), ("null", False, False)],
)
async def test_what_the_operator_says_counts(said: str, streamed: bool, whole: bool) -> None:
    [settings] = parse_settings(
        f'[{{"name": "a", "base_url": "https://models.example/v1", "cancel_stops_billing": {said}}}]'
    )
    backend = open_backend(settings, SystemClock(), secret=lambda _: "", demo=False)
    told = backend.cancel_stops_billing(streamed=True), backend.cancel_stops_billing(streamed=False)
    await backend.aclose()

    assert told == (streamed, whole)


def test_a_word_that_means_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="cancel_stops_billing"):
        parse_settings('[{"name": "a", "base_url": "http://a", "cancel_stops_billing": "sometimes"}]')


def test_the_demo_backend_bills_nothing_that_was_not_written() -> None:
    assert DemoBackend(SystemClock()).cancel_stops_billing(streamed=False)
