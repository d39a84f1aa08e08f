"""Two walls keep tenants apart: predicates in every statement, and row-level security. Each holds without the other."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import anyio
import asyncpg
import pytest
from msgspec import Struct
from msgspec.structs import replace

from adapters.postgres import (
    agent,
    budget,
    memory,
    queue,
    reply_journal,
    request_log,
    run_append,
    run_claim,
    run_create,
    run_state,
    tenant,
)
from adapters.postgres import event as run_event
from adapters.postgres.engine import PostgresConfig
from adapters.postgres.together import LANES
from adapters.system_clock import SystemClock
from conformance.factories import idempotency, new_run
from conformance.people import ACME, GLOBEX, NODE, PLATFORM
from ports.adapter import AdapterSpec, Given
from ports.agent import AgentRegistry, AgentSpec
from ports.budget import Amount, Booking, Budget, BudgetLedger, Hold, UsageEvent
from ports.budget_rules import tokens_per_day
from ports.context import AuthContext
from ports.errors import AgentOSError, Conflict, NotFound
from ports.event import EventPort
from ports.ids import AgentId, PrincipalId, WorkerId
from ports.memory import MemoryPort
from ports.queue import Delivery, QueuePort
from ports.reply_journal import ReplyJournal, Ticket, Won
from ports.request_log import READ, READ_CONTENT, RequestLog, RequestRecord, Written, new_request_id
from ports.run_state import (
    Change,
    Idempotency,
    NewEvent,
    Parent,
    Resolution,
    Run,
    RunFilter,
    RunStatePort,
    StepIntent,
    StepResult,
)
from ports.tenant import ApiKey, Entitlements, NewKey, TenantDirectory
from tests.support.postgres import Clone, cloned, execute, fetch

PortT = TypeVar("PortT")
HOUR: Final = timedelta(hours=1)
LIMIT: Final = 1_000
WORKER: Final = WorkerId("wrk_walls")
AGENT: Final = AgentSpec(id=AgentId("agt_secret"), model="demo-1", instructions="Tell nobody.")
KEY: Final = Idempotency(route="runs", key="k-1", fingerprint="f")
USED: Final = UsageEvent(request="req-secret", attempt=1, fresh_tokens=5)
_PREDICATE: Final = re.compile(r"\b(?:\w+\.)?tenant_id = (\$\d+|\w+\.tenant(?:_id)?)\b")


class Ports(Struct, frozen=True, kw_only=True):
    runs: RunStatePort
    events: EventPort
    queue: QueuePort
    agents: AgentRegistry
    memory: MemoryPort
    budget: BudgetLedger
    tenants: TenantDirectory
    replies: ReplyJournal
    requests: RequestLog


class Victim(Struct, frozen=True, kw_only=True):
    """What ACME owns, and GLOBEX would like to see."""

    running: Run
    queued: Run
    parked: Run
    waiting: Run
    delivery: Delivery
    hold: Hold
    key: ApiKey
    ticket: Ticket
    request: RequestRecord


@dataclass(slots=True)
class Stripped:
    predicates: int = 0


@contextmanager
def without_predicates() -> Iterator[Stripped]:
    """Every `tenant_id = <parameter or who asked>` of every statement becomes a truism."""
    stripped = Stripped()

    async def fetch_stripped(
        self: Any, query: str, *arguments: Any, **options: Any
    ) -> Any:  # the driver's own signature
        text, count = _PREDICATE.subn(r"CAST(\1 AS text) IS NOT NULL", query)
        stripped.predicates += count
        return await as_written(self, text, *arguments, **options)

    as_written = asyncpg.Connection.fetch
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncpg.Connection, "fetch", fetch_stripped)
        yield stripped


@contextmanager
def without_the_check_of_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for module in (run_append, run_claim, run_create, agent, queue):
            patched.setattr(module, "by_place", lambda rows, _tenants: {row["place"]: row for row in rows})
        yield


async def without_row_level_security(database: Clone) -> None:
    tables = await fetch(
        database.superuser,
        "SELECT relname, relispartition FROM pg_class WHERE relnamespace = 'agentos'::regnamespace AND relrowsecurity",
    )
    assert sum(not table["relispartition"] for table in tables) == 39
    for table in tables:
        await execute(database.owner, f"ALTER TABLE agentos.{table['relname']} DISABLE ROW LEVEL SECURITY")


async def victim_of(ports: Ports) -> Victim:
    await ports.tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=Entitlements())
    await ports.tenants.create(PLATFORM, GLOBEX.tenant, name="Globex", entitlements=Entitlements())
    await ports.runs.renew(NODE, WORKER, HOUR)
    created = await ports.runs.create(ACME, replace(new_run(), idempotency=KEY))
    queued = await ports.runs.create(ACME, new_run())
    running = await ports.runs.claim(ACME, created.run.id, WORKER)
    step = StepIntent(n=1, kind="tool", name="t", effect="pure", input={}, input_digest="x")
    await ports.runs.append(
        ACME, running.id, running.epoch, Change(steps=(step,), events=(NewEvent(type="step.started"),))
    )
    created = await ports.runs.create(ACME, new_run())
    parked = await ports.runs.claim(ACME, created.run.id, WORKER)
    lost = StepResult(n=1, status="unknown")
    await ports.runs.append(ACME, parked.id, parked.epoch, Change(steps=(step, lost), status="needs_operator"))
    created = await ports.runs.create(ACME, new_run())
    waiting = await ports.runs.claim(ACME, created.run.id, WORKER)
    await ports.runs.append(ACME, waiting.id, waiting.epoch, Change(status="waiting", waits_for="child"))
    line = Parent(run_id=running.id, step=1, depth=1)
    await ports.runs.create(ACME, replace(new_run(), parent=line))
    await ports.agents.publish(ACME, AGENT)
    await ports.memory.put(ACME, "k1", "the walrus is ours")
    hold = await ports.budget.reserve(ACME, 500, limit=LIMIT, lease=HOUR)
    await ports.budget.book(ACME, [Booking(hold=hold.id, events=(USED,))])
    await ports.budget.set_budget(PLATFORM, ACME.tenant, Budget(id="secret", limit=1))
    new_key = NewKey(principal=PrincipalId("usr_ann"), scopes=frozenset({"runs:read"}), secret_sha256=b"s" * 32)
    key = await ports.tenants.issue_key(ACME, new_key)
    await ports.queue.enqueue(ACME, b"leased")
    [delivery] = await ports.queue.lease(ACME, limit=1, duration=HOUR)
    await ports.queue.enqueue(ACME, b"ready")
    held = await ports.replies.open(ACME, "run_1:2", "d", lease=HOUR)
    assert isinstance(held, Won)
    at = datetime.now(UTC)
    request = RequestRecord(
        id=new_request_id(at), at=at, namespace=ACME.namespace, principal=ACME.principal, correlation_id="c", route="r",
        model_asked="m", status=200, kept_until=at + HOUR,
    )  # fmt: skip
    await ports.requests.write(ACME, [Written(record=request, sealed=b"secret")])
    return Victim(
        running=running,
        queued=queued.run,
        parked=parked,
        waiting=waiting,
        delivery=delivery,
        hold=hold,
        key=key,
        ticket=held.ticket,
        request=request,
    )


def probes(ports: Ports, victim: Victim, thief: AuthContext) -> dict[str, Callable[[], Awaitable[object]]]:
    """Calls of `thief` that give something truthy when they see or touch what is the victim's."""
    runs, run, other = ports.runs, victim.running, victim.queued
    reader = replace(thief, scopes=frozenset({READ, READ_CONTENT}))
    nothing = Change(events=(NewEvent(type="model.delta"),))

    async def followed() -> object:
        async for one in ports.events.follow(thief, run.id):
            return one
        return None

    async def listed() -> object:
        return (await runs.list_runs(thief, RunFilter(), limit=10)).items

    async def counted() -> object:
        depth = await ports.queue.depth(thief)
        return depth.ready + depth.leased

    async def spent() -> object:
        balance = await ports.budget.balance(thief, limit=LIMIT)
        return balance.settled + balance.held

    async def done(call: Awaitable[object]) -> object:
        await call
        return True

    return {
        "load": lambda: runs.load(thief, run.id),
        "steps": lambda: runs.steps(thief, run.id),
        "list_runs": listed,
        "children": lambda: _items(runs.list_runs(thief, RunFilter(parent=run.id), limit=10)),
        "wake": lambda: runs.wake(thief, victim.waiting.id),
        "recall": lambda: runs.recall(thief, KEY),
        "read": lambda: ports.events.read(thief, run.id),
        "follow": followed,
        "append": lambda: runs.append(thief, run.id, run.epoch, nothing),
        "release": lambda: done(runs.release(thief, run.id, run.epoch)),
        "claim": lambda: runs.claim(thief, other.id, WORKER),
        "fork": lambda: runs.fork(thief, run.id, 0, idempotency()),
        "resolve": lambda: runs.resolve(thief, victim.parked.id, 1, Resolution(decision="retry"), idempotency()),
        "cancel": lambda: runs.cancel(thief, other.id, reason="theft"),
        "agents.get": lambda: ports.agents.get(thief, AGENT.id),
        "agents.list": lambda: _items(ports.agents.list_agents(thief, limit=10)),
        "memory.get": lambda: ports.memory.get(thief, "k1"),
        "memory.search": lambda: ports.memory.search(thief, "walrus"),
        "memory.forget": lambda: ports.memory.forget(thief, "k1"),
        "budget.balance": spent,
        "budget.usage": lambda: ports.budget.usage(thief, USED.request),
        "budget.spent": lambda: ports.budget.spent(thief, since=victim.request.at - HOUR),
        "budget.budgets": lambda: ports.budget.budgets(thief),
        "budget.renew": lambda: ports.budget.renew(thief, [victim.hold.id], lease=HOUR),
        "budget.extend": lambda: ports.budget.extend(
            thief, victim.hold.id, Amount(tokens=1), on=[tokens_per_day(LIMIT)], lease=HOUR
        ),
        "budget.checkpoint": lambda: done(ports.budget.checkpoint(thief, victim.hold.id, Amount())),
        "budget.settle": lambda: done(ports.budget.settle(thief, victim.hold.id, 1)),
        "keys.list": lambda: _items(ports.tenants.list_keys(thief, limit=10)),
        "keys.revoke": lambda: done(ports.tenants.revoke_key(thief, victim.key.id)),
        "queue.depth": counted,
        "queue.lease": lambda: ports.queue.lease(thief, limit=10, duration=HOUR),
        "queue.extend": lambda: ports.queue.extend(thief, victim.delivery, HOUR),
        "queue.release": lambda: done(ports.queue.release(thief, victim.delivery)),
        "replies.cancel": lambda: ports.replies.cancel(thief, victim.ticket.key),
        "replies.extend": lambda: done(ports.replies.extend(thief, victim.ticket, lease=HOUR)),
        "requests.find": lambda: ports.requests.find(reader, victim.request.id),
        "requests.recent": lambda: _items(ports.requests.recent(reader, limit=10)),
        "requests.content": lambda: ports.requests.content(reader, victim.request.id),
        "requests.counted": lambda: ports.requests.counted(reader, since=victim.request.at - HOUR),
        "replies.complete": lambda: done(ports.replies.complete(thief, victim.ticket, "forged")),
    }


