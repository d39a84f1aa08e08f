"""A backend in this process that writes what a test tells it, and knows what it has written and what it was told."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from ports.errors import AgentOSError, Unsupported
from ports.messages import Json
from stack_b.backends.protocol import ModelCard, Price
from tests.support.scripted_upstream import completion, delta, usage

PROMPT_TOKENS = 10


async def _nothing(_number: int) -> None:
    """Between two pieces."""


@dataclass
class Writing:
    """Satisfies `stack_b.backends.protocol.Backend`. Each token is a piece of `bytes_each` bytes, in a chunk of its own."""

    name: str = "writing"
    tokens: int = 5
    stops_billing: bool = False
    bytes_each: int = 4
    text: str = ""
    """Of each token, in place of so many bytes."""
    price: Price | None = None
    max_tokens: int | None = None
    model: str = "m-1"
    fails_after: int | None = None
    """So many tokens, with `failure`."""
    failure: AgentOSError | None = None
    reports: bool = True
    between: Callable[[int], Awaitable[None]] = _nothing
    """Before each piece."""
    told: list[int] = field(default_factory=list)
    """The `max_tokens` of each call."""
    written: int = 0
    """Tokens, in all calls."""
    reported: int = 0
    """Prompt and completion, in all calls whose end was reached."""
    closed: int = 0
    """Streams that were closed before their end."""

    def cancel_stops_billing(self, *, streamed: bool) -> bool:  # noqa: ARG002 - the protocol's signature
        return self.stops_billing

    async def models(self) -> tuple[ModelCard, ...]:
        return (ModelCard(id=self.model, upstream=self.model, price=self.price, max_tokens=self.max_tokens),)

    async def chat(self, _model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        self.told.append(max_tokens)
        count = min(self.tokens, max_tokens) * (body.get("n") or 1)
        await self.between(0)
        if self.failure is not None:
            raise self.failure
        self.written += count
        self.reported += PROMPT_TOKENS + count if self.reports else 0
        told = usage(PROMPT_TOKENS, count) if self.reports else None
        answer: dict[str, Json] = completion("x" * self.bytes_each * count, usage=told).body
        return answer

    async def stream(
        self, _model: str, body: dict[str, Json], max_tokens: int
    ) -> AsyncGenerator[dict[str, Json], None]:
        self.told.append(max_tokens)
        choices = body.get("n") or 1
        try:
            for number in range(min(self.tokens, max_tokens)):
                await self.between(number)
                if number == self.fails_after and self.failure is not None:
                    raise self.failure
                for index in range(choices):
                    self.written += 1
                    yield delta(content=self.text or "x" * self.bytes_each, index=index)
        except GeneratorExit:
            self.closed += 1
            raise
        for index in range(choices):
            yield delta("length" if self.tokens > max_tokens else "stop", index=index)
        if self.reports:
            count = min(self.tokens, max_tokens) * choices
            self.reported += PROMPT_TOKENS + count
            yield {"id": "chatcmpl-up", "choices": [], "usage": usage(PROMPT_TOKENS, count)}

    async def embed(self, _model: str, _body: dict[str, Json]) -> dict[str, Json]:
        raise Unsupported("chats only")
