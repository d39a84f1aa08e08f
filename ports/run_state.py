"""RunState port: the durable truth about runs and their step journals.

Clauses (each has a test in `conformance.run_state`):

* RUN-1   `create` returns a run that is `queued`, with an id of the store's making and `run.created` as event 1; once it
          returned, run, event and idempotency key survive a crash together. Input and context are as they were given,
          also where they are a megabyte each.
* RUN-2   `create` with a key already used by the same principal, in the same namespace and on the same route, and an
          equal fingerprint returns the first run and creates nothing, also when many callers race.
* RUN-3   The same key with another fingerprint raises `Conflict` (`idempotency_key_reused`) and changes nothing.
* RUN-4   `claim` of a queued run makes it `running` under the given worker, which the run names for as long as it is
          `running`, raises its epoch by one and, the first time, appends `run.started`.
* RUN-5   `claim` raises `Conflict` while a worker with a live lease holds the run, and when the run is terminal.
* RUN-6   A run whose worker's lease has lapsed can be claimed by another worker: its epoch rises, `recoveries` counts it,
          and its journal is as it was.
* RUN-7   `append` and `release` under an older epoch raise `Conflict` (`fenced`) and write nothing.
* RUN-8   `append` is all or nothing; events get the sequence numbers after the last one, without gaps, in commit order.
          What it writes is read as it was, also where it is a megabyte.
* RUN-9   A step has one intent and at most one result: a second intent or a second result for a step raises `Conflict`
          and the whole append writes nothing.
* RUN-10  An append that moves a run to a terminal status must end with exactly one terminal event; after it nothing can be
          appended, and `claim` raises `Conflict`.
* RUN-11  `cancel` ends a run that no worker holds at once, with `run.cancelled`. For a held run it sets
          `cancel_requested_at`, which `append`, `claim` and `renew` report. Cancelling again, or a terminal run, changes
          nothing and returns the run as it is. A key used before with another fingerprint raises `Conflict`
          (`idempotency_key_reused`), and nothing is asked.
* RUN-12  A caller reads, lists, claims, appends to and cancels runs of its own tenant and namespace only; another's raises
          the same `NotFound`, word for word, as an absent id.
* RUN-13  `list_runs` gives newest first; following `next_cursor` visits every run that existed at the first page exactly
          once. A cursor that can't be ours raises `InvalidArgument`.
* RUN-14  `orphans` needs the scope `runs:any-tenant` and names the runs that are queued for longer than the given time or
          whose worker's lease has lapsed, oldest first, across tenants; but see RUN-35.
* RUN-15  `release` hands a held run back: it is `queued` and claimable at once. `recoveries` counts it when `troubled`, and
          does not otherwise.
* RUN-16  `renew` extends the worker's lease by the store's clock, and tells that clock's time; a worker that never renewed
          holds no live lease beyond the duration it first asked for.
* RUN-17  `recall` gives the run that an idempotency key made, None for a key never used, and raises `Conflict`
          (`idempotency_key_reused`) for another fingerprint; it changes nothing.
* RUN-18  `fork` returns a new run that is `queued`, with the agent version, input, context, allow-list, session and length
          of deadline of the run it comes from, `forked_from` naming that run and the step, and `run.created`, whose data
          say the same, as event 1. The run it comes from stays as it is.
* RUN-19  A fork's journal begins with the steps 1 to `at` of the run it comes from, with their inputs and results; their
          usage counts for that run only, and is zero here. The next intent is `at` + 1.
* RUN-20  `fork` raises `Conflict` and creates nothing unless every step from 1 to `at` is there and is completed or failed;
          `InvalidArgument` when `at` is below 0. `at` 0 begins anew.
* RUN-21  Forking again with the same key and an equal fingerprint returns the first fork and creates nothing, also when
          many callers race; another fingerprint is RUN-3.
* RUN-22  `resolve` of a step whose outcome is `unknown`, in a run that `needs_operator`, records the decision and appends
          `step.resolved`: `done` completes the step with the given output, `fail` fails it with the given message, `retry`
          makes it `planned`. When no step is unknown any more the run is `queued`, claimable at once, and its deadline
          moves by the time it has waited for the decision.
* RUN-23  A `planned` step takes exactly one more intent, marked `again`, which leaves its name and input as they are, and
          then one result. Marked, an intent for any other step raises `Conflict`; unmarked, it is the second of RUN-9.
* RUN-24  `resolve` of anything else raises `Conflict` and changes nothing. Repeated with its key and an equal fingerprint
          it returns the run as it stands and changes nothing; with another fingerprint, RUN-3.
* RUN-25  `create` and `fork` raise `ResourceExhausted` with a `retry_after` where the tenant's entitlements leave no room,
          exactly, whoever races: `rate_limited` beyond `runs_per_minute`, `concurrency_limited` while `max_queued_runs`
          are queued. A refusal uses nothing up, neither key nor rate, and a repeat of what was accepted is never refused.
* RUN-26  `claim` of a queued run raises `ResourceExhausted` (`concurrency_limited`) and changes nothing while
          `max_active_runs` of the tenant are running; there are never more, whoever races. Taking a run over is not
          refused: it counts already.
* RUN-27  `orphans` leaves out the queued runs of a tenant that has as many running as it may: nobody could claim them.
* RUN-28  Where `transactional`, the `writes` of an append are true with it or not at all: then the Memory port has them,
          under the run's tenant and namespace, as if put one after the other. One that Memory would not take raises
          `InvalidArgument`. Where not `transactional`, an append with writes raises `Unsupported` and writes nothing.
* RUN-29  A run that `cancel` ends leaves no step begun: each becomes `unknown` with the fault `outcome_unknown`, and that
          is told, in the order of the steps, before `run.cancelled`. All other steps stay as they are.
* RUN-30  A run created with a `parent` has it, and `run.created` names it; whatever becomes of the run it names. A fork has
          none.
* RUN-31  `list_runs` of a parent gives the runs of the caller's that were created with it, and no others.
* RUN-32  A run that an append made `waiting` is held by nobody and counts as neither running nor queued: it leaves room for
          another, can't be claimed, and takes no write under its last epoch.
* RUN-33  `wake` makes a `waiting` run `queued`, claimable at once, where it waits for `child` and no run with it as parent
          is open, or its deadline has passed, or somebody asked it to end. It says whether it did, and else changes
          nothing: of many at the same moment one did. Whoever ends the last child, or made the run wait, and then calls it,
          leaves no run waiting.
* RUN-34  `adrift` needs the scope `runs:any-tenant` and names, across tenants, oldest first, the runs that `wake` would
          wake, and the open runs whose parent has ended and which nobody has asked to end yet.
* RUN-35  A run has the `priority` it was created with, for good; a fork has that of the run it comes from. In the places
          that a tenant's queued runs have among what `orphans` names, those of the highest priority are named, and of equal
          ones the oldest. One that is none (`ports.priority`) raises `InvalidArgument`, and nothing is created.
* RUN-36  A `waiting` run tells what it waits for, as the append said that made it wait; no other run waits for anything. An
          append that says so without making the run wait, or the reverse, raises `InvalidArgument`.

A tenant's entitlements are those its directory has (`ports.tenant`); a tenant unknown to it has the defaults.
"""

