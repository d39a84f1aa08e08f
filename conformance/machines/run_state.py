"""Any sequence of RunState calls against a plain model of runs: statuses, epochs, journals and logs.

The model is written from the clauses and shares no code with any adapter. Where the clauses leave something open, the
rule does not try it and says so.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, multiple, precondition, rule
from msgspec.structs import replace

from conformance.factories import idempotency, intent, new_run, result, telling
from conformance.harness import RunStateHarness
from conformance.machines.driving import SETTINGS, Driven
from conformance.people import ACME, GLOBEX, NODE
from conformance.strategies import changes
from ports.context import AuthContext
from ports.ids import RunId, WorkerId
from ports.run_state import Change, NewEvent, Origin, Resolution, RunFilter, RunStatePort, StepIntent, StepResult

TICK: Final = timedelta(minutes=10)
TENANTS: Final = st.sampled_from([ACME, GLOBEX])
WORKERS: Final = st.sampled_from([WorkerId("wrk_one"), WorkerId("wrk_two"), WorkerId("wrk_three")])
KEYS: Final = st.sampled_from(["key-1", "key-2"])
FEW: Final = 3
"""How many runs there are at most, so that what happens happens to the same ones."""
DECIDED: Final = {"done": "completed", "fail": "failed", "retry": "planned"}
ENDS: Final = {"succeeded": "run.completed", "failed": "run.failed", "cancelled": "run.cancelled"}


@dataclass
class Expected:
    """A run as it should be."""

    id: RunId
    requester: AuthContext
    status: str = "queued"
    epoch: int = 0
    worker: WorkerId | None = None
    recoveries: int = 0
    cancelling: bool = False
    log: list[str] = field(default_factory=lambda: ["run.created"])
    journal: dict[int, str] = field(default_factory=dict)
    """Each step's status."""

    def after(self, change: Change) -> dict[int, str] | None:
        """The journal after the steps of `change`; None where they conflict with it."""
        journal = dict(self.journal)
        for step in change.steps:
            if isinstance(step, StepIntent):
                if journal.get(step.n) != ("planned" if step.again else None):
                    return None
                journal[step.n] = "started"
            else:
                if journal.get(step.n) != "started":
                    return None
                journal[step.n] = step.status
        return journal


