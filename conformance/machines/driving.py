"""What the machines share: one event loop and one harness per sequence, and outcomes as values."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final, Generic, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine

from ports.errors import AgentOSError

HarnessT = TypeVar("HarnessT")
AnswerT = TypeVar("AnswerT")

SETTINGS: Final = settings(
    max_examples=40,
    stateful_step_count=30,
    # A sequence over a database takes as long as it takes.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Driven(RuleBasedStateMachine, Generic[HarnessT]):
    """A machine with a harness, and a bridge to its event loop."""

    # Set by the function that makes the machine; a staticmethod, so that it is not bound.
    open_harness: ClassVar[Callable[[], AbstractAsyncContextManager[Any]]]

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._opened = type(self).open_harness()
        self.harness: HarnessT = self.run(self._enter())

    async def _enter(self) -> HarnessT:
        harness: HarnessT = await self._opened.__aenter__()
        return harness

    async def _exit(self) -> None:
        await self._opened.__aexit__(None, None, None)

    def run(self, call: Coroutine[Any, Any, AnswerT]) -> AnswerT:
        # Not by `Runner.run`, which looks after SIGINT at each call: a fifth of what a sequence costs.
        return self._runner.get_loop().run_until_complete(call)

    def outcome(self, call: Coroutine[Any, Any, object]) -> str:
        """The code of the error `call` raised, or `ok`."""
        try:
            self.run(call)
        except AgentOSError as error:
            return error.code
        return "ok"

    def finish(self) -> None:
        """Compare what is left. Called once, before the harness is closed."""

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            try:
                self.run(self._exit())
            finally:
                self._runner.close()
