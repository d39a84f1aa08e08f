"""Provider port: models of a maker that does not speak OpenAI's protocol, as if it did.

Bodies and answers are OpenAI's, as decoded JSON. A gateway decides everything else before and after: who may call, what it
may cost, what is shown. A call carries nothing of the gateway's client but its body, so that no identity is handed over.

Clauses (each has a test in `conformance.provider`):

* PRV-1  `chat` answers with a chat completion: `choices` with a message and OpenAI's finish reason; calls of tools have
         their arguments as JSON text.
* PRV-2  `usage` counts all of the prompt, cached or not. What was read from a cache, written to one, or reasoning is in
         its details, apart and as parts of the totals.
* PRV-3  `stream` yields chunks which, joined, are what `chat` would have answered, the usage among them.
* PRV-4  A stream that ends before the provider said that the answer is over raises `Unavailable` (`upstream_error`),
         with `outcome: unknown` in its details, after the chunks that had come.
* PRV-5  A call is at most one request to the provider, whatever becomes of it.
* PRV-6  A refusal of the request (400, 413, 422) raises `InvalidArgument`, `context_length_exceeded` where the provider
         says so; refused credentials (401, 403) `Unavailable` (`upstream_auth_error`); 408, 504 `upstream_timeout`; every
         other status `upstream_error`, with the provider's `retry_after` for 429 and 503, 60 s at most.
* PRV-7  A provider that can't be reached raises `Unavailable` (`upstream_error`) with `sent: False` in its details.
* PRV-8  An error holds nothing of the provider's words, of the request, and of the credentials.
* PRV-9  A caller who leaves, a stream that is closed, ends the call at the provider too.
* PRV-10 A member of the body that can't be passed on as it is meant raises `InvalidArgument` before anything is sent; so
         does one that would steer the call, and content that would have to be fetched from somewhere.
* PRV-11 `embed` answers with one vector per input, in order.
* PRV-12 A provider that is silent for longer than the endpoint allows raises `Unavailable` (`upstream_timeout`).
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from msgspec import Struct

from ports.messages import Json


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where a provider's models are, and by which right they are called."""

    provider: str
    base_url: str = ""
    """Empty: the provider's own."""
    api_key: str = ""
    options: dict[str, str] = {}
    """What else the provider must be told to be called, such as a region; see the adapter."""
    connect_s: float = 5.0
    first_byte_s: float = 300.0
    """Of a stream: until its first byte."""
    next_byte_s: float = 300.0
    """Until the next bytes; of an answer that is whole, until the first."""

    def __repr__(self) -> str:
        return f"Endpoint(provider={self.provider!r}, base_url={self.base_url!r})"


class ProviderCapabilities(Struct, frozen=True, kw_only=True):
    providers: frozenset[str] = frozenset()
    """Which there are. None where what they need is not installed."""


class ProviderPort(Protocol):
    """Safe to call concurrently; calls are cancellable."""

    @property
    def capabilities(self) -> ProviderCapabilities: ...

    async def prepare(self) -> None:
        """Load what the first call would have to load, which may take seconds. Contacts nobody."""
        ...

    async def chat(self, at: Endpoint, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]: ...

    def stream(
        self, at: Endpoint, model: str, body: dict[str, Json], max_tokens: int
    ) -> AsyncGenerator[dict[str, Json], None]: ...

    async def embed(self, at: Endpoint, model: str, body: dict[str, Json]) -> dict[str, Json]: ...

    def check(self, at: Endpoint) -> None:
        """Whether calls can be made like this, as far as it can be told without making one. Raises `InvalidArgument`."""
        ...
