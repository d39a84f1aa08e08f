"""RunIntake: accept a run from elsewhere. Stack A offers it; its HTTP edge and federation call it.

Clauses (tested with Stack A's implementation):

* INT-1  `accept` validates the request against the agent as it is now, pins the agent's version and digest, and returns a
         durable run; nothing exists after an error.
* INT-2  Repeating with the same idempotency key returns the same run, also after the agent changed.
* INT-3  A tool in the allow-list that the agent does not offer raises `InvalidArgument` (`validation_failed`), worded the
         same whether the tool exists elsewhere or not.
"""

from datetime import timedelta
from typing import Protocol

from msgspec import Struct

from ports import priority as priorities
from ports.context import AuthContext
from ports.ids import AgentId
from ports.messages import Json
from ports.run_state import Created, Idempotency, Parent


class RunRequest(Struct, frozen=True, kw_only=True):
    agent_id: AgentId
    input: Json
    idempotency: Idempotency
    context: dict[str, Json] = {}
    tool_allowlist: tuple[str, ...] | None = None
    session_id: str | None = None
    deadline: timedelta | None = None
    priority: int = priorities.DEFAULT
    parent: Parent | None = None
    """Set for a run that another one makes, by its worker. No request from outside names one."""


class RunIntake(Protocol):
    async def accept(self, auth: AuthContext, request: RunRequest) -> Created: ...
