"""The three services as processes over one database, with a tenant that has an agent and a run: to be asked anything."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from adapters.postgres import agent, run_state, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from conformance.factories import SUCCEEDED, new_run
from conformance.people import ACME, NODE, PLATFORM
from deploy.roles import scopes_of
from ports.adapter import Given
from ports.agent import AgentSpec
from ports.ids import AgentId, TenantId, WorkerId
from ports.tenant import Entitlements
from tests.faults.schemas_hooks import SUBJECT
from tests.support.ports import free_ports
from tests.support.postgres import cloned
from tests.support.real_stacks import ISSUER, ROOT, Process

SURFACES: Final = {"a": "stack-a", "b": "stack-b", "admin": "admin"}
"""With the audience of each."""
_MODULES: Final = {"a": "stack_a", "b": "stack_b", "admin": "admin"}
_PORTS: Final = {"a": "STACK_A_PORT", "b": "STACK_B_PORT", "admin": "ADMIN_PORT"}


@dataclass
class Services:
    processes: dict[str, Process]
    tokens: dict[str, str]
    """Of a caller who may do everything there, by surface."""
    run_id: str
    """One that has ended."""


@asynccontextmanager
async def services(home: Path) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(cloned())
        key, public, dsn, control = (home / name for name in ("issuer.pem", "jwks.json", "dsn", "control-dsn"))
        public.write_text(json.dumps(issuer.jwks(issuer.generate_key(key))))
        dsn.write_text(database.app)
        control.write_text(database.control)
        given, config = Given(clock=SystemClock()), PostgresConfig(dsn=database.app)
        tenants = await stack.enter_async_context(tenant.SPEC.open(PostgresConfig(dsn=database.control), given))
        generous = Entitlements(
            tokens_per_day=10**12, runs_per_minute=1_000_000, max_queued_runs=10_000_000, max_active_runs=1_000
        )
        await tenants.create(PLATFORM, ACME.tenant, name="Acme", entitlements=generous)
        await tenants.create(PLATFORM, TenantId(SUBJECT), name="Subject", entitlements=Entitlements())
        agents = await stack.enter_async_context(agent.SPEC.open(config, given))
        await agents.publish(ACME, AgentSpec(id=AgentId("agt_demo"), model="agentos-demo", instructions="Answer."))
        runs = await stack.enter_async_context(run_state.SPEC.open(config, given))
        worker = WorkerId("wrk_schemas")
        await runs.renew(NODE, worker, timedelta(hours=1))
        made = (await runs.create(ACME, new_run())).run
        await runs.append(ACME, made.id, (await runs.claim(ACME, made.id, worker)).epoch, SUCCEEDED)
        signing = issuer.IssuerConfig(private_key_file=str(key), issuer=ISSUER)
        mint = await stack.enter_async_context(issuer.SPEC.open(signing, given))
        everything = scopes_of("platform_admin")
        who = replace(ACME, scopes=everything)
        tokens = {
            surface: mint.mint(who, audience=audience, scopes=everything, lifetime=timedelta(hours=1))
            for surface, audience in SURFACES.items()
        }
        processes = {}
        for surface, port in zip(SURFACES, free_ports(len(SURFACES)), strict=True):
            processes[surface] = Process(
                f"deploy.roots.{_MODULES[surface]}",
                {
                    "AGENTOS_MODE": "dev",
                    "AGENTOS_DATABASE_URL_FILE": str(control if surface == "admin" else dsn),
                    "AGENTOS_EXPORTS_DIR": str(home / "exports"),
                    "AGENTOS_ISSUER": ISSUER,
                    "AGENTOS_JWKS_FILE": str(public),
                    f"AGENTOS_{_PORTS[surface]}": str(port),
                    "PYTHONPATH": str(ROOT),
                },
                home / f"{surface}.log",
                port=port,
            )
            stack.push_async_callback(processes[surface].end)
            await processes[surface].start()
        yield Services(processes, tokens, made.id)
