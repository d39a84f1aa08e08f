"""What the pipeline asks of a backend: bodies in OpenAI's dialect in, bodies in OpenAI's dialect out.

Errors are ours (`upstream_error`, `upstream_auth_error`, `upstream_timeout`; a final refusal of the request itself is
`InvalidArgument`), and hold nothing of the backend's headers or text. Unknown members of an answer are kept.
"""

from collections.abc import AsyncIterator, Awaitable
from typing import Final, Protocol, runtime_checkable

from msgspec import Struct

from ports.messages import Json
from stack_b.chunks import Piece

OUTCOME_UNKNOWN: Final = {"outcome": "unknown"}
"""Details of an error after which the backend may have worked, and billed, all the same."""


class Price(Struct, frozen=True, kw_only=True):
    """Nano-US-dollars for a million tokens: an integer for every price providers publish."""

    prompt: int = 0
    completion: int = 0
    cache_read: int | None = None
    """None, here and below: as any other token of the prompt, or of the completion."""
    cache_write: int | None = None
    reasoning: int | None = None
    version: str = ""

    def cost_nanousd(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        cache_read: int = 0,
        cache_write: int = 0,
        reasoning: int = 0,
    ) -> int:
        """The kinds are parts of the totals. Rounded up: no fraction of a nano-dollar is lost to the tenant's favour."""
        cost = (
            (prompt_tokens - cache_read - cache_write) * self.prompt
            + cache_read * _or(self.cache_read, self.prompt)
            + cache_write * _or(self.cache_write, self.prompt)
            + (completion_tokens - reasoning) * self.completion
            + reasoning * _or(self.reasoning, self.completion)
        )
        return -(-cost // 1_000_000)

    def most_nanousd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What so many tokens cost at most, of whatever kinds they turn out to be."""
        prompt = max(self.prompt, _or(self.cache_read, 0), _or(self.cache_write, 0))
        completion = max(self.completion, _or(self.reasoning, 0))
        return -(-(prompt_tokens * prompt + completion_tokens * completion) // 1_000_000)


def _or(price: int | None, other: int) -> int:
    return other if price is None else price


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
    hidden_reasoning: bool | None = None
    """Whether it is billed for output that no stream shows. None: not known; it may be where only streams stop the bill."""


class Pieces(Protocol):
    """An answer as it comes: any asynchronous generator is one."""

    def __aiter__(self) -> AsyncIterator[dict[str, Json] | list[Piece]]: ...

    def __anext__(self) -> Awaitable[dict[str, Json] | list[Piece]]: ...

    async def aclose(self) -> None:
        """End it early, and the call upstream with it."""
        ...


class Backend(Protocol):
    """Safe to call concurrently; calls are cancellable, and a stream closed early ends the call upstream."""

    @property
    def name(self) -> str: ...

    def cancel_stops_billing(self, *, streamed: bool) -> bool:
        """Whether a call that is cut off costs only what was written until then; if not, it costs all it would have."""
        ...

    async def models(self) -> tuple[ModelCard, ...]:
        """What it serves now. Raises `Unavailable`."""
        ...

    async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]: ...

    def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> Pieces:
        """The chunks of the answer, a usage chunk included where the backend knows how: one by one, or all that are there
        at a time. Returns after `[DONE]`.

        Raises:
            Unavailable: `upstream_error` also when the stream ends before it says that it is done.
        """
        ...

    async def embed(self, model: str, body: dict[str, Json]) -> dict[str, Json]: ...


@runtime_checkable
class Probed(Protocol):
    """A backend that can be asked how it is, for nothing."""

    async def probe(self) -> None:
        """Raises `Unavailable` when it does not answer, or says that it can't serve anybody."""
        ...


class OpenBackend(Backend, Protocol):
    """One that its owner closes."""

    async def aclose(self) -> None:
        """Close its connections, also those that are in use."""
        ...