class RunStateMachine(Driven[RunStateHarness]):
    runs: Bundle[Expected] = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.tick = 0
        self.created: list[Expected] = []
        self.keys: dict[tuple[str, str], tuple[str, RunId]] = {}
        self.leases: dict[WorkerId, int] = {}
        self.port: RunStatePort = self.run(self.harness.open())

    def live(self, worker: WorkerId | None) -> bool:
        return worker is not None and self.tick < self.leases.get(worker, 0)

    @precondition(lambda self: len(self.created) < FEW)
    @rule(target=runs, auth=TENANTS)
    def create(self, auth: AuthContext) -> Expected:
        created = self.run(self.port.create(auth, new_run()))
        assert created.created
        expected = Expected(id=created.run.id, requester=auth)
        self.created.append(expected)
        return expected

    @rule(target=runs, auth=TENANTS, key=KEYS, fingerprint=st.sampled_from(["sha256:a", "sha256:b"]))
    def create_by_key(self, auth: AuthContext, key: str, fingerprint: str) -> MultipleResults[Expected] | Expected:
        known = self.keys.get((auth.tenant, key))
        new = new_run(idempotency(key, fingerprint=fingerprint))
        if known is None and len(self.created) >= FEW:
            return multiple()
        if known is not None and known[0] != fingerprint:
            assert self.outcome(self.port.create(auth, new)) == "idempotency_key_reused"
            return multiple()

        created = self.run(self.port.create(auth, new))

        assert created.created is (known is None)
        if known is not None:
            assert created.run.id == known[1]
            return multiple()
        self.keys[auth.tenant, key] = (fingerprint, created.run.id)
        expected = Expected(id=created.run.id, requester=auth)
        self.created.append(expected)
        return expected

    @rule(worker=WORKERS, ticks=st.integers(1, 3))
    def renew(self, worker: WorkerId, ticks: int) -> None:
        # Half a tick early: over before the tick, by any clock.
        renewal = self.run(self.port.renew(NODE, worker, ticks * TICK - TICK / 2))

        self.leases[worker] = self.tick + ticks
        held = {one.id for one in self.created if one.worker == worker and one.status == "running" and one.cancelling}
        assert renewal.cancel_requested == held

    @rule(worker=WORKERS)
    def retire(self, worker: WorkerId) -> None:
        self.run(self.port.retire(NODE, worker))
        self.leases.pop(worker, None)

    @rule(one=runs, worker=WORKERS, then=st.sampled_from(["hold", "release", "retire"]))
    def serve(self, one: Expected, worker: WorkerId, then: str) -> None:
        """What a worker does from claim to crash, so that most sequences get beyond a refused claim."""
        self.renew(worker=worker, ticks=2)
        self.claim(one=one, worker=worker)
        self.work(one=one, both=True)
        if then == "release":
            self.release(one=one, behind=0)
        elif then == "retire":
            self.retire(worker=worker)

    @rule(one=runs, worker=WORKERS)
    def claim(self, one: Expected, worker: WorkerId) -> None:
        free = one.status == "queued" or (one.status == "running" and not self.live(one.worker))

        outcome = self.outcome(self.port.claim(one.requester, one.id, worker))

        if not (free and self.live(worker)):
            assert outcome == "conflict"
            return
        assert outcome == "ok"
        one.recoveries += one.status == "running"
        one.status, one.worker = "running", worker
        one.epoch += 1
        if one.epoch == 1:
            one.log.append("run.started")
        self.compare(one=one)

    @rule(one=runs, both=st.booleans())
    def work(self, one: Expected, both: bool) -> None:
        """The next thing a worker would write: the result of what is begun, the intent of what is next."""
        begun = [n for n, status in one.journal.items() if status == "started"]
        following = len(one.journal) + 1
        steps = (*(result(n) for n in begun[:1]), *((intent(following),) if both or not begun else ()))
        self.append(one=one, behind=0, change=Change(steps=steps, events=telling("step.started").events))

    @rule(one=runs, behind=st.integers(0, 1), change=changes(st.integers(1, 4)))
    def append(self, one: Expected, behind: int, change: Change) -> None:
        journal = one.after(change)

        outcome = self.outcome(self.port.append(one.requester, one.id, one.epoch - behind, change))

        if one.status != "running" or behind:
            # Of two reasons, which one a store names first is open.
            assert outcome == "fenced" or (journal is None and outcome == "conflict")
        elif journal is None:
            assert outcome == "conflict"
        else:
            assert outcome == "ok"
            one.journal = journal
            one.log += [event.type for event in change.events]
        self.compare(one=one)

    @rule(one=runs, behind=st.integers(0, 1), status=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def end(self, one: Expected, behind: int, status: str) -> None:
        events = (NewEvent(type="model.delta"), NewEvent(type=ENDS[status]))
        change = Change(status=status, events=events)  # type: ignore[arg-type]  # Hypothesis draws plain str

        outcome = self.outcome(self.port.append(one.requester, one.id, one.epoch - behind, change))

        if one.status != "running" or behind:
            assert outcome == "fenced"
            return
        assert outcome == "ok"
        one.status, one.worker = status, None
        one.log += [event.type for event in events]
        self.compare(one=one)

    @rule(one=runs, status=st.sampled_from(["succeeded", None]))
    def end_wrongly(self, one: Expected, status: str | None) -> None:
        events = (NewEvent(type="run.failed"),)
        change = Change(status=status, events=events)  # type: ignore[arg-type]  # Hypothesis draws plain str

        outcome = self.outcome(self.port.append(one.requester, one.id, one.epoch, change))

        # As for `append`.
        assert outcome == "invalid_request" or (one.status != "running" and outcome == "fenced")

    @rule(one=runs, behind=st.integers(0, 1))
    def release(self, one: Expected, behind: int) -> None:
        outcome = self.outcome(self.port.release(one.requester, one.id, one.epoch - behind))

        if one.status != "running" or behind:
            assert outcome == "fenced"
            return
        assert outcome == "ok"
        one.status, one.worker = "queued", None
        self.compare(one=one)

    @rule(one=runs)
    def park(self, one: Expected) -> None:
        """What a worker writes that finds calls begun and can't say what became of them."""
        begun = [n for n, status in one.journal.items() if status == "started"]
        change = Change(
            steps=tuple(StepResult(n=n, status="unknown") for n in begun),
            status="needs_operator",
            events=telling("step.completed").events,
        )

        outcome = self.outcome(self.port.append(one.requester, one.id, one.epoch, change))

        if one.status != "running":
            assert outcome == "fenced"
            return
        assert outcome == "ok"
        one.journal.update(dict.fromkeys(begun, "unknown"))
        one.status, one.worker = "needs_operator", None
        one.log.append("step.completed")
        self.compare(one=one)

    @rule(one=runs, n=st.integers(1, 4), decision=st.sampled_from(sorted(DECIDED)))
    def resolve(self, one: Expected, n: int, decision: str) -> None:
        waits = one.status == "needs_operator" and one.journal.get(n) == "unknown"
        what = Resolution(decision=decision)  # type: ignore[arg-type]  # Hypothesis draws plain str

        outcome = self.outcome(self.port.resolve(one.requester, one.id, n, what, idempotency()))

        assert outcome == ("ok" if waits else "conflict")
        if waits:
            one.journal[n] = DECIDED[decision]
            one.log.append("step.resolved")
            if "unknown" not in one.journal.values():
                one.status = "queued"
        self.compare(one=one)

    @rule(one=runs, worker=WORKERS)
    def operate(self, one: Expected, worker: WorkerId) -> None:
        """From a call that was interrupted to its repetition, so that sequences get there."""
        self.serve(one=one, worker=worker, then="hold")
        self.park(one=one)
        for n in [n for n, status in one.journal.items() if status == "unknown"]:
            self.resolve(one=one, n=n, decision="retry")
        self.claim(one=one, worker=worker)
        self.begin_again(one=one)

    @rule(one=runs)
    def begin_again(self, one: Expected) -> None:
        planned = [n for n, status in one.journal.items() if status == "planned"]
        self.append(one=one, behind=0, change=Change(steps=tuple(replace(intent(n), again=True) for n in planned)))

    @precondition(lambda self: len(self.created) < FEW)
    @rule(target=runs, one=runs, at=st.integers(-1, 3))
    def fork(self, one: Expected, at: int) -> MultipleResults[Expected] | Expected:
        taken = {n: one.journal.get(n) for n in range(1, at + 1)}
        if at < 0 or not set(taken.values()) <= {"completed", "failed"}:
            refusal = self.outcome(self.port.fork(one.requester, one.id, at, idempotency()))
            assert refusal == ("invalid_request" if at < 0 else "conflict")
            return multiple()

        created = self.run(self.port.fork(one.requester, one.id, at, idempotency()))

        assert created.run.forked_from == Origin(run_id=one.id, step=at)
        journal = {n: status for n, status in taken.items() if status is not None}
        expected = Expected(id=created.run.id, requester=one.requester, journal=journal)
        self.created.append(expected)
        self.compare(one=expected)
        return expected

    @rule(one=runs)
    def cancel(self, one: Expected) -> None:
        lapsed = one.status == "running" and not self.live(one.worker)
        handed_back = one.status in {"queued", "needs_operator"} and one.cancelling
        if lapsed or handed_back:
            return  # whether such a run ends at once or at its next claim: the clauses leave it open

        run = self.run(self.port.cancel(one.requester, one.id, reason="any"))

        if one.status in {"queued", "needs_operator"}:
            begun = [n for n, status in one.journal.items() if status == "started"]
            one.status = "cancelled"
            one.journal.update(dict.fromkeys(begun, "unknown"))
            one.log += [*["tool.completed", "step.completed"] * len(begun), "run.cancelled"]
        elif one.status == "running":
            one.cancelling = True
        assert run.status == one.status
        self.compare(one=one)

    @rule(one=runs)
    def ask_as_another_tenant(self, one: Expected) -> None:
        other = GLOBEX if one.requester == ACME else ACME

        assert self.outcome(self.port.load(other, one.id)) == "not_found"
        assert self.outcome(self.port.append(other, one.id, one.epoch, Change())) == "not_found"
        assert self.outcome(self.port.cancel(other, one.id, reason="not mine")) == "not_found"

    @rule(ticks=st.integers(1, 3))
    def wait(self, ticks: int) -> None:
        self.run(self.harness.advance(ticks * TICK))
        self.tick += ticks

    @rule()
    def reopen(self) -> None:
        self.port = self.run(self.harness.reopen())

    @rule(one=runs)
    def compare(self, one: Expected) -> None:
        run = self.run(self.port.load(one.requester, one.id))
        steps = self.run(self.port.steps(one.requester, one.id))

        assert (run.status, run.epoch, run.recoveries) == (one.status, one.epoch, one.recoveries)
        assert run.last_sequence == len(one.log)
        assert (run.finished_at is not None) == (one.status in ENDS)
        assert not one.cancelling or run.cancel_requested_at is not None
        assert [(step.n, step.status) for step in steps] == sorted(one.journal.items())

    def finish(self) -> None:
        """Every run is as the model says, its log gapless, and listed once, newest first."""
        for one in self.created:
            log = self.run(self.harness.event_types(one.requester, one.id))
            assert list(log) == list(enumerate(one.log, start=1))
        for auth in (ACME, GLOBEX):
            listed = self.run(self.port.list_runs(auth, RunFilter(), limit=200)).items
            assert [run.id for run in listed] == [one.id for one in self.created if one.requester == auth][::-1]


def run_state_machine(
    open_harness: Callable[[], AbstractAsyncContextManager[RunStateHarness]], how: settings = SETTINGS
) -> type[RunStateMachine]:
    """The machine over the adapter that `open_harness` opens; run its `TestCase`. `how` is for slow adapters."""

    class Machine(RunStateMachine):
        pass

    Machine.open_harness = staticmethod(open_harness)
    Machine.TestCase.settings = how
    return Machine
