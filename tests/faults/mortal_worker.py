"""A worker that ends itself by SIGKILL at one point of a run, where the run's input asks for it.

    python -m tests.faults.mortal_worker

The product's own composition root, with a wrapper around the ports. Each life is a fork of a process that has everything
imported, so that the next one begins at once.
"""

import ctypes
import inspect
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from deploy.roots import stack_a_worker
from deploy.roots.server import run
from observability.instrument import instrument
from ports.ids import RunId, WorkerId
from ports.model import ChatRequest
from ports.queue import Delivery
from ports.run_state import Change, Run, StepIntent, StepResult
from ports.tool import ToolCall
from stack_a.runs.start import Hint

DEATHS: Final = "AGENTOS_FAULTS_DEATHS"
"""Names the file that a worker writes a line to before it dies."""

Point: TypeAlias = Literal[
    "intent.before", "intent.after", "call.before", "call.after",
    "result.before", "result.after", "ack.before", "ack.after",
]  # fmt: skip
"""Before an effect, or after it and before anybody heard of it: of the commit of an intent, the call of a model or a tool,
the commit of a result, and the acknowledgement of the hint."""

_PR_SET_PDEATHSIG: Final = 1


class Sentence(Struct, frozen=True, kw_only=True):
    """In the run's input, under `die`: at which point of its first attempt the worker dies, the how many-th of its kind."""

    point: Point
    nth: int


class Death(Struct, frozen=True, kw_only=True):
    run_id: RunId
    worker: WorkerId
    point: Point


class Fate:
    """What becomes of the runs in this process's hands."""

    def __init__(self) -> None:
        self._due: dict[RunId, tuple[Sentence, WorkerId]] = {}
        self._passed: dict[tuple[RunId, str], int] = {}

    def claimed(self, claimed: Run, worker: WorkerId) -> None:
        plan = json.loads(str(claimed.input))
        if claimed.epoch == 1 and "die" in plan:
            self._due[claimed.id] = (msgspec.convert(plan["die"], Sentence), worker)

    def meet(self, run_id: RunId, kind: str, side: str) -> None:
        """The run is at a point. Does not return where it is the one."""
        if run_id not in self._due:
            return
        point = f"{kind}.{side}"
        passed = self._passed[run_id, point] = self._passed.get((run_id, point), 0) + 1
        sentence, worker = self._due[run_id]
        if (point, passed) == (sentence.point, sentence.nth):
            line = msgspec.json.encode(Death(run_id=run_id, worker=worker, point=sentence.point)) + b"\n"
            handle = os.open(os.environ[DEATHS], os.O_WRONLY | os.O_APPEND)
            os.write(handle, line)
            os.kill(os.getpid(), signal.SIGKILL)


def at_stake(method: str, arguments: tuple[Any, ...]) -> tuple[RunId, tuple[str, ...]] | None:
    """Which run a port call is about, and what kinds of point it is. Pure."""
    match method, arguments:
        case "append", (_, run_id, _, Change(steps=steps)):
            intends = ("intent",) if any(isinstance(step, StepIntent) for step in steps) else ()
            concludes = ("result",) if any(isinstance(step, StepResult) for step in steps) else ()
            return run_id, intends + concludes
        case "stream", (_, ChatRequest(step_key=str() as key)):
            return _run_of(key), ("call",)
        case "invoke", (_, ToolCall(key=key)):
            return _run_of(key), ("call",)
        case "ack", (_, Delivery(body=body)):
            return msgspec.json.decode(body, type=Hint).run_id, ("ack",)
    return None


def _run_of(step_key: str) -> RunId:
    return RunId(step_key.rpartition(":")[0])


class Mortal:
    """Stands in for a port of any kind."""

    def __init__(self, port: Any, fate: Fate) -> None:
        self._port = port
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name == "stream":
            return self._stream(found)
        if name == "claim":
            return self._claim(found)
        return self._call(name, found) if name in {"append", "invoke", "ack"} else found

    def _call(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*arguments: Any, **named: Any) -> Any:
            self._meet(name, arguments, "before")
            answer = await method(*arguments, **named)
            self._meet(name, arguments, "after")
            return answer

        return call

    def _stream(self, method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def stream(*arguments: Any) -> AsyncIterator[Any]:
            self._meet("stream", arguments, "before")
            async for one in method(*arguments):
                yield one
            self._meet("stream", arguments, "after")

        return stream

    def _claim(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def claim(auth: Any, run_id: RunId, worker: WorkerId) -> Run:
            claimed: Run = await method(auth, run_id, worker)
            self._fate.claimed(claimed, worker)
            return claimed

        return claim

    def _meet(self, name: str, arguments: tuple[Any, ...], side: str) -> None:
        if (found := at_stake(name, arguments)) is not None:
            run_id, kinds = found
            for kind in kinds:
                self._fate.meet(run_id, kind, side)


def main() -> int:
    fate = Fate()

    def mortal(name: str, port: Any, on_call: Any) -> Any:
        return Mortal(instrument(name, port, on_call), fate)

    # The root's own wiring, with one more layer; inspected so that a root that wires otherwise is noticed.
    assert "return instrument(name, told, metrics.port_call)" in inspect.getsource(stack_a_worker.main)
    setattr(stack_a_worker, "instrument", mortal)  # noqa: B010 - the name is not the root's to export
    while True:
        child = os.fork()
        if child == 0:
            # Whoever kills the parent means both.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            run(stack_a_worker.main(os.environ))
            return 0
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
