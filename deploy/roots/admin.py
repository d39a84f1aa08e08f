"""Composition root of the admin API: `python -m deploy.roots.admin`."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapters.postgres.tenant_export import Export, export_subject, export_tenant
from adapters.system_clock import SystemClock
from adapters.token_auth.issuer import load_key
from deploy import audit_surface
from deploy.admin_surface import Part, create_admin_app
from deploy.administration import own_keys
from deploy.administration import part as administration
from deploy.administration.identity import part as identity_part
from deploy.administration.offboarding import Exporter, export_path
from deploy.administration.platform import Platform
from deploy.administration.privacy import SubjectExporter, subject_export_path
from deploy.audit_heads import HeadsFile
from deploy.audit_signer import Signer, signing
from deploy.roots.databases import database_of, homes_in
from deploy.roots.environment import Environment
from deploy.roots.gateway_secrets import check_reference
from deploy.roots.provided import check_provided
from deploy.roots.server import run, serve
from deploy.roots.tokens import verifier_of_a_node
from deploy.roots.wiring import Choice, choices_from, open_ports
from observability.instrument import instrument
from observability.logs import configure
from observability.metrics import Metrics
from ports.audit import AuditLog
from ports.clock import Clock
from ports.context import ADMIN_PLATFORM, AuthContext
from ports.errors import Unsupported
from ports.http.audit import ActingNotes, denials
from ports.http.edge import App
from ports.ids import PrincipalId, TenantId
from stack_b.administration import Administration
from stack_b.backends.settings import parse_settings
from stack_b.diagnosis import NodeFacts
from stack_b.http import admin as gateway

AUDIENCE = "admin"
STORED = ("tenant", "gateway_configuration", "run_state", "budget", "request_log", "administration", "privacy", "audit")

_SELF = AuthContext(
    tenant=TenantId("tnt_system"), principal=PrincipalId("svc_admin"), scopes=frozenset({ADMIN_PLATFORM})
)


def defaults(env: Environment) -> dict[str, Choice]:
    """The adapters of a node, unless `AGENTOS_ADAPTERS` says otherwise."""
    database = database_of(env)
    return {
        **{port: Choice(adapter="postgres", config=database) for port in STORED},
        **verifier_of_a_node(env, AUDIENCE),
    }


def facts(env: Environment) -> NodeFacts:
    """What a configuration must get along with. This process has no secret: of variables it knows which are set."""
    return NodeFacts(
        beside=parse_settings(env.text("BACKENDS")),
        prod=env.mode() == "prod",
        check_secret=lambda reference: check_reference(reference, env.variables),
        check_backend=check_provided,
    )


def overridden_by(env: Environment) -> str | None:
    file = env.text("GATEWAY_FILE")
    return remark_on(file) if file else None


def remark_on(file: str) -> str:
    """What to tell whoever changes the store while a file goes before it."""
    return f"this node's gateway follows the file {file}; to follow the store, empty AGENTOS_GATEWAY_FILE and run `up`"


def exporter(stored: Choice, folder: Path | None) -> Exporter:
    """Writes what there is of a tenant to a file on this machine."""

    async def export(tenant: TenantId) -> Export:
        dsn, directory = _where(stored, folder)
        target = export_path(directory, tenant, datetime.now(UTC))
        return await export_tenant(dsn, tenant, target, homes_in(stored.config))

    return export


def subject_exporter(stored: Choice, folder: Path | None) -> SubjectExporter:
    """Writes what there is of a principal to a file on this machine; sealed texts stay sealed, the keys are not here."""

    async def export(tenant: TenantId, subject: PrincipalId) -> Export:
        dsn, directory = _where(stored, folder)
        target = subject_export_path(directory, tenant, subject, datetime.now(UTC))
        return await export_subject(dsn, tenant, subject, target, homes_in(stored.config))

    return export


def _where(stored: Choice, folder: Path | None) -> tuple[str, Path]:
    dsn = stored.config.get("dsn")
    if folder is None or not isinstance(dsn, str):
        raise Unsupported("this node has nowhere to export to; name a directory in AGENTOS_EXPORTS_DIR")
    return dsn, folder


@asynccontextmanager
async def create(env: Environment, choices: Mapping[str, Choice], *, clock: Clock) -> AsyncIterator[App]:
    """The admin API over the chosen adapters, for as long as the block runs."""
    metrics = Metrics()

    def watched(name: str, port: Any) -> Any:  # any port, see `instrument`
        return instrument(name, port, metrics.port_call)

    needs = dict.fromkeys((*STORED, "verifier"))
    async with open_ports(choices, needs, clock=clock, wrap=watched) as ports:
        store = ports["gateway_configuration"]
        part = Part(
            routes=gateway.ROUTES,
            operations=gateway.OPERATIONS,
            limits=gateway.LIMITS,
            handlers=gateway.handlers(Administration(store, facts(env)), overridden_by=overridden_by(env)),
        )
        tenants = administration.part(
            Platform(
                tenants=ports["tenant"],
                runs=ports["run_state"],
                budget=ports["budget"],
                requests=ports["request_log"],
                administration=ports["administration"],
                privacy=ports["privacy"],
                audit=ports["audit"],
                export=exporter(choices["tenant"], env.path("EXPORTS_DIR")),
                export_subject=subject_exporter(choices["tenant"], env.path("EXPORTS_DIR")),
            )
        )
        probes = {"database": lambda: store.current(_SELF, newer_than=2**62)}
        identity = identity_part(ports["tenant"], env=env.mode())
        parts = (
            part,
            tenants,
            identity,
            own_keys.part(ports["tenant"], env=env.mode()),
            audit_surface.part(ports["audit"]),
        )
        app = create_admin_app(
            parts,
            verifier=ports["verifier"],
            metrics=metrics,
            probes=probes,
            denied=denials(ports["audit"]),
            acted=ActingNotes(ports["audit"], clock).acted,
        )
        async with signing_of(env, ports["audit"], clock):
            yield app


@asynccontextmanager
async def signing_of(env: Environment, log: AuditLog, clock: Clock) -> AsyncIterator[None]:
    """Signs the heads of the audit where this process was given a key."""
    key, directory = env.path("AUDIT_KEY_FILE"), env.path("AUDIT_DIR")
    if key is None or directory is None:
        yield
        return
    file = HeadsFile(directory, load_key(key), copy=env.path("AUDIT_COPY"))
    async with signing(Signer(log, file, clock)):
        yield


async def main(variables: Mapping[str, str]) -> None:
    env = Environment(variables)
    configure("admin", env.text("LOG_LEVEL", "INFO"))
    choices = choices_from(env.text("ADAPTERS"), defaults(env))
    async with create(env, choices, clock=SystemClock()) as app:
        host, port = env.text("ADMIN_HOST", "127.0.0.1"), env.number("ADMIN_PORT", 9080, least=1, most=65_535)
        await serve(app, host=host, port=port, handover=env.path("HANDOVER"))


if __name__ == "__main__":
    run(main(os.environ))
