"""What the pipeline asks of a backend: bodies in OpenAI's dialect in, bodies in OpenAI's dialect out.

Errors are ours (`upstream_error`, `upstream_auth_error`, `upstream_timeout`; a final refusal of the request itself is
`InvalidArgument`), and hold nothing of the backend's headers or text. Unknown members of an answer are kept.
"""

from collections.abc import AsyncGenerator
from typing import Final, Protocol

from msgspec import Struct

from ports.messages import Json

OUTCOME_UNKNOWN: Final = {"outcome": "unknown"}
"""Details of an error after which the backend may have worked, and billed, all the same."""


class Price(Struct, frozen=True, kw_only=True):
    """Nano-US-dollars for a million tokens: an integer for every price providers publish."""

    prompt: int = 0
    completion: int = 0

    def cost_nanousd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Rounded up: a fraction of a nano-dollar is never lost to the tenant's favour."""
        return -(-(prompt_tokens * self.prompt + completion_tokens * self.completion) // 1_000_000)


class ModelCard(Struct, frozen=True, kw_only=True):
    id: str
    """As clients name it."""
    upstream: str
    """As the backend names it."""
    chat: bool = True
    embed: bool = False
    price: Price | None = None
    max_tokens: int | None = None
    """The most it writes, where known."""


class Backend(Protocol):
    """Safe to call concurrently; calls are cancellable, and a stream closed early ends the call upstream."""

    @property
    def name(self) -> str: ...

    async def models(self) -> tuple[ModelCard, ...]:
        """What it serves now. Raises `Unavailable`."""
        ...

    async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]: ...

    def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> AsyncGenerator[dict[str, Json], None]:
        """The chunks of the answer, a usage chunk included where the backend knows how. Returns after `[DONE]`.

        Raises:
            Unavailable: `upstream_error` also when the stream ends before it says that it is done.
        """
        ...

    async def embed(self, model: str, body: dict[str, Json]) -> dict[str, Json]: ...


class OpenBackend(Backend, Protocol):
    """One that its owner closes."""

    async def aclose(self) -> None:
        """Close its connections, also those that are in use."""
        ...
