"""The runs of a storage: their rows, journals and event logs, and the one way an event is added."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from msgspec.structs import replace

from adapters.inproc.store import Signal, Store, own
from ports.context import AuthContext
from ports.errors import Conflict, NotFound
from ports.event import Event
from ports.ids import EventId, RunId, TenantId, WorkerId
from ports.run_state import Idempotency, NewEvent, Run, RunStatus, Step


@dataclass(slots=True)
class RunRow:
    run: Run
    queued_at: datetime
    waited: timedelta = timedelta(0)
    """For operators: by so much its deadline was moved."""
    steps: dict[int, Step] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    changed: Signal = field(default_factory=Signal)

    @property
    def worker(self) -> WorkerId | None:
        return self.run.worker

    def record(self, store: Store, auth: AuthContext, now: datetime, *events: NewEvent) -> None:
        """Append `events` with the next sequence numbers, and wake the followers."""
        for new in events:
            sequence = len(self.events) + 1
            self.events.append(
                Event(
                    event_id=EventId(store.mint("evt", now)),
                    run_id=self.run.id,
                    tenant_id=self.run.tenant,
                    sequence=sequence,
                    type=new.type,
                    time=now,
                    data=own(new.data),
                    correlation_id=auth.trace.correlation_id,
                    traceparent=auth.trace.traceparent,
                )
            )
        self.run = replace(self.run, last_sequence=len(self.events))
        self.changed.fire()


@dataclass(frozen=True, slots=True)
class KeyScope:
    """Where an idempotency key means something."""

    tenant: TenantId
    namespace: str
    principal: str
    route: str
    key: str

    @classmethod
    def of(cls, auth: AuthContext, idempotency: Idempotency) -> "KeyScope":
        return cls(auth.tenant, auth.namespace, auth.principal, idempotency.route, idempotency.key)


@dataclass(slots=True)
class Runs:
    """A table of a `Store`."""

    rows: dict[tuple[TenantId, str, RunId], RunRow] = field(default_factory=dict)
    keys: dict[KeyScope, tuple[str, RunRow]] = field(default_factory=dict)
    leases: dict[WorkerId, datetime] = field(default_factory=dict)
    """When each worker's lease ends."""
    used_until: dict[TenantId, datetime] = field(default_factory=dict)
    """Each tenant's rate of creations: its bucket is empty when it is used up to a minute ahead."""

    def row(self, auth: AuthContext, run_id: RunId) -> RunRow:
        """The caller's run, or the one `NotFound` for absent and foreign."""
        found = self.rows.get((auth.tenant, auth.namespace, run_id))
        if found is None:
            raise NotFound(f"there is no run {run_id!r}")
        return found

    def keyed(self, auth: AuthContext, idempotency: Idempotency) -> RunRow | None:
        """The run this key made. Raises `Conflict` when that was for another request."""
        known = self.keys.get(KeyScope.of(auth, idempotency))
        if known is None:
            return None
        fingerprint, row = known
        if fingerprint != idempotency.fingerprint:
            raise Conflict(
                f"the idempotency key {idempotency.key!r} was used for another request on this route; send a new key",
                code="idempotency_key_reused",
            )
        return row

    def children(self, run: Run) -> list[Run]:
        return [
            row.run
            for key, row in self.rows.items()
            if key[0] == run.tenant and row.run.parent is not None and row.run.parent.run_id == run.id
        ]

    def count(self, tenant: TenantId, status: RunStatus) -> int:
        return sum(key[0] == tenant and row.run.status == status for key, row in self.rows.items())

    def held(self, row: RunRow, now: datetime) -> bool:
        """Whether a worker with a live lease holds the run."""
        return row.worker is not None and self.live(row.worker, now)

    def live(self, worker: WorkerId, now: datetime) -> bool:
        ends = self.leases.get(worker)
        return ends is not None and now < ends
