"""Replay: make every decision of a run again, from its journal alone, and find the first that differs.

Pure. It calls nothing: what models and tools answered is what the journal says, and `next_action` says what has to follow
from it. A journal that was changed, an agent or a tool that isn't what it was, or a version of this software that decides
otherwise shows at the first step that depends on it.

What a fork took over was decided by another run, maybe for somebody who may use other tools: it is a premise here, and
replaying that run proves it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ports.agent import AgentSpec
from ports.messages import Fault, Json
from ports.run_state import SETTLED_STEP, TERMINAL, Run, RunStatus, Step, StepIntent
from ports.tool import ToolSpec
from stack_a.runs.plan import Action, CallModel, CallTools, Finish, digest, next_action

IMPOSED: Final = frozenset({"poison", "run_timeout", "internal"})
"""Ends that come from outside the journal: the run may be at any place in it then, as when it was cancelled."""

_UNREADABLE: Final = (AttributeError, KeyError, TypeError, ValueError)
"""What reading an answer that no model ever gave can raise; msgspec's errors are ValueErrors."""


class Decision(Struct, frozen=True, kw_only=True):
    """What is compared of an intent or of a run's end."""

    what: str
    """`model <name>`, `tool <name>`, or the run's status, with its error's code."""
    digest: str


class Divergence(Struct, frozen=True, kw_only=True):
    step: int | None
    """None for the run's end."""
    expected: Decision | None
    """What follows from the journal before it; None when nothing can follow from that."""
    recorded: Decision | None
    """None for nothing."""
    reason: str


class Replayed(Struct, frozen=True, kw_only=True):
    decisions: int
    """Made again and found equal; the run's end is one."""
    complete: bool
    """Whether the end was among them. Otherwise the run is under way, or was ended from outside."""
    divergence: Divergence | None = None


class _Diverged(Exception):
    def __init__(self, step: int | None, expected: Decision | None, recorded: Decision | None, reason: str) -> None:
        super().__init__(reason)
        self.divergence = Divergence(step=step, expected=expected, recorded=recorded, reason=reason)


def replay(run: Run, agent: AgentSpec, tools: Mapping[str, ToolSpec], journal: Sequence[Step]) -> Replayed:
    """Every decision of `run` again. `agent` is the version the run pins, `tools` what its worker offers."""
    # As it was while it ran: how it ended, and which workers it lost on the way, is no part of the journal.
    running = replace(run, status="running", recoveries=0)
    taken_over = 0 if run.forked_from is None else run.forked_from.step
    ahead = {step.n: step for step in journal}
    past: dict[int, Step] = {}
    equal = 0
    try:
        while True:
            action = _decided(running, agent, tools, past)
            if isinstance(action, Finish):
                ended = _check_end(run, action, ahead)
                return Replayed(decisions=equal + ended, complete=ended)
            for intent in _intents(action):
                step = ahead.pop(intent.n, None)
                if step is None:
                    _check_nothing_more(run, ahead, intent)
                    return Replayed(decisions=equal, complete=False)
                if step.n > taken_over:
                    _check_intent(intent, step)
                    equal += 1
                past[step.n] = step
            if open_steps := [step for step in past.values() if step.status not in SETTLED_STEP]:
                _check_stopped(run, ahead, open_steps[0])
                return Replayed(decisions=equal, complete=False)
    except _Diverged as found:
        return Replayed(decisions=equal, complete=False, divergence=found.divergence)


def _decided(run: Run, agent: AgentSpec, tools: Mapping[str, ToolSpec], past: Mapping[int, Step]) -> Action:
    try:
        return next_action(run, agent, tools, tuple(past.values()))
    except _UNREADABLE as error:
        # Those before the last one were read when the calls after them were decided.
        models = [step for step in past.values() if step.kind == "model"]
        if not models:
            raise
        reason = "its output can't be read as a model's answer"
        raise _Diverged(models[-1].n, None, _of_step(models[-1]), reason) from error


def _intents(action: Action) -> list[StepIntent]:
    match action:
        case CallModel(intent=intent):
            return [intent]
        case CallTools(calls=calls):
            return [call.intent for call in calls]
    raise AssertionError("nothing is to be settled where every step has a result")


def _check_intent(intent: StepIntent, step: Step) -> None:
    expected, recorded = _of_intent(intent), _of_step(step)
    if expected == recorded:
        return
    if expected.what != recorded.what:
        reason = "another call follows from the steps before it"
    elif step.kind == "model":
        reason = (
            "another request follows from the steps before it, the agent's instructions and its tools' descriptions"
        )
    else:
        reason = "other arguments follow from the model's answer"
    raise _Diverged(step.n, expected, recorded, reason)


def _check_end(run: Run, action: Finish, ahead: Mapping[int, Step]) -> bool:
    """Whether the run ended, and as it had to."""
    expected = _of_end(action.status, action.output, action.error)
    if ahead:
        first = ahead[min(ahead)]
        raise _Diverged(first.n, expected, _of_step(first), "the run has to end before it")
    if run.status not in TERMINAL:
        return False
    recorded = _of_end(run.status, run.output, run.error)
    if expected != recorded and not _ended_from_outside(run):
        raise _Diverged(None, expected, recorded, "another end follows from the journal")
    return expected == recorded


def _check_nothing_more(run: Run, ahead: Mapping[int, Step], missing: StepIntent) -> None:
    if ahead:
        first = ahead[min(ahead)]
        raise _Diverged(missing.n, _of_intent(missing), None, f"it is not there, and step {first.n} is")
    if run.status in TERMINAL and not _ended_from_outside(run):
        raise _Diverged(missing.n, _of_intent(missing), None, f"the run is {run.status} without it")


def _check_stopped(run: Run, ahead: Mapping[int, Step], step: Step) -> None:
    """Nothing was decided beyond a step without a result."""
    if ahead:
        first = ahead[min(ahead)]
        raise _Diverged(first.n, None, _of_step(first), f"step {step.n} before it is {step.status}")
    if run.status in TERMINAL and not _ended_from_outside(run):
        recorded = _of_end(run.status, run.output, run.error)
        raise _Diverged(None, None, recorded, f"step {step.n} is {step.status}")


def _ended_from_outside(run: Run) -> bool:
    return run.status == "cancelled" or (run.error is not None and run.error.code in IMPOSED)


def _of_intent(intent: StepIntent) -> Decision:
    return Decision(what=f"{intent.kind} {intent.name}", digest=intent.input_digest)


def _of_step(step: Step) -> Decision:
    return Decision(what=f"{step.kind} {step.name}", digest=step.input_digest)


def _of_end(status: RunStatus, output: Json, error: Fault | None) -> Decision:
    # Not the error's text, which another version may word better.
    return Decision(what=status if error is None else f"{status} {error.code}", digest=digest(output))
