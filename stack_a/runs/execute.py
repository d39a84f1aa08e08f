"""Execute a claimed run: plan, commit the intent, act, commit the result, until it ends or is taken away.

Every way out is one of: a terminal status was committed; the run was parked for an operator, or waits for runs that it
made; another worker owns it now and nothing more is written; or this worker hands it back.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Literal, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
from msgspec import to_builtins
from msgspec.structs import replace

from observability.logs import who
from ports.agent import AgentSpec
from ports.errors import AgentOSError, Conflict, Internal, NotFound, Unavailable, Unsupported
from ports.ids import RunId
from ports.memory import MemoryWrite
from ports.messages import Fault, Json
from ports.model import ChatReply, ChatRequest
from ports.run_rules import INTERRUPTED, MAY_HAVE_ACTED, interrupted
from ports.run_state import Appended, EffectClass, Run, RunStatus, Step, StepIntent, StepResult, step_key
from ports.tool import ToolCall, ToolResult, ToolSpec, may_have_acted
from stack_a.cancellation import answered
from stack_a.deps import WorkerDeps
from stack_a.runs import tell
from stack_a.runs.children import result_of, start_child
from stack_a.runs.deltas import Deltas
from stack_a.runs.family import Family
from stack_a.runs.journal import Journal, fault_of, read_steps
from stack_a.runs.patience import Patience
from stack_a.runs.pinned import PinnedAgents
from stack_a.runs.plan import CallModel, CallTools, Finish, PlannedTool, Settle, next_action
from stack_a.tools.agents import with_agents

logger = logging.getLogger("agentos.runs")

MODEL_ATTEMPTS: Final = 6
"""About 10 s in all for a provider that fails, and for a refusal that may pass. A gateway that is away is waited for until
the run's deadline, as long as the run has one."""
ATTEMPTS_APART: Final = 100_000
"""Between the numbers of one worker's attempts and the next one's: more than fit into the longest deadline."""
TOOL_ATTEMPTS: Final = 2
"""Of a repeatable tool whose failure may pass. An unsafe one gets one."""
ABORT_S: Final = 5.0
"""How long a run that has ended holds its slot until the gateway has heard that its model call is not wanted any more."""

TELL_WITHIN: Final = timedelta(milliseconds=50)
"""How long the facts of repeatable steps may wait for others to share their commit. A crash within it costs a repetition
under the same keys, as a crash before a result's commit always does."""
TELL_TEXT_WITHIN: Final = timedelta(milliseconds=250)
"""How long the words of a model may wait for more to share their commit."""

REPEATABLE: Final[frozenset[EffectClass]] = frozenset({"pure", "idempotent", "transactional"})
"""A call without a recorded result may be made again: of a transactional one nothing has become true."""
CAN_WAIT: Final[frozenset[EffectClass]] = frozenset({"pure", "idempotent"})
"""A result may wait for others to share its commit. Not an unsafe tool's, which could not be told after a crash; nor a
transactional one's, whose effect is in that commit and may be what the next step looks for."""

Interruption: TypeAlias = Literal["abandon", "cancel", "deadline", "hand_back"]

T = TypeVar("T")


