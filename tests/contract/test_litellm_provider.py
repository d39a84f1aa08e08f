"""The kit over LiteLLM, against servers of ours that speak as the providers do; and what is LiteLLM's own."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import anyio
import pytest

from adapters.litellm_provider import SPEC, LiteLlmConfig, LiteLlmProvider
from adapters.litellm_provider.errors import MEANINGS, Seen, translated
from adapters.litellm_provider.makers import MAKERS
from conformance.clock import ManualClock
from conformance.provider import SECRET, ProviderContract
from ports.adapter import Given
from ports.errors import InvalidArgument, Unavailable
from ports.provider import Endpoint, ProviderPort
from tests.support.rough_backend import LAST_CHUNK, RoughBackend, Stall, Step, chunk, rough_backend, whole
from tests.support.scripted_providers import SPEAKERS, Anthropic, Bedrock, Gemini, Say, Speaker

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="the extra `litellm` is not installed"),
    # It and its dependencies warn about each other, while they are imported and at first calls.
    pytest.mark.filterwarnings("ignore"),
]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 0.5


class WireHarness:
    def __init__(self, rough: RoughBackend, closing: AsyncExitStack, speaker: Speaker) -> None:
        self._rough = rough
        self._closing = closing
        self._speaker = speaker

    async def open(self) -> ProviderPort:
        port = await self._closing.enter_async_context(SPEC.open(LiteLlmConfig(), Given(clock=ManualClock())))
        # Loading it is not what is tried here, and takes longer than a test may wait for anything.
        await port.prepare()
        return port

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            provider=self._speaker.name,
            base_url=self._rough.url.removesuffix("/v1"),
            api_key=SECRET,
            options=self._speaker.options,
            connect_s=PATIENCE_S,
            first_byte_s=PATIENCE_S,
            next_byte_s=PATIENCE_S,
        )

    @property
    def model(self) -> str:
        return self._speaker.model

    @property
    def embed_model(self) -> str | None:
        return self._speaker.embed_model

    def will_answer(
        self,
        text: str,
        calls: Sequence[tuple[str, str, str]] = (),
        *,
        prompt: int = 1,
        completion: int = 1,
        cache_read: int = 0,
        cache_write: int = 0,
    ) -> None:
        if not self._speaker.reports_cache_write:
            cache_write = 0
        say = Say(
            text=text, calls=calls, prompt=prompt, completion=completion, cache_read=cache_read, cache_write=cache_write
        )
        self._will(
            whole(json.dumps(self._speaker.whole(say)).encode(), content_type="application/json"), self._all(say)
        )

    def will_embed(self, *vectors: tuple[float, ...]) -> None:
        body = json.dumps(self._speaker.whole(Say(vectors=vectors))).encode()
        self._will(whole(body, content_type="application/json"), [])

    def will_refuse(self, status: int, *, retry_after: str | None = None, too_long: bool = False) -> None:
        headers = {"content_type": "application/json", "location": "http://127.0.0.1:9/"}
        if retry_after is not None:
            headers["retry_after"] = retry_after
        body = json.dumps(self._speaker.refusal(status, too_long=too_long)).encode()
        refusal = whole(body, status=f"{status} No", length=None, **headers)
        self._will(refusal, [refusal])

    def will_break_off(self, text: str) -> None:
        first = next(self._speaker.pieces(Say(text=text)))
        self._will(b"", [self._head(), chunk(first), LAST_CHUNK])

    def will_hold(self, text: str) -> None:
        first = next(self._speaker.pieces(Say(text=text)))
        self._rough.scripts[:] = [
            lambda request: [self._head(), chunk(first), Stall()] if self._speaker.wants_stream(request) else [Stall()]
        ]

    def will_be_silent(self) -> None:
        self._rough.scripts[:] = [[Stall()]]

    async def leave(self) -> None:
        self._rough.url = "http://127.0.0.1:9"  # the port of a service that nobody runs

    def kept(self, cache_write: int) -> int | None:
        return cache_write if self._speaker.reports_cache_write else None

    async def calls(self) -> int:
        return len(self._rough.requests)

    async def held(self) -> None:
        await self._rough.stalled.wait()

    async def gone(self) -> None:
        await self._rough.gone.wait()

    def _will(self, answer: bytes, stream: Sequence[Step]) -> None:
        speaker = self._speaker
        self._rough.scripts[:] = [lambda request: stream if speaker.wants_stream(request) else [answer]]

    def _all(self, say: Say) -> list[Step]:
        return [self._head(), *(chunk(piece) for piece in self._speaker.pieces(say)), LAST_CHUNK]

    def _head(self) -> bytes:
        kind = self._speaker.media_type.encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind


class _OverTheWire(ProviderContract):
    speaker: ClassVar[type[Speaker]]

    @pytest.fixture
    async def harness(self) -> AsyncIterator[WireHarness]:
        async with rough_backend([Stall()]) as rough, AsyncExitStack() as closing:
            yield WireHarness(rough, closing, self.speaker())


class TestAnthropic(_OverTheWire):
    speaker = Anthropic


class TestBedrock(_OverTheWire):
    speaker = Bedrock


class TestGemini(_OverTheWire):
    speaker = Gemini


def test_every_error_of_litellm_has_a_meaning() -> None:
    exceptions = importlib.import_module("litellm.exceptions")
    theirs = {
        name
        for name, found in vars(exceptions).items()
        if isinstance(found, type) and issubclass(found, Exception) and found.__module__ == exceptions.__name__
    }

    assert sorted(theirs - MEANINGS.keys()) == []
    assert sorted(MEANINGS.keys() - theirs) == []


def test_an_error_that_nobody_foresaw_means_what_its_base_does() -> None:
    exceptions = importlib.import_module("litellm.exceptions")
    new = type("QuiteNewError", (exceptions.AuthenticationError,), {"__init__": lambda _: None})

    assert translated(new(), Seen(), "anthropic").code == "upstream_auth_error"
    assert translated(ZeroDivisionError(), Seen(sent=True, status=200), "anthropic").details["outcome"] == "unknown"


def in_a_process_of_its_own(code: str) -> str:
    """What `code` prints."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_nothing_of_it_is_loaded_until_a_provider_is_prepared_and_nobody_is_asked_then(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_API_KEY=of-the-working-directory\n")
    said = in_a_process_of_its_own(
        f"""
        import asyncio, os, socket, sys
        from adapters.litellm_provider import SPEC, LiteLlmConfig
        from conformance.clock import ManualClock
        from ports.adapter import Given

        os.chdir({str(tmp_path)!r})
        asked = []
        socket.getaddrinfo = lambda *said, **_: asked.append(said)
        HEAVY = ("litellm", "httpx", "openai", "aiohttp", "tiktoken", "boto3")

        async def main():
            async with SPEC.open(LiteLlmConfig(), Given(clock=ManualClock())) as port:
                assert "anthropic" in port.capabilities.providers
                before = [name for name in HEAVY if name in sys.modules]
                await port.prepare()
                after = "litellm" in sys.modules
                print(before, after, asked, os.environ.get("OPENAI_API_KEY"))

        asyncio.run(main())
        """
    )

    assert said.splitlines()[-1] == "[] True [] None"


