"""A backend that is reached through the provider port: the port's answers, held to what the pipeline relies on."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import msgspec
from msgspec import Struct

from ports.errors import Unavailable
from ports.messages import Json
from ports.provider import Endpoint, ProviderPort
from stack_b.backends.billing import StopsBilling, stops
from stack_b.backends.protocol import OUTCOME_UNKNOWN, ModelCard
from stack_b.backends.shapes import ChunkShape, CompletionShape, EmbeddingsShape

_HEARD: Final = frozenset({"metadata"})


class ProvidedBackend:
    """Satisfies `stack_b.backends.protocol.OpenBackend`. The port is its opener's to close."""

    def __init__(
        self,
        *,
        name: str,
        provider: ProviderPort,
        at: Endpoint,
        models: tuple[ModelCard, ...],
        members: Mapping[str, Json] | None = None,
        cancel_stops_billing: StopsBilling = False,
    ) -> None:
        """Raises `InvalidArgument` where the port can't make calls like this."""
        provider.check(at)
        self._name = name
        self._provider = provider
        self._at = at
        self._models = models
        self._members = dict(members or {})
        self._stops_billing: StopsBilling = cancel_stops_billing

    def cancel_stops_billing(self, *, streamed: bool) -> bool:
        return stops(self._stops_billing, streamed=streamed)

    def _body(self, body: dict[str, Json]) -> dict[str, Json]:
        """`metadata` is what a client says to the gateway, which has heard it."""
        return {name: value for name, value in body.items() if name not in _HEARD} | self._members

    @property
    def name(self) -> str:
        return self._name

    async def aclose(self) -> None:
        """Its calls end with those who made them."""

    async def models(self) -> tuple[ModelCard, ...]:
        # Asked in the background: no request waits until the port has loaded what it needs.
        await self._provider.prepare()
        return self._models

    async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        answer = await self._provider.chat(self._at, model, self._body(body), max_tokens)
        self._check(answer, CompletionShape)
        return answer

    async def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> AsyncGenerator[dict[str, Json], None]:
        async with aclosing(self._provider.stream(self._at, model, self._body(body), max_tokens)) as chunks:
            async for chunk in chunks:
                self._check(chunk, ChunkShape)
                yield chunk

    async def embed(self, model: str, body: dict[str, Json]) -> dict[str, Json]:
        answer = await self._provider.embed(self._at, model, self._body(body))
        self._check(answer, EmbeddingsShape)
        return answer

    def _check(self, value: dict[str, Json], shape: type[Struct]) -> None:
        try:
            msgspec.convert(value, shape)
        except msgspec.ValidationError as error:
            # msgspec names paths and types, never values.
            raise Unavailable(
                f"backend {self._name!r} can't be understood: {error}", code="upstream_error", details=OUTCOME_UNKNOWN
            ) from None