class Execution:
    """One claimed run in the hands of this worker. `interrupt` may be called from other tasks of the same loop."""

    def __init__(
        self,
        deps: WorkerDeps,
        agents: PinnedAgents,
        run: Run,
        *,
        now: Callable[[], datetime],
        held: Callable[[], bool],
    ) -> None:
        """`now` is the time of the clock that dated the run; `held` is false once this worker has given it up."""
        self.run = run
        self._now = now
        self._held = held
        self._deps = deps
        self._agents = agents
        self._auth = run.requester
        self._interruption: Interruption | None = "cancel" if run.cancel_requested_at else None
        self._acting: anyio.CancelScope | None = None
        self._deltas: Deltas | None = None
        """Of the model call under way."""
        self._began = anyio.Event()
        """Set while there is something under way that may take long."""
        self._usage = run.usage
        self._journal: Journal | None = None
        self._family = Family(run_state=deps.run_state, queue=deps.queue)
        self._failure: AgentOSError | None = None
        """Why the model call under way has not been answered yet."""
        self._doubts: dict[int, AgentOSError] = {}
        """By step: what an unsafe call met that may have taken effect all the same."""

    def interrupt(self, why: Interruption) -> None:
        """End what the run is doing now.

        `cancel` and `deadline` then end the run; `hand_back` releases it to another worker; `abandon` writes nothing
        more, because this worker's lease may have lapsed. The first reason stands, but nothing overrides `abandon`.
        """
        if self._interruption is None or why == "abandon":
            self._interruption = why
        if self._acting is not None:
            self._acting.cancel()

    def _interrupted(self) -> Interruption | None:
        """A loop that was busy may come here before anybody could `interrupt`: it looks for itself."""
        if not self._held():
            self._interruption = "abandon"
        return self._interruption

    async def _may_act(self) -> None:
        """Before each effect, with nothing in between: a process that was stopped comes here before anybody interrupts.

        Where the run is not held any more it does not return: what is under way is cancelled.
        """
        if self._interrupted() == "abandon":
            self.interrupt("abandon")
            await anyio.lowlevel.checkpoint()

    async def proceed(self) -> bool:
        """Whether the run is still this worker's, to be handed back. Raises the store's errors, except being fenced."""
        try:
            return await self._attended()
        except Conflict as error:
            if error.code != "fenced":
                raise
            logger.info("run.fenced", extra={"run_id": self.run.id, "epoch": self.run.epoch})
            return False

    async def fail(self, fault: Fault) -> None:
        """End the run as failed without going on; for a defect that going on would only repeat."""
        journal = self._journal
        if journal is None or not journal.sound:
            journal = self._journal_of(await self._written())
        await self._end(journal, "failed", error=fault)

    async def _attended(self) -> bool:
        """Go on until the run is left, while others keep its journal told and look at its deadline."""
        left: list[bool] = []
        trouble: list[AgentOSError] = []
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._keep_told)
                if self.run.deadline_at is not None:
                    group.start_soon(self._expire, self.run.deadline_at)
                left.append(await self._until_left())
                group.cancel_scope.cancel()
        except* AgentOSError as errors:
            # Several tasks may meet the same trouble: one of them tells enough. It is raised below, as Python before 3.11.4
            # makes a group of what is raised here.
            trouble.append(_first(errors))
        if trouble:
            raise trouble.pop()
        if not left:
            # Whoever else of the group is cancelled out of the blue takes the group along.
            raise Unavailable("the run's tasks were cancelled, and nobody had cancelled them")
        return left[0]

    async def _expire(self, deadline: datetime) -> None:
        await self._deps.clock.sleep(deadline - self._now())
        self.interrupt("deadline")

    async def _until_left(self) -> bool:
        # Under its first epoch nobody has written a step yet, unless it began with another run's.
        begun = self.run.epoch > 1 or self.run.forked_from is not None
        journal = self._journal = self._journal_of(await self._written() if begun else [])
        agent = await self._agents.of(self.run)
        served = {spec.name: spec for spec in await self._deps.tool.list_tools(self._auth)}
        tools = await with_agents(self._deps.agent, self._auth, agent, served)
        while True:
            if (why := self._interrupted()) is not None:
                return await self._leave(journal, why)
            match next_action(self.run, agent, tools, journal.steps):
                case CallModel() as call:
                    await self._call_model(journal, call)
                case CallTools(calls=calls):
                    children = await self._make_calls(journal, agent, tools, calls)
                    if children and not _in_doubt(journal) and self._interrupted() is None:
                        await journal.commit(status="waiting", waits_for="child", events=[tell.waiting(children)])
                        await self._family.waits(self.run)
                        return False
                case Settle(steps=steps):
                    if not await self._settle(journal, steps):
                        return False
                case Finish(status=status, output=output, error=error):
                    await self._end(journal, status, output=output, error=error)
                    return False

    async def _leave(self, journal: Journal, why: Interruption) -> bool:
        match why:
            case "hand_back":
                await journal.commit()
            case "cancel":
                asked = _asked(journal)
                await self._end(journal, "cancelled")
                await self._abort(asked)
            case "deadline":
                asked = _asked(journal)
                message = "the run reached its deadline"
                if self._failure is not None:
                    message += f"; its model call had failed before: {self._failure.message}"
                fault = Fault(code="run_timeout", message=message)
                await self._end(journal, "failed", error=fault)
                await self._abort(asked)
            case "abandon":
                pass
        return why == "hand_back"

    async def _abort(self, asked: list[int]) -> None:
        """Tell the gateway that nobody wants these model calls any more: it would finish them, and we would pay.

        After the run's end was committed: a worker that was overtaken doesn't get here. What can't be told costs money,
        and does no harm.
        """
        for n in asked:
            with anyio.move_on_after(ABORT_S):
                try:
                    await self._deps.model.abort(self._auth, step_key(self.run.id, n))
                except AgentOSError as error:
                    logger.warning("step.abort_failed", extra={"run_id": self.run.id, "step": n, "code": error.code})

    async def _written(self) -> list[Step]:
        """The journal as the store has it."""
        return await read_steps(self._deps.run_state, self._auth, self.run.id)

    def _journal_of(self, steps: list[Step]) -> Journal:
        return Journal(
            run_state=self._deps.run_state,
            clock=self._deps.clock,
            auth=self._auth,
            run=self.run,
            steps=steps,
            held=self._held,
        )

    async def _call_model(self, journal: Journal, call: CallModel) -> None:
        n = call.intent.n
        journal.intend(call.intent, tell.started(call.intent))
        began = self._deps.clock.monotonic()
        # Above every number an earlier worker may have told deltas under.
        deltas = Deltas(n, attempts_before=(self.run.epoch - 1) * ATTEMPTS_APART)
        patience = Patience(MODEL_ATTEMPTS, outlasts=self.run.deadline_at is not None)

        async def ask() -> ChatReply | AgentOSError:
            try:
                return await self._retrying(patience, lambda: self._stream(call.request, deltas), self._note_failure)
            except AgentOSError as error:
                return error

        reply = await self._act(ask, deltas)
        if isinstance(reply, AgentOSError):
            fault = fault_of(reply)
            result = StepResult(n=n, status="failed", error=fault)
            journal.complete(result, [*deltas.take(), *tell.model_failed(n, fault, self._ms_since(began))])
            self._deps.metrics.step(kind="model", status="failed", seconds=self._seconds_since(began))
            return
        if reply is None:
            return
        self._failure = None
        self._usage = self._usage.plus(reply.usage)
        output: dict[str, Json] = {
            "text": reply.message.content,
            "tool_calls": to_builtins(reply.message.tool_calls),
            "finish_reason": reply.finish_reason,
            "route": to_builtins(reply.route),
            "policy_outcome": to_builtins(reply.policy_outcome),
        }
        result = StepResult(n=n, status="completed", output=output, usage=reply.usage)
        journal.complete(result, [*deltas.take(), *tell.model_completed(n, reply, self._ms_since(began))])
        self._deps.metrics.step(kind="model", status="completed", seconds=self._seconds_since(began))

    async def _stream(self, request: ChatRequest, deltas: Deltas) -> ChatReply:
        """One attempt, its text put where the journal is told from."""
        await self._may_act()
        deltas.begin()
        reply: ChatReply | None = None
        async for delta in self._deps.model.stream(self._auth, request):
            deltas.add(delta.text)
            reply = delta.reply or reply
        if reply is None:
            raise Unavailable("the model's answer ended before it was whole", code="upstream_error")
        return reply

    async def _make_calls(
        self, journal: Journal, agent: AgentSpec, tools: Mapping[str, ToolSpec], calls: tuple[PlannedTool, ...]
    ) -> dict[int, RunId]:
        """Make the calls of a turn. Of those of agents, the runs that they made and that are open still, by step."""
        todo = await self._begin(journal, calls)
        handed = [call for call in todo if call.intent.kind == "agent"]
        limiter = anyio.CapacityLimiter(agent.limits.max_parallel_tools)
        children: dict[int, RunId] = {}

        async def every() -> None:
            if len(todo) == 1 and not handed:
                await self._call_tool(journal, limiter, tools[todo[0].intent.name], todo[0])
                return
            async with anyio.create_task_group() as group:
                for call in todo:
                    if call.intent.kind == "tool":
                        group.start_soon(self._call_tool, journal, limiter, tools[call.intent.name], call)
                # As many at a time as tools; the others when these have ended.
                for call in handed[: agent.limits.max_parallel_tools]:
                    group.start_soon(self._hand_on, journal, limiter, call, children)

        await self._act(every)
        return children

    async def _begin(self, journal: Journal, calls: tuple[PlannedTool, ...]) -> list[PlannedTool]:
        """Note the calls' intents. Those that are to be made."""
        for call in calls:
            journal.intend(call.intent, tell.started(call.intent))
        for call in calls:
            if call.refusal is not None:
                result = StepResult(n=call.intent.n, status="failed", error=call.refusal)
                journal.complete(result, tell.call_completed(call.intent.kind, call.intent.name, result, 0))
        todo = [call for call in calls if call.refusal is None]
        first = any(call.intent.kind == "agent" or call.intent.effect not in REPEATABLE for call in todo)
        if first or self.run.recoveries:
            # What may not be done twice, or goes on without us, is not begun before the store knows of it. Nor is what may
            # have taken the last worker along: if it takes this one as well, the journal says which call it was.
            self._note(await journal.commit())
        return todo

    async def _call_tool(
        self, journal: Journal, limiter: anyio.CapacityLimiter, spec: ToolSpec, call: PlannedTool
    ) -> None:
        async with limiter:
            began = self._deps.clock.monotonic()
            answer = await self._invoke(call, spec)
        self._conclude(journal, call.intent, answer, began)
        if call.intent.effect not in CAN_WAIT:
            with anyio.CancelScope(shield=True):
                self._note(await journal.commit())

    async def _hand_on(
        self, journal: Journal, limiter: anyio.CapacityLimiter, call: PlannedTool, children: dict[int, RunId]
    ) -> None:
        """Make the run that the call is for, or find it. Where it has ended, or can't be made, the step is settled."""
        n, took = call.intent.n, timedelta(0)

        async def made() -> Run:
            await self._may_act()
            return await start_child(self._deps, self.run, call, now=self._now())

        # Whether there is a child is unknown as long as the store is away: that is no answer to build upon.
        patience = Patience(MODEL_ATTEMPTS, outlasts=True)
        try:
            async with limiter:
                child = await self._retrying(patience, made)
        except AgentOSError as error:
            result = StepResult(n=n, status="failed", error=fault_of(error))
        else:
            if (found := result_of(n, child)) is None:
                children[n] = child.id
                return
            result, took = found, (child.finished_at or child.created_at) - child.created_at
        took_ms = round(took.total_seconds() * 1_000)
        journal.complete(result, tell.call_completed("agent", call.intent.name, result, took_ms))
        self._usage = self._usage.plus(result.usage)
        self._deps.metrics.step(kind="agent", status=result.status, seconds=took.total_seconds())

    async def _invoke(self, call: PlannedTool, spec: ToolSpec) -> ToolResult | AgentOSError:
        """What came of the call."""
        wanted = ToolCall(name=spec.name, arguments=call.arguments, key=step_key(self.run.id, call.intent.n))
        patience = Patience(TOOL_ATTEMPTS if spec.effect in REPEATABLE else 1)

        async def attempt() -> ToolResult:
            await self._may_act()
            return await self._deps.tool.invoke(self._auth, wanted, timeout=spec.timeout)

        try:
            result = await self._retrying(patience, attempt)
            if result.writes and spec.effect != "transactional":
                raise Internal(f"{spec.name} has writes, and is not transactional", code="tool_bad_output")
        except AgentOSError as error:
            return error
        return result

    def _conclude(self, journal: Journal, intent: StepIntent, answer: ToolResult | AgentOSError, began: float) -> None:
        """Note what came of a call, and what becomes true with that."""
        seconds = self._seconds_since(began)
        writes: tuple[MemoryWrite, ...] = ()
        if isinstance(answer, AgentOSError):
            self._deps.metrics.tool_call(tool=intent.name, seconds=seconds, error_code=answer.code)
            if journal.step(intent.n).effect == "unsafe" and may_have_acted(answer):
                # As if it had been interrupted: it stays begun, and is settled next.
                self._doubts[intent.n] = answer
                return
            result = StepResult(n=intent.n, status="failed", error=fault_of(answer))
        else:
            self._deps.metrics.tool_call(tool=intent.name, seconds=seconds, error_code=None)
            result, writes = StepResult(n=intent.n, status="completed", output=answer.output), answer.writes
        journal.complete(result, tell.tool_completed(intent.name, result, self._ms_since(began)), writes)
        self._deps.metrics.step(kind="tool", status=result.status, seconds=seconds)

    async def _settle(self, journal: Journal, steps: tuple[Step, ...]) -> bool:
        """Find out what became of unsafe calls that nobody heard the end of. False when only an operator can say; the run
        is parked."""
        results: list[tuple[Step, StepResult]] = []
        for step in steps:
            result = await self._act(partial(self._reconciled, step))
            if result is None:
                # Interrupted. Nothing of this is written: who interrupts says what becomes of the run.
                return True
            results.append((step, result))
        for step, result in results:
            journal.complete(result, tell.tool_completed(step.name, result, 0))
        unknown = any(result.status == "unknown" for _, result in results)
        await journal.commit(status="needs_operator" if unknown else None)
        return not unknown

    async def _reconciled(self, step: Step) -> StepResult:
        """What the tool says it did. Where it has no record, or can't be asked, a person has to look."""
        key = step_key(self.run.id, step.n)
        if self._deps.tool.capabilities.reconcile:
            try:
                told = await self._retrying(
                    Patience(TOOL_ATTEMPTS), lambda: self._deps.tool.reconcile(self._auth, step.name, key)
                )
            except (NotFound, Unsupported):
                told = None
            except AgentOSError as error:
                logger.warning(
                    "step.reconcile_failed", extra={"run_id": self.run.id, "step": step.n, "code": error.code}
                )
                told = None
            if told is not None:
                return StepResult(n=step.n, status="completed", output=told.output)
        doubt = self._doubts.get(step.n)
        fault = INTERRUPTED if doubt is None else replace(INTERRUPTED, message=f"{doubt.message}; {MAY_HAVE_ACTED}")
        return StepResult(n=step.n, status="unknown", error=fault)

    async def _end(
        self, journal: Journal, status: RunStatus, *, output: Json = None, error: Fault | None = None
    ) -> None:
        begun = [step for step in journal.steps if step.status == "started"]
        for step in begun:
            journal.complete(*interrupted(step.n, step.kind, step.name))
        last = tell.finished(status, output=output, error=error, usage=self._usage)
        await journal.commit(status=status, output=output, error=error, events=[last])
        took = self._now() - self.run.created_at
        self._deps.metrics.run_finished(status=status, took=took)
        fields = {"run_id": self.run.id, "status": status, "steps": len(journal.steps), "seconds": took.total_seconds()}
        logger.info("run.finished", extra={**who(self._auth), **fields})
        childless = not any(step.kind == "agent" for step in begun)
        await self._family.ended(self._auth, self.run, childless=childless)

    def _note(self, appended: Appended | None) -> None:
        if appended is not None and appended.cancel_requested:
            self.interrupt("cancel")

    async def _act(self, work: Callable[[], Awaitable[T]], deltas: Deltas | None = None) -> T | None:
        """Do `work` where `interrupt` can reach it; None when it did. Meanwhile the journal is kept told.

        What it raises is the store's: `work` keeps the errors of its calls to itself.
        """
        if self._interrupted() is not None:
            return None
        with anyio.CancelScope() as scope:
            self._acting, self._deltas = scope, deltas
            self._began.set()
            try:
                return await work()
            finally:
                self._acting, self._deltas, self._began = None, None, anyio.Event()
        return None

    async def _keep_told(self) -> None:
        """Commit what waits, `TELL_WITHIN` after it began to wait: a call that takes longer is seen while it runs."""
        while True:
            await self._began.wait()
            assert self._journal is not None, "what begins is in it"
            if self._deltas is None:
                await self._journal.news.wait()
            await self._deps.clock.sleep(TELL_WITHIN)
            while self._acting is not None:
                deltas = self._deltas
                with anyio.CancelScope(shield=True):
                    self._note(await self._journal.commit(events=deltas.take() if deltas is not None else ()))
                if deltas is None:
                    break
                await self._text_to_tell(deltas)

    async def _text_to_tell(self, deltas: Deltas) -> None:
        async with anyio.create_task_group() as group:

            async def until_due() -> None:
                await deltas.due.wait()
                group.cancel_scope.cancel()

            group.start_soon(until_due)
            await self._deps.clock.sleep(TELL_TEXT_WITHIN)
            group.cancel_scope.cancel()

    async def _retrying(
        self,
        patience: Patience,
        call: Callable[[], Awaitable[T]],
        on_wait: Callable[[AgentOSError], None] | None = None,
    ) -> T:
        while True:
            try:
                return await answered(call())
            except AgentOSError as error:
                wait = patience.wait_after(error)
                if wait is None:
                    raise
                if on_wait is not None:
                    on_wait(error)
            await self._deps.clock.sleep(wait)

    def _note_failure(self, error: AgentOSError) -> None:
        """For whoever looks why this run stands still, or why it met its deadline."""
        if self._failure is None:
            logger.warning("step.model_retried", extra={"run_id": self.run.id, "code": error.code})
        self._failure = error

    def _seconds_since(self, began: float) -> float:
        return self._deps.clock.monotonic() - began

    def _ms_since(self, began: float) -> int:
        return round(self._seconds_since(began) * 1_000)


def _first(errors: BaseExceptionGroup[AgentOSError]) -> AgentOSError:
    inner = errors.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _in_doubt(journal: Journal) -> bool:
    """Whether an unsafe call is to be settled before anything else."""
    return any(step.status == "started" and step.effect == "unsafe" for step in journal.steps)


def _asked(journal: Journal) -> list[int]:
    """The model steps under way: this worker's, or those of one that was lost."""
    return [step.n for step in journal.steps if step.kind == "model" and step.status == "started"]
