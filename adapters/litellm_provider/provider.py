"""The port: what is passed on, over which wire, and what comes of it."""

import asyncio
import importlib
import importlib.util
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import ModuleType
from typing import Any, Final

from msgspec import Struct

from adapters.litellm_provider import makers
from adapters.litellm_provider.errors import broke_off, translated
from adapters.litellm_provider.request import chat_members, embed_members
from ports.adapter import AdapterSpec, Given
from ports.errors import AgentOSError, InvalidArgument
from ports.messages import Json
from ports.provider import Endpoint, ProviderCapabilities, ProviderPort

_HERE: Final = "adapters.litellm_provider"


class LiteLlmConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class LiteLlmProvider:
    """ProviderPort. Whatever it needs is loaded when it is first prepared or called."""

    def __init__(self) -> None:
        self._loading = asyncio.Lock()
        # `Any`: both are typed where they are, and importing them is what has to wait.
        self._vendor: Any = None
        self._wire: Any = None
        self._pool: Any = None

    @property
    def capabilities(self) -> ProviderCapabilities:
        return capabilities_of(LiteLlmConfig())

    def check(self, at: Endpoint) -> None:
        if not self.capabilities.providers:
            raise InvalidArgument(f"the provider {at.provider!r} needs LiteLLM; install the extra `litellm`")
        makers.check(at)

    async def prepare(self) -> None:
        async with self._loading:
            if self._vendor is None:
                # In a thread: the loop goes on meanwhile, if not as fast as usual.
                self._wire = await asyncio.to_thread(importlib.import_module, f"{_HERE}.wire")
                self._vendor = await asyncio.to_thread(importlib.import_module, f"{_HERE}.vendor")
                self._pool = self._wire.connections()

    async def chat(self, at: Endpoint, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        members = _chat_members(at, body, max_tokens)
        async with self._call(at, first_byte_s=at.next_byte_s) as (vendor, call):
            return _completed(await vendor.chat(model, {**members, **makers.arguments(at)}, call))

    async def stream(
        self, at: Endpoint, model: str, body: dict[str, Json], max_tokens: int
    ) -> AsyncGenerator[dict[str, Json], None]:
        members = _chat_members(at, body, max_tokens)
        async with self._call(at, first_byte_s=at.first_byte_s) as (vendor, call):
            async with aclosing(await vendor.stream(model, {**members, **makers.arguments(at)}, call)) as chunks:
                async for chunk in chunks:
                    yield chunk
            if not call.seen.ended:
                raise broke_off(at.provider)

    async def embed(self, at: Endpoint, model: str, body: dict[str, Json]) -> dict[str, Json]:
        members = embed_members(body)
        async with self._call(at, first_byte_s=at.next_byte_s) as (vendor, call):
            answer: dict[str, Json] = await vendor.embed(model, {**members, **makers.arguments(at)}, call)
            return answer

    @asynccontextmanager
    async def _call(self, at: Endpoint, *, first_byte_s: float) -> AsyncIterator[tuple[ModuleType, Any]]:
        """Around one call: its errors are ours, and on every way out it is over at the provider, too."""
        makers.check(at)
        await self.prepare()
        call = self._wire.OneCall(self._pool, at, first_byte_s=first_byte_s)
        try:
            yield self._vendor, call
        except AgentOSError:
            raise
        except Exception as error:  # noqa: BLE001 - a vendor whose errors have no common base; all are translated
            # No cause: it quotes the request, and what logs an error logs its cause.
            raise translated(error, call.seen, at.provider) from None
        finally:
            await call.aclose()

    async def aclose(self) -> None:
        if self._vendor is not None:
            await self._vendor.close()
            await self._pool.aclose()


def _chat_members(at: Endpoint, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
    makers.check(at)
    return {**chat_members(body, cache_marks=makers.MAKERS[at.provider].cache_marks), "max_tokens": max_tokens}


def _completed(answer: dict[str, Json]) -> dict[str, Json]:
    """`content` is there also where it is null, as OpenAI has it."""
    for choice in answer.get("choices") or ():
        choice.setdefault("message", {}).setdefault("content", None)
    return answer


def capabilities_of(_: LiteLlmConfig) -> ProviderCapabilities:
    installed = importlib.util.find_spec("litellm") is not None
    return ProviderCapabilities(providers=frozenset(makers.MAKERS) if installed else frozenset())


@asynccontextmanager
async def open_litellm(_config: LiteLlmConfig, _given: Given) -> AsyncIterator[ProviderPort]:
    provider = LiteLlmProvider()
    try:
        yield provider
    finally:
        await provider.aclose()


SPEC: Final = AdapterSpec(config=LiteLlmConfig, capabilities=capabilities_of, open=open_litellm)
