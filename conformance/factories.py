"""Port messages with everything filled in but what a test is about."""

import uuid
from datetime import timedelta
from typing import Final

from ports.ids import AgentId
from ports.run_state import Change, Idempotency, NewEvent, NewRun, StepIntent, StepResult

AGENT_ID: Final = AgentId("agt_demo")
DIGEST: Final = "sha256:" + "0" * 64
ROUTE: Final = "POST /v1/agents/{agent_id}/runs"

MEGABYTE: Final = "é" * 512 * 1024
"""In UTF-8."""

STEP_STARTED: Final = NewEvent(type="step.started", data={"n": 1})
SUCCEEDED: Final = Change(status="succeeded", output="42", events=(NewEvent(type="run.completed"),))


def idempotency(key: str | None = None, *, fingerprint: str = "sha256:same", route: str = ROUTE) -> Idempotency:
    """With a key never used before, unless given."""
    return Idempotency(route=route, key=key or uuid.uuid4().hex, fingerprint=fingerprint)


def new_run(
    key: Idempotency | None = None, *, agent_id: AgentId = AGENT_ID, deadline: timedelta | None = None
) -> NewRun:
    return NewRun(
        agent_id=agent_id,
        agent_version=1,
        agent_digest=DIGEST,
        input={"question": "six times seven", "tags": ["a", "b"]},
        idempotency=key or idempotency(),
        context={"ticket": 7},
        deadline=deadline,
    )


def intent(n: int) -> StepIntent:
    return StepIntent(
        n=n, kind="tool", name="calculator", effect="pure", input={"expression": "6 * 7"}, input_digest=f"sha256:{n}"
    )


def result(n: int, output: object = 42) -> StepResult:
    return StepResult(n=n, status="completed", output=output)


def telling(*types: str) -> Change:
    """A change of nothing but these events."""
    return Change(events=tuple(NewEvent(type=one, data={"place": place}) for place, one in enumerate(types)))
