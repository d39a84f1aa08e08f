"""What keeping tenants apart costs: `python -m tests.bench.isolation`.

Runs are created and read by many callers at once, with row-level security and the audit, without row-level security, and
with neither, in turn, on one server. Each creation waits for its commit, and those that come together are committed
together, as in a service.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import psutil

from adapters.postgres import run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import new_run
from ports.adapter import Given
from ports.run_state import RunStatePort
from tests.bench import machine
from tests.bench.calls import Options, callers, make_tenants, measure, parse, per_second
from tests.bench.engine import on_uvloop
from tests.bench.figures import ratio
from tests.bench.harness import Figures, Line, Part
from tests.support.postgres import Server, execute

TENANTS: Final = 16

_WALLS: Final = """
    DO $$
    DECLARE name regclass;
    BEGIN
        FOR name IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'agentos'::regnamespace AND c.relkind IN ('r', 'p')
            AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)
        LOOP
            EXECUTE format('ALTER TABLE %s {0} ROW LEVEL SECURITY', name);
        END LOOP;
    END
    $$
"""
_AUDIT_OFF: Final = """
    CREATE FUNCTION agentos.bench_nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER bench_off BEFORE INSERT ON agentos.audit_log FOR EACH ROW EXECUTE FUNCTION agentos.bench_nothing();
"""
_AUDIT_ON: Final = """
    DROP TRIGGER bench_off ON agentos.audit_log;
    DROP FUNCTION agentos.bench_nothing();
"""
STATES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "both": ((), ()),
    "audit": ((_WALLS.format("DISABLE"),), (_WALLS.format("ENABLE"),)),
    "bare": ((_WALLS.format("DISABLE"), _AUDIT_OFF), (_WALLS.format("ENABLE"), _AUDIT_ON)),
}
"""By what is on: what the owner says before, and after. Predicates are on in each."""

_LINES: Final = (
    Line(f"runs created, {TENANTS} tenants"),
    Line("with row-level security and the audit", "created_both", "1/s"),
    Line("with the audit only", "created_audit", "1/s"),
    Line("with neither", "created_bare", "1/s"),
    Line("both / neither (at least 0.85)", "created_share", ""),
    Line("CPU per run, both", "created_both_cpu_us", "µs"),
    Line("CPU per run, neither", "created_bare_cpu_us", "µs"),
    Line("CPU: both / neither", "created_cpu_ratio", ""),
    Line(f"runs read, {TENANTS} tenants"),
    Line("with row-level security and the audit", "read_both", "1/s"),
    Line("with neither", "read_bare", "1/s"),
    Line("both / neither (at least 0.85)", "read_share", ""),
    Line("CPU per read, both", "read_both_cpu_us", "µs"),
    Line("CPU per read, neither", "read_bare_cpu_us", "µs"),
    Line("CPU: both / neither", "read_cpu_ratio", ""),
)


class IsolationBench:
    def __init__(self, server: Server, options: Options) -> None:
        self._server = server
        self._options = options

    def parts(self) -> list[tuple[str, Part]]:
        return [*((state, partial(self._measured, state)) for state in STATES), ("ratios", _ratios)]

    def _measured(self, state: str, _: Mapping[str, float]) -> Figures:
        before, after = STATES[state]
        self._say(before)
        try:
            return on_uvloop(self._load(state))
        finally:
            self._say(after)

    def _say(self, statements: Sequence[str]) -> None:
        for one in statements:
            asyncio.run(execute(self._server.dsn("ao_owner"), one))

    async def _load(self, state: str) -> Figures:
        async with AsyncExitStack() as stack:
            given = Given(clock=SystemClock())
            control = PostgresConfig(dsn=self._server.dsn("ao_control"))
            directory = await stack.enter_async_context(tenant.SPEC.open(control, given))
            config = PostgresConfig(dsn=self._server.dsn("ao_app"))
            runs: RunStatePort = await stack.enter_async_context(run_state.SPEC.open(config, given))
            whom = callers(TENANTS)
            await make_tenants(directory, whom)
            made = [await runs.create(one, new_run()) for one in whom]

            async def create(number: int) -> None:
                await runs.create(whom[number % TENANTS], new_run())

            async def read(number: int) -> None:
                await runs.load(whom[number % TENANTS], made[number % TENANTS].run.id)

            found: Figures = {}
            for name, act in {"created": create, "read": read}.items():
                # Connections are made, and statements prepared.
                await per_second(act, self._options.concurrency * 4, self._options.concurrency)
                began = self._cpu()
                found[f"{name}_{state}"] = await per_second(act, self._options.calls, self._options.concurrency)
                found[f"{name}_{state}_cpu_us"] = 1e6 * (self._cpu() - began) / self._options.calls
            return found

    def _cpu(self) -> float:
        """Seconds, ours and the server's."""
        return machine.cpu_seconds(psutil.Process()) + machine.server_cpu_seconds(self._server)


def _ratios(found: Mapping[str, float]) -> Figures:
    return {f"{name}_share": ratio(found[f"{name}_both"], found[f"{name}_bare"]) for name in ("created", "read")} | {
        f"{name}_cpu_ratio": ratio(found[f"{name}_both_cpu_us"], found[f"{name}_bare_cpu_us"])
        for name in ("created", "read")
    }


if __name__ == "__main__":
    measure("isolation", parse("isolation", __doc__, sys.argv[1:]), lambda *made: IsolationBench(*made).parts(), _LINES)
