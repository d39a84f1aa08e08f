"""What the audit's chain costs: `python -m tests.bench.audit`.

Runs are created and entries noted by many callers at once, of one tenant and of sixteen, with the chain and without its
trigger, in turn; then a chain is checked. Each call waits for its commit, and those that come together are committed
together, as in a service.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from adapters.postgres import audit, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from conformance.factories import new_run
from conformance.people import ACME
from deploy.audit_check import checked
from ports.adapter import Given
from ports.audit import READ, AuditLog, Note
from ports.ids import TenantId
from ports.run_state import RunStatePort
from tests.bench.calls import Options, callers, make_tenants, measure, parse, per_second
from tests.bench.engine import on_uvloop
from tests.bench.figures import ratio
from tests.bench.harness import Figures, Line, Part
from tests.support.postgres import Server, execute

T = TypeVar("T")

MANY_TENANTS: Final = 16
_READER: Final = replace(ACME, scopes=ACME.scopes | {READ})


_LINES: Final = (
    Line("entries noted, one tenant"),
    Line("with the chain", "noted_one", "/s"),
    Line("without it", "noted_one_bare", "/s"),
    Line("one at a time, with the chain", "noted_alone", "/s"),
    Line(f"entries noted, {MANY_TENANTS} tenants"),
    Line("with the chain", "noted_many", "/s"),
    Line("without it", "noted_many_bare", "/s"),
    Line("runs created, one tenant"),
    Line("with the chain", "runs_one", "/s"),
    Line("without it", "runs_one_bare", "/s"),
    Line("with / without", "runs_one_share", ""),
    Line(f"runs created, {MANY_TENANTS} tenants"),
    Line("with the chain", "runs_many", "/s"),
    Line("without it", "runs_many_bare", "/s"),
    Line("with / without", "runs_many_share", ""),
    Line("a chain is checked"),
    Line("entries read and hashed", "verified", "/s"),
)


class AuditBench:
    def __init__(self, server: Server, options: Options) -> None:
        self._server = server
        self._options = options

    def parts(self) -> list[tuple[str, Part]]:
        kinds: list[tuple[str, Callable[..., Coroutine[Any, Any, float]], int]] = [
            ("noted_one", self._noted, 1),
            ("noted_many", self._noted, MANY_TENANTS),
            ("runs_one", self._created, 1),
            ("runs_many", self._created, MANY_TENANTS),
        ]
        both = [
            (f"{name}{'' if chained else '_bare'}", partial(self._measured, name, act, many, chained=chained))
            for name, act, many in kinds
            for chained in (True, False)
        ]
        return [*both, ("noted_alone", self._alone), ("verified", self._verified)]

    def _measured(
        self,
        name: str,
        act: Callable[..., Coroutine[Any, Any, float]],
        many: int,
        so_far: Mapping[str, float],
        *,
        chained: bool,
    ) -> Figures:
        state = "ENABLE" if chained else "DISABLE"
        asyncio.run(execute(self._server.dsn("ao_owner"), f"ALTER TABLE agentos.audit_log {state} TRIGGER linked"))
        try:
            found = on_uvloop(act(many))
        finally:
            asyncio.run(execute(self._server.dsn("ao_owner"), "ALTER TABLE agentos.audit_log ENABLE TRIGGER linked"))
        if chained:
            return {name: found}
        return {f"{name}_bare": found, f"{name}_share": ratio(so_far[name], found)}

    async def _noted(self, many: int) -> float:
        async with AsyncExitStack() as stack:
            log = await self._open(stack)
            whom = callers(many)

            async def note(number: int) -> None:
                await log.note(whom[number % many], Note(action="bench.note", subject=str(number)))

            return await per_second(note, self._options.calls, self._options.concurrency)

    def _alone(self, _: Mapping[str, float]) -> Figures:
        async def measured() -> float:
            async with AsyncExitStack() as stack:
                log = await self._open(stack)
                return await per_second(
                    lambda n: log.note(callers(1)[0], Note(action="bench.note", subject=str(n))),
                    max(32, self._options.calls // 10),
                    1,
                )

        return {"noted_alone": on_uvloop(measured())}

    async def _created(self, many: int) -> float:
        async with AsyncExitStack() as stack:
            given, config = Given(clock=SystemClock()), PostgresConfig(dsn=self._server.dsn("ao_app"))
            control = PostgresConfig(dsn=self._server.dsn("ao_control"))
            tenants = await stack.enter_async_context(tenant.SPEC.open(control, given))
            runs: RunStatePort = await stack.enter_async_context(run_state.SPEC.open(config, given))
            whom = callers(many)
            await make_tenants(tenants, whom)

            async def create(number: int) -> None:
                await runs.create(whom[number % many], new_run())

            return await per_second(create, self._options.calls, self._options.concurrency)

    def _verified(self, _: Mapping[str, float]) -> Figures:
        async def measured() -> float:
            async with AsyncExitStack() as stack:
                log = await self._open(stack)
                auth = replace(_READER, tenant=TenantId("tnt_verify"))
                notes = [log.note(auth, Note(action="bench.note", subject=str(n))) for n in range(self._options.calls)]
                await asyncio.gather(*notes)
                began = time.perf_counter()
                verdict = await checked(log, auth, auth.tenant, {})
                took = time.perf_counter() - began
                assert verdict.good, verdict.why
                return verdict.checked / took

        return {"verified": on_uvloop(measured())}

    async def _open(self, stack: AsyncExitStack) -> AuditLog:
        config = PostgresConfig(dsn=self._server.dsn("ao_app"))
        return await stack.enter_async_context(audit.SPEC.open(config, Given(clock=SystemClock())))


if __name__ == "__main__":
    measure("audit", parse("audit", __doc__, sys.argv[1:]), lambda *made: AuditBench(*made).parts(), _LINES)
