"""What fairness costs, and what it is worth: `python -m tests.bench.fairness`.

The worker is production's, with an instant model and a tool of 300 ms; PostgreSQL waits for the disk. Measured in
the same round: how soon a run of one tenant, which has no other, starts on an idle node and beside another's backlog;
what a lease costs with one tenant and with many that all have messages waiting; and how fast one tenant creates, alone and
racing.
"""

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console

from adapters.system_clock import SystemClock
from deploy.roots.wiring import Choice, open_ports
from observability.instrument import instrument
from observability.metrics import Metrics
from ports.agent import AgentSpec
from ports.context import QUEUE_ANY_TENANT, AuthContext
from ports.errors import Conflict
from ports.ids import PrincipalId, TenantId
from ports.run_intake import RunRequest
from ports.run_state import TERMINAL, Idempotency
from ports.tenant import Entitlements
from stack_a.runs.start import Intake
from tests.bench import machine
from tests.bench.engine import on_uvloop
from tests.bench.engine_load import AGENT, CALLER
from tests.bench.engine_worker import MODEL, TOOL
from tests.bench.figures import percentile, ratio
from tests.bench.harness import Figures, Line, Part, at_least_one, conditions, interleaved, record_of, report
from tests.support.postgres import CHILDREN_FIRST, Server, execute, fetch

_STORED: Final = ("run_state", "queue", "agent", "tenant")
_WORKER: Final = AuthContext(
    tenant=TenantId("tnt_bench"), principal=PrincipalId("svc_bench"), scopes=frozenset({QUEUE_ANY_TENANT})
)
_PLATFORM: Final = replace(CALLER, scopes=frozenset({"admin:platform"}))
_GREEDY: Final = replace(CALLER, tenant=TenantId("tnt_greedy"))
_MODEST: Final = replace(CALLER, tenant=TenantId("tnt_modest"))
_FREE: Final = Entitlements(runs_per_minute=1_000_000, max_queued_runs=10_000_000)
_LEASE: Final = timedelta(minutes=5)
_SLOTS: Final = 16
_LOOK_SECONDS: Final = 0.005
_MOST_SECONDS_BETWEEN: Final = 0.4
"""More than one round of the backlog, whose runs end together: each moment of it is met as often as any other."""
_SEED: Final = 20

_STAGES: Final = {
    "commit": "until its creation is committed",
    "hint": "from there until its hint is",
    "claim": "from there until a worker has heard, looked and claimed",
}
_LINES: Final = (
    Line("a run of one tenant, from run.created to run.started"),
    Line("idle node p50", "idle_p50_ms", "ms"),
    Line("idle node p95", "idle_p95_ms", "ms"),
    Line("beside the other's backlog p50", "beside_p50_ms", "ms"),
    Line("beside the other's backlog p95", "beside_p95_ms", "ms"),
    Line("beside the other's backlog that may take half of the slots p50", "capped_p50_ms", "ms"),
    Line("beside the other's backlog that may take half of the slots p95", "capped_p95_ms", "ms"),
    Line("ratio of the p95s, all slots (R20: at most 2)", "start_ratio"),
    Line("ratio of the p95s, half of the slots", "capped_ratio"),
    *(
        Line(f"{node}, {stage} {shown}", f"{key}_{name}_{shown}_ms", "ms")
        for key, node in (("idle", "idle node"), ("beside", "beside the backlog"))
        for name, stage in _STAGES.items()
        for shown in ("p50", "p95")
    ),
    Line("runs of the backlog finished meanwhile", "backlog_per_s", "1/s"),
    Line("a lease of one message, median"),
    Line("one tenant with 100 messages", "lease_few_ms", "ms"),
    Line("10,000 tenants with 100,000 messages", "lease_many_ms", "ms"),
    Line("ratio", "lease_ratio"),
    Line("creations of one tenant"),
    Line("one at a time", "create_alone_per_s", "1/s"),
    Line("16 at a time", "create_racing_per_s", "1/s"),
)