async def _items(page: Awaitable[Any]) -> object:
    return (await page).items


async def leaks(ports: Ports, victim: Victim, thief: AuthContext) -> list[str]:
    """Names of the probes that saw or touched something."""
    found = []
    for name, call in probes(ports, victim, thief).items():
        try:
            seen = await call()
        except (NotFound, Conflict):
            seen = None
        except AgentOSError as error:
            raise AssertionError(f"{name}: {error.code}") from error
        if seen:
            found.append(name)
    return found


class Attempt(Struct, frozen=True, kw_only=True):
    filler: Callable[[], Awaitable[object]]
    own: Callable[[], Awaitable[object]]
    theft: Callable[[], Awaitable[object]]
    stolen: Callable[[], Awaitable[bool]]


async def attempts(ports: Ports) -> dict[str, Attempt]:
    """Calls that are batched: by kind, what ACME does, and what GLOBEX tries at the same moment."""
    victim = await victim_of(ports)
    runs, run, queued, nothing = (
        ports.runs,
        victim.running,
        victim.queued,
        Change(events=(NewEvent(type="model.delta"),)),
    )
    mine = await runs.claim(ACME, (await runs.create(ACME, new_run())).run.id, WORKER)
    spare = await runs.create(ACME, new_run())
    await ports.queue.enqueue(ACME, b"third")
    [gone, ready] = await ports.queue.lease(ACME, limit=2, duration=HOUR)
    await ports.queue.ack(ACME, gone)
    read: list[object] = []

    async def read_agent() -> None:
        read.append(await ports.agents.get(GLOBEX, AGENT.id, 1))

    async def appended() -> bool:
        return (await runs.load(ACME, run.id)).last_sequence > 3

    async def claimed() -> bool:
        return (await runs.load(ACME, queued.id)).status == "running"

    async def acknowledged() -> bool:
        return (await ports.queue.depth(ACME)).leased == 0

    async def was_read() -> bool:
        return bool(read)

    return {
        "append": Attempt(
            filler=lambda: runs.append(ACME, mine.id, mine.epoch, nothing),
            own=lambda: runs.append(ACME, mine.id, mine.epoch, nothing),
            theft=lambda: runs.append(GLOBEX, run.id, run.epoch, nothing),
            stolen=appended,
        ),
        "claim": Attempt(
            filler=lambda: runs.claim(ACME, mine.id, WORKER),
            own=lambda: runs.claim(ACME, spare.run.id, WORKER),
            theft=lambda: runs.claim(GLOBEX, queued.id, WORKER),
            stolen=claimed,
        ),
        "agents.get": Attempt(
            filler=lambda: ports.agents.get(ACME, AGENT.id),
            own=lambda: ports.agents.get(ACME, AGENT.id, 1),
            theft=read_agent,
            stolen=was_read,
        ),
        "queue.ack": Attempt(
            filler=lambda: ports.queue.ack(ACME, gone),
            own=lambda: ports.queue.ack(ACME, ready),
            theft=lambda: ports.queue.ack(GLOBEX, victim.delivery),
            stolen=acknowledged,
        ),
    }


