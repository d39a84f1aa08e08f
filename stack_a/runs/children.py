"""Runs that a run makes for the agents it hands work to: how they are made, and what came of them."""

from datetime import datetime, timedelta
from typing import Final

from ports.ids import AgentId
from ports.messages import Fault, Json
from ports.run_intake import RunRequest
from ports.run_state import TERMINAL, Idempotency, Parent, Run, StepResult, step_key
from stack_a.deps import WorkerDeps
from stack_a.runs.plan import PlannedTool, digest
from stack_a.runs.start import Intake
from stack_a.tools.agents import input_of

ROUTE: Final = "child"
"""Of the idempotency keys of children: no route of a surface is called that."""


async def start_child(deps: WorkerDeps, run: Run, call: PlannedTool, *, now: datetime) -> Run:
    """The run that `call` makes, or has made: every attempt finds the same. It ends with its parent at the latest.

    Raises:
        Unavailable: whether it exists is unknown.
        NotFound, ResourceExhausted: it does not.
    """
    agent_id, wanted = AgentId(call.intent.name), input_of(call.arguments)
    key = step_key(run.id, call.intent.n)
    request = RunRequest(
        agent_id=agent_id,
        input=wanted,
        idempotency=Idempotency(route=ROUTE, key=key, fingerprint=digest([agent_id, wanted])),
        context=run.context,
        session_id=run.session_id,
        deadline=None if run.deadline_at is None else max(run.deadline_at - now, timedelta(0)),
        priority=run.priority,
        parent=Parent(run_id=run.id, step=call.intent.n, depth=run.depth + 1),
    )
    intake = Intake(run_state=deps.run_state, agent=deps.agent, queue=deps.queue, metrics=deps.metrics)
    return (await intake.accept(run.requester, request)).run


def result_of(n: int, child: Run) -> StepResult | None:
    """What came of step `n`, for which `child` was made; None while it is open. What it consumed is the step's."""
    if child.status not in TERMINAL:
        return None
    known: dict[str, Json] = {"run_id": child.id}
    if child.status == "succeeded":
        return StepResult(n=n, status="completed", output={**known, "output": child.output}, usage=child.usage)
    why = "" if child.error is None else f": {child.error.code}: {child.error.message}"
    fault = Fault(code="child_failed", message=f"run {child.id} of {child.agent_id} {child.status}{why}")
    return StepResult(n=n, status="failed", output=known, error=fault, usage=child.usage)