class Options(Struct, frozen=True, kw_only=True):
    backlog: int = 10_000
    probes: int = 150
    """A p95 of 40 is its second or third slowest."""
    creations: int = 500
    leases: int = 200
    tenants: int = 10_000
    """That have messages waiting, ten each, when leases are compared."""
    rounds: int = 1
    stages: bool = False
    json: str | None = None


class Start(Struct, frozen=True):
    """How long the first run of a tenant took to start, and its stages, in milliseconds."""

    whole: float
    stages: dict[str, float]


SMOKE: Final = Options(backlog=50, probes=2, creations=20, leases=5, tenants=20)


class FairnessBench:
    def __init__(self, server: Server, home: Path, options: Options) -> None:
        self._server = server
        self._home = home
        self._options = options
        self._numbers = itertools.count(1)
        self._dsn_file = home / "database_url"
        self._dsn_file.write_text(server.dsn("ao_app"))

    def parts(self) -> list[tuple[str, Part]]:
        return [
            ("starts", self.starts),
            ("creations", self.creations),
            ("leases", self.leases),
            ("ratios", ratios),
        ]

    def starts(self, _: Mapping[str, float]) -> Figures:
        with self._worker():
            idle = on_uvloop(self._starts())
            on_uvloop(self._backlog())
            before, began = on_uvloop(self._finished()), time.monotonic()
            beside = on_uvloop(self._starts())
            on_uvloop(self._entitle(_GREEDY, replace(_FREE, max_active_runs=_SLOTS // 2)))
            capped = on_uvloop(self._starts())
            done, took = on_uvloop(self._finished()) - before, time.monotonic() - began
        on_uvloop(self._clean())
        return {
            **figures_of("idle", idle),
            **figures_of("beside", beside),
            **figures_of("capped", capped),
            "backlog_per_s": ratio(done, took),
        }

    def creations(self, _: Mapping[str, float]) -> Figures:
        figures = {
            "create_alone_per_s": on_uvloop(self._creations(1)),
            "create_racing_per_s": on_uvloop(self._creations(16)),
        }
        on_uvloop(self._clean())
        return figures

    def leases(self, _: Mapping[str, float]) -> Figures:
        few = on_uvloop(self._leases(tenants=1, messages=100))
        tenants = self._options.tenants
        many = on_uvloop(self._leases(tenants=tenants, messages=10 * tenants))
        return {"lease_few_ms": few, "lease_many_ms": many}

    async def _starts(self) -> list[Start]:
        """Of runs that come one by one, at moments that are nobody's."""
        clock, pauses = SystemClock(), random.Random(_SEED)  # noqa: S311 - moments, no secrets
        ended: dict[str, datetime] = {}
        """By method. Here and in the database it is the same machine's time."""

        def watched(name: str, port: Any) -> Any:  # any port, see `instrument`
            return instrument(name, port, lambda call: ended.update({call.method: clock.now()}))

        wrapped = {"wrap": watched} if self._options.stages else {}
        async with open_ports(self._choices(), dict.fromkeys(_STORED), clock=clock, **wrapped) as ports:
            intake, state = await self._intake(ports), ports["run_state"]
            starts: list[Start] = []
            for _ in range(self._options.probes):
                await asyncio.sleep(pauses.uniform(0, _MOST_SECONDS_BETWEEN))
                run = (await intake.accept(_MODEST, self._request())).run
                while (run := await state.load(_MODEST, run.id)).status == "queued":  # noqa: ASYNC110 - see below
                    await asyncio.sleep(_LOOK_SECONDS)  # it starts in another process
                assert run.started_at is not None, "it is not queued any more"
                whole = _ms(run.started_at - run.created_at)
                stages: dict[str, float] = {}
                if self._options.stages:
                    committed, hinted = ended["create"], ended["enqueue"]
                    moments = (committed - run.created_at, hinted - committed, run.started_at - hinted)
                    stages = dict(zip(_STAGES, map(_ms, moments), strict=True))
                starts.append(Start(whole, stages))
                # R20 is about a tenant that has nothing else.
                while (await state.load(_MODEST, run.id)).status not in TERMINAL:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(_LOOK_SECONDS)
        return starts

    async def _creations(self, at_once: int) -> float:
        """Per second."""
        numbers = iter(range(self._options.creations))
        async with open_ports(self._choices(), dict.fromkeys(_STORED), clock=SystemClock()) as ports:
            intake = await self._intake(ports)

            async def create() -> None:
                for _ in numbers:
                    await intake.accept(_MODEST, self._request())

            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(create())
            return ratio(self._options.creations, time.perf_counter() - began)

    async def _leases(self, *, tenants: int, messages: int) -> float:
        """Median milliseconds of a lease of one message, while `messages` of `tenants` wait."""
        await execute(
            self._server.dsn("postgres"),
            f"""
            SET search_path = agentos;
            INSERT INTO queue_turns (tenant_id, vtime, next_at, served_at)
            SELECT 'tnt_many' || n, 0, now(), now() FROM generate_series(1, {tenants}) n;
            INSERT INTO queue_messages (tenant_id, namespace, requester, body, visible_at)
            SELECT 'tnt_many' || 1 + n % {tenants}, 'default',
                   json_build_object('tenant', 'tnt_many' || 1 + n % {tenants}, 'principal', 'usr_x'), 'x', now()
            FROM generate_series(1, {messages}) n;
            ANALYZE queue_turns, queue_messages;
            """,
        )
        took: list[float] = []
        async with open_ports(self._choices(), dict.fromkeys(_STORED), clock=SystemClock()) as ports:
            for _ in range(min(self._options.leases, messages)):
                began = time.perf_counter()
                [delivery] = await ports["queue"].lease(_WORKER, limit=1, duration=_LEASE)
                took.append((time.perf_counter() - began) * 1_000)
                await ports["queue"].ack(_WORKER, delivery)
        await self._clean()
        return percentile(took, 0.5)

    async def _backlog(self) -> None:
        """What the other tenant has queued: as many runs as one statement makes, with their hints."""
        requester = msgspec.json.encode(_GREEDY).decode()
        await execute(
            self._server.dsn("postgres"),
            f"""
            SET search_path = agentos;
            WITH made AS (
                INSERT INTO runs (tenant_id, namespace, agent_id, agent_version, agent_digest, requester, input, context,
                                  created_at, queued_at, last_sequence)
                SELECT '{_GREEDY.tenant}', 'default', a.id, a.version, a.digest, '{requester}', '"Probe once."', '{{}}',
                       now(), now(), 1
                FROM agents a, generate_series(1, {self._options.backlog})
                WHERE a.tenant_id = '{_GREEDY.tenant}'
                RETURNING id
            ),
            told AS (
                INSERT INTO run_events (tenant_id, run_id, sequence, type, time, data, correlation_id, traceparent)
                SELECT '{_GREEDY.tenant}', id, 1, 'run.created', now(), '{{}}', '', '' FROM made
            )
            INSERT INTO queue_messages (tenant_id, namespace, requester, body, visible_at)
            SELECT '{_GREEDY.tenant}', 'default', '{requester}',
                   convert_to('{{"run_id":"run_' || replace(id::text, '-', '') || '"}}', 'UTF8'), now()
            FROM made;
            INSERT INTO queue_turns (tenant_id, vtime, next_at, served_at)
            SELECT '{_GREEDY.tenant}', last_value, now(), now() FROM queue_vtime
            ON CONFLICT (tenant_id) DO UPDATE SET next_at = now();
            """,
        )

    async def _finished(self) -> int:
        [row] = await fetch(
            self._server.dsn("ao_admin"),
            "SELECT count(*) AS runs FROM runs WHERE tenant_id = $1 AND status = 'succeeded'",
            _GREEDY.tenant,
        )
        return int(row["runs"])

    async def _clean(self) -> None:
        emptying = "; ".join(f"DELETE FROM {table}" for table in CHILDREN_FIRST)
        await execute(self._server.dsn("postgres"), f"SET search_path = agentos; {emptying}")
        await execute(self._server.dsn("postgres"), "VACUUM ANALYZE")

    async def _intake(self, ports: Mapping[str, Any]) -> Intake:
        for auth in (_GREEDY, _MODEST):
            with suppress(Conflict):
                await ports["tenant"].create(_PLATFORM, auth.tenant, name="x", entitlements=_FREE)
            await ports["agent"].publish(auth, AgentSpec(id=AGENT, model=MODEL, tools=(TOOL,)))
        return Intake(run_state=ports["run_state"], agent=ports["agent"], queue=ports["queue"], metrics=Metrics())

    async def _entitle(self, auth: AuthContext, entitlements: Entitlements) -> None:
        async with open_ports(self._choices(), {"tenant": None}, clock=SystemClock()) as ports:
            await ports["tenant"].set_entitlements(_PLATFORM, auth.tenant, entitlements)

    def _request(self) -> RunRequest:
        key = f"key-{next(self._numbers)}"
        idempotency = Idempotency(route="POST /v1/agents/{agent_id}/runs", key=key, fingerprint=key)
        return RunRequest(agent_id=AGENT, input="Probe once.", idempotency=idempotency)

    def _choices(self) -> dict[str, Choice]:
        return {
            port: Choice(
                adapter="postgres", config={"dsn": self._server.dsn("ao_control" if port == "tenant" else "ao_app")}
            )
            for port in _STORED
        }

    @contextmanager
    def _worker(self) -> Iterator[None]:
        environment = {
            "AGENTOS_DATABASE_URL_FILE": str(self._dsn_file),
            "AGENTOS_WORKER_CONCURRENCY": str(_SLOTS),
            # All slots taken, the machine not: it is turns that are measured.
            "AGENTOS_BENCH_TOOL_MS": "300",
        }
        command, log = machine.python("tests.bench.engine_worker"), self._home / "worker.log"
        with machine.child(command, log=log, environment=environment, announces=True):
            yield


def figures_of(key: str, starts: Sequence[Start]) -> Figures:
    found: Figures = {}
    for shown, part in (("p50", 0.5), ("p95", 0.95)):
        found[f"{key}_{shown}_ms"] = percentile([start.whole for start in starts], part)
        for name in starts[0].stages:
            found[f"{key}_{name}_{shown}_ms"] = percentile([start.stages[name] for start in starts], part)
    return found


def _ms(took: timedelta) -> float:
    return took.total_seconds() * 1_000


def ratios(found: Mapping[str, float]) -> Figures:
    return {
        "start_ratio": ratio(found["beside_p95_ms"], found["idle_p95_ms"]),
        "capped_ratio": ratio(found["capped_p95_ms"], found["idle_p95_ms"]),
        "lease_ratio": ratio(found["lease_many_ms"], found["lease_few_ms"]),
    }


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fairness", description=__doc__)
    parser.add_argument(
        "--rounds", type=at_least_one, default=Options().rounds, help="interleaved rounds (%(default)s)"
    )
    parser.add_argument("--stages", action="store_true", help="also of which stages a start is made")
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    return replace(SMOKE if given.smoke else Options(), rounds=given.rounds, stages=given.stages, json=given.json)


def main(options: Options) -> None:
    talk = Console(stderr=True)
    with machine.workplace() as home, machine.database(home) as server:
        told = conditions(options, postgres=on_uvloop(machine.settings(server)))
        rounds = interleaved(options.rounds, FairnessBench(server, home, options).parts(), talk)
    report(record_of("fairness", told, rounds), _LINES, json=options.json)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
