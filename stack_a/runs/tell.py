"""The events of a run's progress: what an integrator reads on the stream. Pure."""

from collections.abc import Mapping

import msgspec

from ports.ids import RunId
from ports.messages import Fault, Json, Usage
from ports.model import ChatReply
from ports.run_state import TERMINAL_EVENT, NewEvent, RunStatus, StepIntent, StepKind, StepResult


def started(intent: StepIntent) -> list[NewEvent]:
    """A step began: in general, and in the words of its kind."""
    opened = NewEvent(type="step.started", data={"step": intent.n, "kind": intent.kind, "name": intent.name})
    if intent.kind == "model":
        return [opened, NewEvent(type="model.requested", data={"step": intent.n, "model": intent.name})]
    return [
        opened,
        NewEvent(
            type=f"{intent.kind}.requested",
            data={"step": intent.n, intent.kind: intent.name, "arguments": intent.input["arguments"]},
        ),
    ]


def model_completed(n: int, reply: ChatReply, duration_ms: int) -> list[NewEvent]:
    data: dict[str, Json] = {
        "step": n,
        "text": reply.message.content,
        "tool_calls": msgspec.to_builtins(reply.message.tool_calls),
        "finish_reason": reply.finish_reason,
        "usage": _usage(reply.usage),
        "route": msgspec.to_builtins(reply.route),
        "policy_outcome": msgspec.to_builtins(reply.policy_outcome),
        "duration_ms": duration_ms,
    }
    return [NewEvent(type="model.completed", data=data), _closed(n, "completed")]


def model_failed(n: int, fault: Fault, duration_ms: int) -> list[NewEvent]:
    data = {"step": n, "error": msgspec.to_builtins(fault), "duration_ms": duration_ms}
    return [NewEvent(type="model.completed", data=data), _closed(n, "failed")]


def tool_completed(name: str, result: StepResult, duration_ms: int) -> list[NewEvent]:
    return call_completed("tool", name, result, duration_ms)


def call_completed(kind: StepKind, name: str, result: StepResult, duration_ms: int) -> list[NewEvent]:
    """A tool answered, or an agent's run has ended, or neither may be called."""
    data: dict[str, Json] = {
        "step": result.n,
        kind: name,
        "status": result.status,
        "duration_ms": duration_ms,
    }
    if result.error is not None:
        data["error"] = msgspec.to_builtins(result.error)
    else:
        data["output"] = result.output
    return [NewEvent(type=f"{kind}.completed", data=data), _closed(result.n, result.status)]


def waiting(children: Mapping[int, RunId]) -> NewEvent:
    """The run waits for the runs that it made, by step."""
    made = [{"step": n, "run_id": child} for n, child in sorted(children.items())]
    return NewEvent(type="run.waiting", data={"for": "child", "children": made})


def finished(status: RunStatus, *, output: Json = None, error: Fault | None = None, usage: Usage) -> NewEvent:
    """The terminal event."""
    data: dict[str, Json] = {"usage": _usage(usage)}
    if error is not None:
        data["error"] = msgspec.to_builtins(error)
    if status == "succeeded":
        data["output"] = output
    return NewEvent(type=TERMINAL_EVENT[status], data=data)


def _closed(n: int, status: str) -> NewEvent:
    return NewEvent(type="step.completed", data={"step": n, "status": status})


def _usage(usage: Usage) -> dict[str, Json]:
    counts: dict[str, Json] = msgspec.to_builtins(usage)
    return {**counts, "total_tokens": usage.total_tokens}
