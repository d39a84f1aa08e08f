"""What may become of a run: the rules and words of RunState that need no store, shared by its adapters."""

from collections.abc import Mapping
from typing import Final

from msgspec import to_builtins

from ports.errors import Conflict, InvalidArgument
from ports.event import TERMINAL_EVENTS
from ports.ids import RunId
from ports.messages import Fault, Json
from ports.run_state import (
    TERMINAL,
    TERMINAL_EVENT,
    Change,
    NewEvent,
    Origin,
    Parent,
    Resolution,
    RunStatus,
    StepKind,
    StepResult,
    StepStatus,
)


def check_change(change: Change) -> None:
    """Raise `InvalidArgument` unless a terminal status comes with its terminal event, once and last (RUN-10), and
    `waiting` with what for (RUN-36)."""
    if (change.status == "waiting") != (change.waits_for is not None):
        raise InvalidArgument(f"a change to {change.status!r} can't wait for {change.waits_for!r}")
    endings = [event.type for event in change.events if event.type in TERMINAL_EVENTS]
    if change.status is None or change.status not in TERMINAL:
        if endings:
            raise InvalidArgument(f"{endings[0]} needs a change to a terminal status, not to {change.status!r}")
        return
    due = TERMINAL_EVENT[change.status]
    if endings != [due]:
        raise InvalidArgument(f"a change to {change.status!r} needs exactly one terminal event, {due}, not {endings}")
    if change.events[-1].type != due:
        raise InvalidArgument(f"{due} must be the last event of its change, not {change.events[-1].type}")


def check_fork(at: int) -> None:
    if at < 0:
        raise InvalidArgument(f"a fork takes over the steps 1 to {at}, which is below 0; 0 begins anew")


def unforkable(origin: Origin) -> Conflict:
    return Conflict(
        f"run {origin.run_id!r} can't be forked after step {origin.step}: not every step up to it has a result; "
        "its steps tell which do"
    )


def forked_event(agent_id: str, origin: Origin) -> NewEvent:
    """A fork's first event."""
    lineage: dict[str, Json] = {"run_id": origin.run_id, "step": origin.step}
    return NewEvent(type="run.created", data={"agent_id": agent_id, "forked_from": lineage})


def created_event(agent_id: str, parent: Parent | None) -> NewEvent:
    """A run's first event."""
    data: dict[str, Json] = {"agent_id": agent_id}
    if parent is not None:
        data["parent"] = to_builtins(parent)
    return NewEvent(type="run.created", data=data)


MAY_HAVE_ACTED: Final = "whether it took effect is unknown"
INTERRUPTED: Final = Fault(code="outcome_unknown", message=f"interrupted; {MAY_HAVE_ACTED}")


def interrupted(n: int, kind: StepKind, name: str) -> tuple[StepResult, list[NewEvent]]:
    """How a step is closed that was begun, where its run ends."""
    result = StepResult(n=n, status="unknown", error=INTERRUPTED)
    told: dict[str, Json] = {"step": n, "error": to_builtins(INTERRUPTED), "duration_ms": 0}
    if kind != "model":
        told |= {kind: name, "status": result.status}
    closed: dict[str, Json] = {"step": n, "status": result.status}
    return result, [NewEvent(type=f"{kind}.completed", data=told), NewEvent(type="step.completed", data=closed)]


RESOLVED_STATUS: Final[Mapping[str, StepStatus]] = {"done": "completed", "fail": "failed", "retry": "planned"}
"""What a step becomes, by decision."""


def resolved_fault(resolution: Resolution) -> Fault | None:
    if resolution.decision != "fail":
        return None
    return Fault(code="tool_failed", message=resolution.message or "an operator found that the call failed")


def resolved_event(n: int, resolution: Resolution) -> NewEvent:
    data: dict[str, Json] = {"step": n, "decision": resolution.decision}
    if resolution.decision == "done":
        data["output"] = resolution.output
    if (fault := resolved_fault(resolution)) is not None:
        data["error"] = {"code": fault.code, "message": fault.message}
    return NewEvent(type="step.resolved", data=data)


def unresolvable(run_id: RunId, status: RunStatus, n: int) -> Conflict:
    if status != "needs_operator":
        return Conflict(f"run {run_id!r} is {status} and waits for no operator")
    return Conflict(f"step {n} of run {run_id!r} waits for no decision; its steps tell which are unknown")