from datetime import datetime, timedelta
from typing import Final, Literal, Protocol, TypeAlias

from msgspec import Struct

from ports import priority as priorities
from ports.context import AuthContext
from ports.ids import AgentId, RunId, TenantId, WorkerId
from ports.memory import MemoryWrite
from ports.messages import Fault, Json, Page, Usage

RunStatus: TypeAlias = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled", "needs_operator"]
Awaited: TypeAlias = Literal["child", "approval", "timer", "peer"]
"""What a `waiting` run waits for: runs that it made, somebody's decision, a moment, or a run on another node."""
TERMINAL: Final[frozenset[RunStatus]] = frozenset({"succeeded", "failed", "cancelled"})

TERMINAL_EVENT: Final[dict[RunStatus, str]] = {
    "succeeded": "run.completed",
    "failed": "run.failed",
    "cancelled": "run.cancelled",
}

StepKind: TypeAlias = Literal["model", "tool", "agent"]
"""`agent`: a run of another agent, whose parent this run is."""

EffectClass: TypeAlias = Literal["pure", "idempotent", "transactional", "unsafe"]
StepStatus: TypeAlias = Literal["started", "completed", "failed", "unknown", "planned"]
"""`unknown`: interrupted, and nobody can say whether it took effect. `planned`: an operator asked for it once more."""