@pytest.mark.anyio
async def test_its_log_says_nothing_and_nobody_else_is_told(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with rough_backend([Stall()]) as rough, AsyncExitStack() as closing:
        harness = WireHarness(rough, closing, Anthropic())
        port = await harness.open()
        capfd.readouterr()
        for status in (200, 400, 401, 500):
            harness.will_answer("hi") if status == 200 else harness.will_refuse(status)
            with anyio.CancelScope():
                try:
                    await port.chat(
                        harness.endpoint, harness.model, {"messages": [{"role": "user", "content": "x"}]}, 5
                    )
                except (InvalidArgument, Unavailable):
                    continue

    litellm = importlib.import_module("litellm")
    assert [record for record in caplog.records if record.name.startswith("LiteLLM")] == []
    assert capfd.readouterr() == ("", "")
    # Its module for Gemini's caches puts the name of a cache there that does not exist.
    assert litellm.cache is None
    assert {*litellm.callbacks, *litellm.success_callback, *litellm.failure_callback} <= {"cache"}


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        (Endpoint(provider="nobody", api_key="k"), "nobody"), (Endpoint(provider="anthropic"), "api_key"),
        (Endpoint(provider="bedrock", api_key="k"), "region"),
        (Endpoint(provider="anthropic", api_key="k", options={"regoin": "x"}), "regoin"),
    ],
)  # fmt: skip
def test_an_endpoint_that_can_not_be_called_is_refused_with_what_is_missing(endpoint: Endpoint, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        LiteLlmProvider().check(endpoint)


@pytest.mark.anyio
@pytest.mark.parametrize("at", ["message", "part"])
async def test_a_mark_that_would_be_a_request_of_its_own_is_refused(at: str) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    text = {"type": "text", "text": "x" * 5_000, **(mark if at == "part" else {})}
    message = {"role": "user", "content": [text], **(mark if at == "message" else {})}

    with pytest.raises(InvalidArgument, match="cache_control"):
        await LiteLlmProvider().chat(
            Endpoint(provider="gemini", api_key=SECRET, base_url="http://127.0.0.1:9"), "g", {"messages": [message]}, 5
        )


def test_every_provider_that_is_offered_is_tried_here() -> None:
    assert {speaker.name for speaker in SPEAKERS} == set(MAKERS)
