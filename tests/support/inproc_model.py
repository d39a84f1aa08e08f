"""The harness of the kit over `adapters.inproc.model`."""

from typing import Final

import anyio
from msgspec import Struct

from adapters.inproc.model import SPEC, InprocModel, InprocModelConfig, echo
from conformance.people import GLOBEX
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.model import ChatRequest, Message, ModelPort

CONFIG: Final = InprocModelConfig(
    chat_models=("echo", "echo-2", "globex-only"), only_for={"globex-only": (GLOBEX.tenant,)}, blocked_words=("walrus",)
)


class InprocModelHarness:
    """Satisfies `ModelHarness`. The rule is the backend."""

    chat_model = "echo"
    embed_model = "echo-embed"
    foreign_model = "globex-only"
    blocked = ChatRequest(model="echo", messages=(Message(role="user", content="I am the Walrus"),))

    def __init__(self, model: type[InprocModel] = InprocModel) -> None:
        self._model = model
        self._calls = 0
        self._waiting = 0
        self._broken = False
        self._let_go: anyio.Event | None = None

    @property
    def declared(self) -> Struct:
        return SPEC.capabilities(CONFIG)

    async def open(self) -> ModelPort:
        return self._model(CONFIG, self._counted)

    async def backend_calls(self) -> int:
        return self._calls

    async def break_backend(self) -> None:
        self._broken = True

    async def hold_backend(self) -> None:
        self._let_go = anyio.Event()

    async def release_backend(self) -> None:
        if self._let_go is not None:
            self._let_go.set()
            self._let_go = None

    async def backend_waiting(self) -> int:
        return self._waiting

    async def _counted(self, auth: AuthContext, request: ChatRequest) -> Message:
        if self._broken:
            raise Unavailable("the backend is broken", code="upstream_error")
        self._calls += 1
        self._waiting += 1
        try:
            if self._let_go is not None:
                await self._let_go.wait()
        finally:
            self._waiting -= 1
        return echo(auth, request)