async def stolen_in_a_batch(ports: Ports, kind: str) -> bool:
    """Whether GLOBEX got what it tried to, in one batch with a call of ACME's and without predicates."""
    attempt = (await attempts(ports))[kind]

    async def outcome(call: Callable[[], Awaitable[object]]) -> None:
        with suppress(NotFound, Conflict):
            await call()

    with without_predicates():
        async with anyio.create_task_group() as group:
            # Those that come first take the lanes, so that the others come together.
            for call in (*[attempt.filler] * LANES, attempt.own, attempt.theft):
                group.start_soon(outcome, call)
    return await attempt.stolen()


@pytest.mark.anyio
class TestTwoWalls:
    @pytest.fixture
    async def database(self) -> AsyncIterator[Clone]:
        async with cloned() as database:
            yield database

    @pytest.fixture
    async def ports(self, database: Clone) -> AsyncIterator[Ports]:
        app, control = PostgresConfig(dsn=database.app), PostgresConfig(dsn=database.control)
        async with AsyncExitStack() as stack:

            async def opened(spec: AdapterSpec[PostgresConfig, PortT], config: PostgresConfig = app) -> PortT:
                return await stack.enter_async_context(spec.open(config, Given(clock=SystemClock())))

            yield Ports(
                runs=await opened(run_state.SPEC),
                events=await opened(run_event.SPEC),
                queue=await opened(queue.SPEC),
                agents=await opened(agent.SPEC),
                memory=await opened(memory.SPEC),
                budget=await opened(budget.SPEC, control),
                tenants=await opened(tenant.SPEC, control),
                replies=await opened(reply_journal.SPEC),
                requests=await opened(request_log.SPEC),
            )

    async def test_with_both_walls_nothing_leaks(self, ports: Ports) -> None:
        victim = await victim_of(ports)

        assert await leaks(ports, victim, GLOBEX) == []

    async def test_without_predicates_row_level_security_holds(self, ports: Ports) -> None:
        victim = await victim_of(ports)

        with without_predicates() as stripped:
            found = await leaks(ports, victim, GLOBEX)

        assert found == []
        assert stripped.predicates > len(probes(ports, victim, GLOBEX))

    async def test_without_row_level_security_predicates_hold(self, database: Clone, ports: Ports) -> None:
        victim = await victim_of(ports)
        await without_row_level_security(database)

        assert await leaks(ports, victim, GLOBEX) == []

    async def test_without_either_everything_leaks_so_the_probes_can_tell(self, database: Clone, ports: Ports) -> None:
        victim = await victim_of(ports)
        await without_row_level_security(database)

        with without_predicates(), without_the_check_of_batches():
            found = await leaks(ports, victim, GLOBEX)

        assert found == list(probes(ports, victim, GLOBEX))

    @pytest.mark.parametrize("kind", ["append", "claim", "agents.get", "queue.ack"])
    async def test_in_one_batch_with_the_victim_nothing_leaks_without_predicates(self, ports: Ports, kind: str) -> None:
        """Row-level security admits both tenants then; what was reached is looked at before it is committed."""
        assert not await stolen_in_a_batch(ports, kind)

    @pytest.mark.parametrize("kind", ["append", "claim", "agents.get", "queue.ack"])
    async def test_in_one_batch_all_leaks_without_that_check_so_the_batch_is_one(self, ports: Ports, kind: str) -> None:
        with without_the_check_of_batches():
            assert await stolen_in_a_batch(ports, kind)

    async def test_the_victim_sees_all_of_it_so_the_probes_ask_for_something(self, ports: Ports) -> None:
        victim = await victim_of(ports)

        assert await leaks(ports, victim, ACME) == list(probes(ports, victim, ACME))

    async def test_a_row_of_another_tenant_can_not_be_written(self, database: Clone) -> None:
        planted = "INSERT INTO agentos.agents VALUES ('tnt_acme', 'default', 'agt_x', 1, 'd', '{}')"

        with pytest.raises(Exception, match="row-level security"):
            await execute(database.app, f"BEGIN; SET LOCAL app.tenant_id = 'tnt_globex'; {planted}")

    async def test_nobody_bound_sees_nothing(self, database: Clone, ports: Ports) -> None:
        await victim_of(ports)

        for table in ("tenants", "api_keys", "runs", "run_events", "steps", "agents", "memory_items", "queue_messages"):
            assert await fetch(database.app, f"SELECT 1 FROM {table}") == []
            assert await fetch(database.owner, f"SELECT 1 FROM {table}") == [], "the owner is denied as well"
            assert await fetch(database.admin, f"SELECT 1 FROM {table}") != []