OPEN_STEP: Final[frozenset[StepStatus]] = frozenset({"started", "planned"})
"""Steps that have no result."""

SETTLED_STEP: Final[frozenset[StepStatus]] = frozenset({"completed", "failed"})
"""Steps whose result can be built upon."""

MAX_PAGE: Final = 200


class Idempotency(Struct, frozen=True, kw_only=True):
    """What makes a mutation repeatable. Scoped by the store to (tenant, namespace, principal, route)."""

    route: str
    key: str
    fingerprint: str
    """Digest of the canonical body: equal for bodies that mean the same."""


class Parent(Struct, frozen=True, kw_only=True):
    """The run that a run was made for, and works for. It may be gone by now."""

    run_id: RunId
    step: int
    """Which of its steps that is."""
    depth: int
    """How many runs are above the child: 1 where the parent has none itself."""


class NewRun(Struct, frozen=True, kw_only=True):
    agent_id: AgentId
    agent_version: int
    agent_digest: str
    input: Json
    idempotency: Idempotency
    context: dict[str, Json] = {}
    tool_allowlist: tuple[str, ...] | None = None
    session_id: str | None = None
    deadline: timedelta | None = None
    """From creation to the end, waiting included, except for an operator; None means the agent's own limit."""
    parent: Parent | None = None
    priority: int = priorities.DEFAULT


class Origin(Struct, frozen=True, kw_only=True):
    """Where a fork comes from. That run may be gone by now."""

    run_id: RunId
    step: int
    """The last step that was taken over; 0 for none."""


class Run(Struct, frozen=True, kw_only=True):
    """One run as it stands. `requester` is the identity it was created with, and acts as."""

    id: RunId
    requester: AuthContext
    agent_id: AgentId
    agent_version: int
    agent_digest: str
    status: RunStatus
    input: Json
    context: dict[str, Json]
    tool_allowlist: tuple[str, ...] | None
    session_id: str | None
    created_at: datetime
    deadline_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    worker: WorkerId | None = None
    """Who claimed it last, while it is `running`: how a worker learns what became of a claim that was not answered."""
    epoch: int = 0
    last_sequence: int = 0
    recoveries: int = 0
    output: Json = None
    error: Fault | None = None
    usage: Usage = Usage()
    forked_from: Origin | None = None
    parent: Parent | None = None
    priority: int = priorities.DEFAULT
    waits_for: Awaited | None = None
    """While it is `waiting`."""

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth

    @property
    def tenant(self) -> TenantId:
        return self.requester.tenant


class StepIntent(Struct, frozen=True, kw_only=True, tag="intent"):
    """Committed before the effect. The effect's key is `step_key(run, n)`, the same on every attempt."""

    n: int
    kind: StepKind
    name: str
    effect: EffectClass
    input: Json
    input_digest: str
    again: bool = False
    """Takes up a step that `resolve` made `planned`."""


class StepResult(Struct, frozen=True, kw_only=True, tag="result"):
    """Committed after the effect, once."""

    n: int
    status: Literal["completed", "failed", "unknown"]
    output: Json = None
    error: Fault | None = None
    usage: Usage = Usage()


