"""Accept a run: validate it against its agent, make it durable, and hint the queue.

Two ports never share a transaction: a run whose hint was lost is found by the workers' sweep.
"""

import logging
from datetime import timedelta
from typing import Final

import msgspec
from msgspec import Struct

from observability.logs import who
from observability.metrics import Metrics
from ports.agent import AgentRegistry
from ports.context import AuthContext
from ports.errors import AgentOSError, InvalidArgument, ResourceExhausted, Unavailable
from ports.ids import AgentId, RunId
from ports.queue import QueuePort
from ports.run_intake import RunRequest
from ports.run_state import Created, NewRun, RunStatePort
from stack_a.runs.shed import Shedder
from stack_a.tools.policy import unknown

logger = logging.getLogger("agentos.runs")

MAX_ALLOWLIST: Final = 128


class Hint(Struct, frozen=True):
    """What the queue carries: which run to look at. The run itself is the truth."""

    run_id: RunId


class Intake:
    """`ports.run_intake.RunIntake` over the run store, the agent registry and the queue."""

    def __init__(
        self,
        *,
        run_state: RunStatePort,
        agent: AgentRegistry,
        queue: QueuePort,
        metrics: Metrics,
        shedder: Shedder | None = None,
    ) -> None:
        """Without a `shedder` only the tenants' own limits hold."""
        self._run_state = run_state
        self._agent = agent
        self._queue = queue
        self._metrics = metrics
        self._shedder = shedder

    async def accept(self, auth: AuthContext, request: RunRequest) -> Created:
        try:
            return await self._accepted(auth, request)
        except (ResourceExhausted, Unavailable) as refusal:
            self._metrics.run_refused(refusal.code)
            raise

    async def _accepted(self, auth: AuthContext, request: RunRequest) -> Created:
        if self._shedder is not None:
            await self._shedder.check_database()
        try:
            new = await self._validated(auth, request)
        except Unavailable:
            # Whoever asks a stalled store a second time waits twice as long to hear the same.
            raise
        except AgentOSError as refusal:
            return await self._earlier(auth, request, refusal)
        if self._shedder is not None:
            try:
                self._shedder.check_backlog()
            except Unavailable as refusal:
                # The database is well: it is work that there is too much of, and a repeat adds none.
                return await self._earlier(auth, request, refusal)
        created = await self._run_state.create(auth, new)
        if created.created:
            self._metrics.run_created(auth.tenant)
            logger.info("run.created", extra={**who(auth), "run_id": created.run.id, "agent_id": new.agent_id})
            await hint(self._queue, auth, created.run.id, created.run.priority)
        return created

    async def _earlier(self, auth: AuthContext, request: RunRequest, refusal: AgentOSError) -> Created:
        """A repeat is answered with what it made, even where it would not be accepted today. Else raises `refusal`."""
        earlier = await self._run_state.recall(auth, request.idempotency)
        if earlier is None:
            raise refusal
        return Created(run=earlier, created=False)

    async def _validated(self, auth: AuthContext, request: RunRequest) -> NewRun:
        agent = await self._agent.get(auth, AgentId(request.agent_id))
        limit = timedelta(seconds=agent.spec.limits.deadline_s)
        if request.tool_allowlist is not None and (names := unknown(agent.spec, request.tool_allowlist)):
            raise InvalidArgument(f"the agent has no tool {names[0]!r}", code="validation_failed")
        return NewRun(
            agent_id=agent.spec.id,
            agent_version=agent.version,
            agent_digest=agent.digest,
            input=request.input,
            idempotency=request.idempotency,
            context=request.context,
            tool_allowlist=request.tool_allowlist,
            session_id=request.session_id,
            deadline=limit if request.deadline is None else min(limit, request.deadline),
            priority=request.priority,
            parent=request.parent,
        )


async def hint(queue: QueuePort, auth: AuthContext, run_id: RunId, priority: int) -> None:
    """Tell the workers of a run that is queued."""
    try:
        await queue.enqueue(auth, msgspec.json.encode(Hint(run_id)), priority=priority)
    except AgentOSError as error:
        # The run is durable and the sweep will find it: what the caller was told stands.
        logger.warning("run.hint_lost", extra={"run_id": run_id, "code": error.code})
