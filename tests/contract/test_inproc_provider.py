"""The kit over the provider of this process."""

from collections.abc import Sequence

import pytest

from adapters.inproc.provider import NAME, Answered, InprocProvider
from conformance.provider import SECRET, WORDS, ProviderContract
from ports.errors import Unavailable
from ports.provider import Endpoint, ProviderPort


class InprocProviderHarness:
    """Its errors are what a server's statuses mean."""

    def __init__(self, port: InprocProvider) -> None:
        self.port = port
        self.endpoint = Endpoint(provider=NAME, api_key=SECRET)
        self.model = "m"
        self.embed_model = "e"

    async def open(self) -> ProviderPort:
        return self.port

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
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cache_read, "cache_creation_tokens": cache_write},
        }
        reason = "tool_calls" if calls else "stop"
        self.port.steps[:] = [Answered(text=text, calls=tuple(calls), usage=usage, finish_reason=reason)]

    def will_embed(self, *vectors: tuple[float, ...]) -> None:
        self.port.steps[:] = [Answered(vectors=vectors)]

    def will_refuse(self, status: int, *, retry_after: str | None = None, too_long: bool = False) -> None:
        self.port.steps[:] = [self.port.refused(status, WORDS, retry_after=retry_after, too_long=too_long)]

    def will_break_off(self, text: str) -> None:
        self.port.steps[:] = [Answered(text=text, cut=True)]

    def will_hold(self, text: str) -> None:
        self.port.steps[:] = [Answered(text=text, held=True)]

    def will_be_silent(self) -> None:
        self.port.steps[:] = [Unavailable("it did not answer in time", code="upstream_timeout")]

    async def leave(self) -> None:
        self.port.steps[:] = [Unavailable("can't be reached", code="upstream_error", details={"sent": False})]

    def kept(self, cache_write: int) -> int | None:
        return cache_write

    async def calls(self) -> int:
        return self.port.calls

    async def held(self) -> None:
        await self.port.held.wait()

    async def gone(self) -> None:
        await self.port.gone.wait()


class TestInprocProvider(ProviderContract):
    @pytest.fixture
    def harness(self) -> InprocProviderHarness:
        return InprocProviderHarness(InprocProvider())