class Step(Struct, frozen=True, kw_only=True):
    n: int
    kind: StepKind
    name: str
    effect: EffectClass
    status: StepStatus
    input: Json
    input_digest: str
    epoch: int
    """Of the attempt that wrote the last change; 0 for a step that a fork took over."""
    started_at: datetime
    finished_at: datetime | None = None
    output: Json = None
    error: Fault | None = None
    usage: Usage = Usage()


class Resolution(Struct, frozen=True, kw_only=True):
    """What an operator found out about a step of unknown outcome, or wants done about it."""

    decision: Literal["done", "fail", "retry"]
    output: Json = None
    """Of `done`: what the call would have answered."""
    message: str = ""
    """Of `fail`: what the model and the reader are told."""


class NewEvent(Struct, frozen=True, kw_only=True):
    type: str
    data: dict[str, Json] = {}


class Change(Struct, frozen=True, kw_only=True):
    """Facts that become true together, in one fenced write."""

    steps: tuple[StepIntent | StepResult, ...] = ()
    events: tuple[NewEvent, ...] = ()
    status: RunStatus | None = None
    """The status to move to; None leaves it. Usage of step results is added to the run's."""
    waits_for: Awaited | None = None
    """With the status `waiting`, and only then."""
    output: Json = None
    error: Fault | None = None
    writes: tuple[MemoryWrite, ...] = ()
    """Effects of the transactional steps whose results are among `steps`."""


class Appended(Struct, frozen=True, kw_only=True):
    last_sequence: int
    cancel_requested: bool


class Created(Struct, frozen=True, kw_only=True):
    run: Run
    created: bool
    """False when the idempotency key answered with an earlier run."""


class Resolved(Struct, frozen=True, kw_only=True):
    run: Run
    resolved: bool
    """False when the idempotency key answered for an earlier decision."""


class Orphan(Struct, frozen=True, kw_only=True):
    requester: AuthContext
    run_id: RunId


class Adrift(Struct, frozen=True, kw_only=True):
    """A run whose parent or children went on without it."""

    requester: AuthContext
    run_id: RunId
    due: Literal["wake", "cancel"]


class Renewal(Struct, frozen=True, kw_only=True):
    now: datetime
    """By the store's clock, which also dated the runs' deadlines. The worker's own may be wrong."""
    cancel_requested: frozenset[RunId]
    """Runs this worker holds that somebody asked to cancel."""


class RunFilter(Struct, frozen=True, kw_only=True):
    status: RunStatus | None = None
    agent_id: AgentId | None = None
    parent: RunId | None = None


class RunStateCapabilities(Struct, frozen=True, kw_only=True):
    durable: bool = False
    """Whether what was acknowledged survives the end of this process."""
    transactional: bool = False
    """Whether `append` takes `Change.writes`. They go to the Memory port of the same adapter and configuration."""


def step_key(run: RunId, n: int) -> str:
    """The idempotency key of a step's effect, the same on every attempt."""
    return f"{run}:{n}"


