"""ProviderPort in this process: does the next of its steps to each call, the last one again and again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, TypeAlias

from msgspec import Struct

from ports.adapter import AdapterSpec, Given
from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.messages import Json
from ports.provider import Endpoint, ProviderCapabilities, ProviderPort

NAME: Final = "scripted"
MAX_RETRY_AFTER_S: Final = 60
KNOWN: Final = frozenset({"messages", "temperature", "tools", "input", "encoding_format"})


class Answered(Struct, frozen=True, kw_only=True):
    """A call that is answered, at least in part."""

    text: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    """Of tools: id, name, arguments as JSON text."""
    usage: dict[str, Json] = {}
    finish_reason: str = "stop"
    vectors: tuple[tuple[float, ...], ...] = ()
    cut: bool = False
    """A stream ends after its first piece, without a word."""
    held: bool = False
    """It waits after the first piece until the caller has gone."""


Step: TypeAlias = Answered | AgentOSError


class InprocProvider:
    """ProviderPort. `calls` counts those that reached the provider."""

    def __init__(self, steps: list[Step] | None = None) -> None:
        self.steps = steps or [Answered(text="hi")]
        self.calls = 0
        self.held = asyncio.Event()
        self.gone = asyncio.Event()

    @property
    def capabilities(self) -> ProviderCapabilities:
        return ProviderCapabilities(providers=frozenset({NAME}))

    def check(self, at: Endpoint) -> None:
        if not at.api_key:
            raise InvalidArgument(f"the provider {at.provider!r} needs an api_key; write env:NAME or file:/path")

    async def prepare(self) -> None:
        """There is nothing to load."""

    async def chat(self, at: Endpoint, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:  # noqa: ARG002 - a script does not read them
        step = await self._reached(body)
        try:
            await self._hold(step)
        finally:
            self._left(step)
        message: dict[str, Json] = {"role": "assistant", "content": step.text or None}
        if step.calls:
            message["tool_calls"] = _calls(step)
        choice = {"index": 0, "message": message, "finish_reason": step.finish_reason}
        return {"id": "chatcmpl-scripted", "object": "chat.completion", "choices": [choice], "usage": step.usage}

    async def stream(
        self,
        at: Endpoint,  # noqa: ARG002 - a script does not read it
        model: str,  # noqa: ARG002
        body: dict[str, Json],
        max_tokens: int,  # noqa: ARG002
    ) -> AsyncGenerator[dict[str, Json], None]:
        step = await self._reached(body)
        try:
            half = max(1, len(step.text) // 2)
            if step.text:
                yield _chunk({"role": "assistant", "content": step.text[:half]})
            await self._hold(step)
            if step.cut:
                raise Unavailable("it broke off", code="upstream_error", details={"outcome": "unknown"})
            if step.text[half:]:
                yield _chunk({"content": step.text[half:]})
            if step.calls:
                yield _chunk({"tool_calls": _calls(step)})
            yield _chunk({}, step.finish_reason)
            yield {**_chunk({}), "choices": [], "usage": step.usage}
        finally:
            self._left(step)

    async def embed(self, at: Endpoint, model: str, body: dict[str, Json]) -> dict[str, Json]:  # noqa: ARG002
        step = await self._reached(body)
        data = [{"index": at, "embedding": list(vector)} for at, vector in enumerate(step.vectors)]
        return {"object": "list", "data": data, "usage": step.usage}

    def refused(
        self, status: int, words: str, *, retry_after: str | None = None, too_long: bool = False
    ) -> AgentOSError:
        """What a refusal means whose status and `words` are a server's; the words stay here."""
        assert words
        match status:
            case 400 | 413 | 422:
                code = "context_length_exceeded" if too_long else "invalid_request"
                return InvalidArgument("it refused the request", code=code)
            case 401 | 403:
                return Unavailable("it refused the credentials", code="upstream_auth_error")
            case 408 | 504:
                return Unavailable("it was too late", code="upstream_timeout")
        wait = int(retry_after) if retry_after is not None and retry_after.isdigit() else None
        left_alone = None if wait is None else timedelta(seconds=min(wait, MAX_RETRY_AFTER_S))
        return Unavailable(f"it answered {status}", code="upstream_error", retry_after=left_alone)

    async def _reached(self, body: dict[str, Json]) -> Answered:
        if unknown := sorted(body.keys() - KNOWN):
            raise InvalidArgument(f"{unknown}: not known here; leave them out")
        if _refers(body.get("messages")):
            raise InvalidArgument("messages: nothing is fetched from anywhere")
        self.calls += 1
        step = self.steps[0] if len(self.steps) == 1 else self.steps.pop(0)
        if isinstance(step, AgentOSError):
            raise step
        return step

    async def _hold(self, step: Answered) -> None:
        if step.held:
            self.held.set()
            await asyncio.Event().wait()

    def _left(self, step: Answered) -> None:
        if step.held:
            self.gone.set()


def _refers(messages: Json) -> bool:
    parts = [part for one in messages or () if isinstance(one.get("content"), list) for part in one["content"]]
    return any("image_url" in part and not part["image_url"]["url"].startswith("data:") for part in parts)


def _calls(step: Answered) -> list[dict[str, Json]]:
    return [
        {"index": at, "id": call, "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (call, name, arguments) in enumerate(step.calls)
    ]


def _chunk(delta: dict[str, Json], finish_reason: str | None = None) -> dict[str, Json]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "choices": [choice]}


class InprocProviderConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


@asynccontextmanager
async def open_provider(_config: InprocProviderConfig, _given: Given) -> AsyncIterator[ProviderPort]:
    yield InprocProvider()


SPEC: Final[AdapterSpec[InprocProviderConfig, ProviderPort]] = AdapterSpec(
    config=InprocProviderConfig,
    capabilities=lambda _: ProviderCapabilities(providers=frozenset({NAME})),
    open=open_provider,
)
