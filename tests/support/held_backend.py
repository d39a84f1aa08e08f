"""A backend in this process whose calls wait until they are let go, and which counts what becomes of them."""

from collections.abc import AsyncGenerator

import anyio

from ports.errors import AgentOSError, Unsupported
from ports.messages import Json
from stack_b.backends.protocol import ModelCard
from tests.support.scripted_upstream import completion, delta, usage

SAID = "half and whole"
SPENT = 30


class HeldBackend:
    """Satisfies `stack_b.backends.protocol.Backend`: says `SAID`, or fails with `failure`, once `let_go` is set."""

    name = "held"

    def __init__(self, *, held: bool = True) -> None:
        self.stops_billing = True
        self.calls = 0
        self.ended = 0
        self.cancelled = 0
        self.begun = anyio.Event()
        self.stopped = anyio.Event()
        """Set when a call was cancelled."""
        self.let_go = anyio.Event()
        self.failure: AgentOSError | None = None
        if not held:
            self.let_go.set()

    def cancel_stops_billing(self, *, streamed: bool) -> bool:  # noqa: ARG002 - the protocol's signature
        return self.stops_billing

    async def models(self) -> tuple[ModelCard, ...]:
        return (ModelCard(id="m-1", upstream="m-1"),)

    async def chat(self, _model: str, _body: dict[str, Json], _max_tokens: int) -> dict[str, Json]:
        await self._wait()
        answer: dict[str, Json] = completion(SAID, usage=usage(10, 20)).body
        return answer

    async def stream(
        self, _model: str, _body: dict[str, Json], _max_tokens: int
    ) -> AsyncGenerator[dict[str, Json], None]:
        yield delta(role="assistant", content="")
        yield delta(content="half ")
        await self._wait()
        yield delta(content="and whole")
        yield delta("stop")
        yield {"id": "chatcmpl-up", "choices": [], "usage": usage(10, 20)}

    async def embed(self, _model: str, _body: dict[str, Json]) -> dict[str, Json]:
        raise Unsupported("chats only")

    async def _wait(self) -> None:
        self.calls += 1
        self.begun.set()
        try:
            await self.let_go.wait()
        except BaseException:
            self.cancelled += 1
            self.stopped.set()
            raise
        self.ended += 1
        if self.failure is not None:
            raise self.failure