class RunStatePort(Protocol):
    """See the module docstring for the clauses. Safe to call concurrently from many tasks and processes."""

    @property
    def capabilities(self) -> RunStateCapabilities: ...

    async def create(self, auth: AuthContext, new: NewRun) -> Created:
        """Accept a run.

        Raises:
            Conflict: `idempotency_key_reused`.
            ResourceExhausted: `rate_limited`, `concurrency_limited`; `retry_after` says when there may be room.
            InvalidArgument: the priority is none.
            Unavailable: whether the run exists is unknown; repeating with the same key finds out.
        """
        ...

    async def recall(self, auth: AuthContext, idempotency: Idempotency) -> Run | None:
        """The run that an earlier call of this principal under this key made (`create`, `fork`) or changed (`resolve`),
        for repeats that would not validate today.

        Raises:
            Conflict: `idempotency_key_reused`.
        """
        ...

    async def renew(self, auth: AuthContext, worker: WorkerId, duration: timedelta) -> Renewal:
        """Register `worker`, or extend its lease, for `duration` of the store's clock. Needs `runs:any-tenant`.

        A node opens the store once more for this alone, in a thread with an event loop of its own.
        """
        ...

    async def retire(self, auth: AuthContext, worker: WorkerId) -> None:
        """End the worker's lease now, so that what it still holds is claimable. Needs `runs:any-tenant`."""
        ...

    async def claim(self, auth: AuthContext, run_id: RunId, worker: WorkerId) -> Run:
        """Take the run for `worker`, whose lease must be live.

        Raises:
            NotFound: absent or foreign.
            Conflict: terminal, held by a live worker, or `worker` has no live lease.
            ResourceExhausted: `concurrency_limited`: the tenant has as many runs running as it may. Try again later.
        """
        ...

    async def append(self, auth: AuthContext, run_id: RunId, epoch: int, change: Change) -> Appended:
        """Commit `change` under the epoch the run was claimed with. Never spans anything but the store.

        Raises:
            NotFound: absent or foreign.
            Conflict: `fenced`: the epoch is not the current one or the run is not running. `conflict`: a step twice.
            InvalidArgument: a terminal status without its terminal event last, or the reverse; `waiting` without what for,
                or the reverse; a write that Memory refuses.
            Unsupported: writes, where `capabilities.transactional` is false.
        """
        ...

    async def release(self, auth: AuthContext, run_id: RunId, epoch: int, *, troubled: bool = False) -> None:
        """Hand a held run back, to be claimed again at once. Raises like `append`.

        `troubled` says that the run could not go on here, and may be what is wrong: it counts like a lost worker.
        """
        ...

    async def load(self, auth: AuthContext, run_id: RunId) -> Run:
        """Raises `NotFound` when absent or foreign."""
        ...

    async def steps(
        self, auth: AuthContext, run_id: RunId, *, after: int = 0, limit: int = MAX_PAGE
    ) -> tuple[Step, ...]:
        """The journal in order of `n`, from the step after `after`. Raises `NotFound`."""
        ...

    async def list_runs(
        self, auth: AuthContext, where: RunFilter, *, limit: int, cursor: str | None = None
    ) -> Page[Run]: ...

    async def cancel(
        self, auth: AuthContext, run_id: RunId, *, reason: str, idempotency: Idempotency | None = None
    ) -> Run:
        """Ask the run to end. Returns it as it then stands.

        Raises:
            NotFound: absent or foreign.
            Conflict: `idempotency_key_reused`.
        """
        ...

    async def fork(self, auth: AuthContext, run_id: RunId, at: int, idempotency: Idempotency) -> Created:
        """A new run of the caller's that goes on after step `at` of this one.

        Raises:
            NotFound: absent or foreign.
            Conflict: a step from 1 to `at` has no result yet; `idempotency_key_reused`.
            Unavailable: whether the fork exists is unknown; repeating with the same key finds out.
        """
        ...

    async def resolve(
        self, auth: AuthContext, run_id: RunId, n: int, resolution: Resolution, idempotency: Idempotency
    ) -> Resolved:
        """Decide about step `n`, in the caller's name.

        Raises:
            NotFound: absent or foreign.
            Conflict: the run or the step waits for no decision; `idempotency_key_reused`.
            Unavailable: whether it was recorded is unknown; repeating with the same key finds out.
        """
        ...

    async def orphans(self, auth: AuthContext, *, queued_for: timedelta, limit: int) -> tuple[Orphan, ...]:
        """Runs that nobody works on but somebody should. Needs `runs:any-tenant`."""
        ...

    async def wake(self, auth: AuthContext, run_id: RunId) -> bool:
        """Let the run go on if what it waits for is over. Whether it was queued by this call. Raises `NotFound`."""
        ...

    async def adrift(self, auth: AuthContext, *, limit: int) -> tuple[Adrift, ...]:
        """What a crash between a run's end and its telling left behind. Needs `runs:any-tenant`."""
        ...
