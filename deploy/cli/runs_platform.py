"""`agentos runs kill`, and `runs list --as-operator`: for the platform, in any tenant, also one that is disabled."""

import argparse
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from deploy.administration.platform import Platform
from deploy.administration.wire import RunLine, run_line
from deploy.cli.access import run_of, tenant_id, whole
from deploy.cli.io import FINE, Io
from deploy.cli.platform_access import with_platform
from deploy.cli.run_command import money
from deploy.internal import operator_of
from ports.context import DEFAULT_NAMESPACE
from ports.errors import InvalidArgument
from ports.ids import RunId, TenantId
from ports.run_state import MAX_PAGE, TERMINAL, Run, RunFilter, RunStatus

OPEN: tuple[RunStatus, ...] = ("queued", "running", "waiting", "needs_operator")
ENDED_OTHERWISE: Final = frozenset({"succeeded", "failed"})
"""What a run is that a cancel came too late for."""
TOO_LATE: Final = "It had ended before; nothing was changed."


class Kill(Struct, frozen=True, kw_only=True):
    tenant: str
    namespace: str
    run_id: str
    all: bool
    reason: str
    json: bool


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    killed = verbs.add_parser("kill", help="end a run at once, whoever holds it; for the platform", allow_abbrev=False)
    killed.add_argument("run_id", nargs="?", default="")
    killed.add_argument("--all", action="store_true", help="every run of the tenant that is not over")
    killed.add_argument("--tenant", required=True, help="whose")
    killed.add_argument("--namespace", default=DEFAULT_NAMESPACE, help=f"({DEFAULT_NAMESPACE})")
    killed.add_argument("--reason", default="", help="why; told in its last event")
    killed.add_argument("--json", action="store_true", help="print as JSON")
    killed.set_defaults(run=kill, options=_options)


def _options(parsed: argparse.Namespace) -> Kill:
    return Kill(
        tenant=parsed.tenant,
        namespace=parsed.namespace,
        run_id=parsed.run_id,
        all=parsed.all,
        reason=parsed.reason,
        json=parsed.json,
    )


def kill(options: Kill, io: Io) -> int:
    name = tenant_id(options.tenant)
    if options.all == bool(options.run_id):
        raise InvalidArgument("name one run, or --all")

    async def act(platform: Platform) -> list[Run]:
        operator = operator_of(name)
        await platform.tenants.get(operator, name)
        ids = [RunId(options.run_id)] if options.run_id else await _open(platform, name, options.namespace)
        with run_of(name):
            return [
                await platform.administration.kill(
                    operator, name, run_id, reason=options.reason, namespace=options.namespace
                )
                for run_id in ids
            ]

    killed = with_platform(io, act)
    if options.json:
        io.json({"tenant_id": name, "runs": [RunLine(**run_line(run)) for run in killed]})
        return FINE
    for run in killed:
        io.out.write(f"{run.id} is {run.status}\n")
        if run.status in ENDED_OTHERWISE:
            io.say(TOO_LATE)
    if options.all:
        io.say(f"{len(killed)} runs of {name} were open")
    return FINE


async def _open(platform: Platform, tenant: TenantId, namespace: str) -> list[RunId]:
    reading = replace(operator_of(tenant), namespace=namespace)
    found: list[RunId] = []
    for status in OPEN:
        cursor: str | None = None
        while True:
            page = await platform.runs.list_runs(reading, RunFilter(status=status), limit=MAX_PAGE, cursor=cursor)
            found += [run.id for run in page.items if run.status not in TERMINAL]
            cursor = page.next_cursor
            if cursor is None:
                break
    return found


def list_as_operator(io: Io, *, tenant: str, where: RunFilter, limit: int, as_json: bool) -> int:
    name = tenant_id(tenant)
    whole("--limit", limit, least=1, most=MAX_PAGE)

    async def act(platform: Platform) -> tuple[Run, ...]:
        operator = operator_of(name)
        await platform.tenants.get(operator, name)
        return (await platform.runs.list_runs(operator, where, limit=limit)).items

    lines = [RunLine(**run_line(run)) for run in with_platform(io, act)]
    if as_json:
        io.json({"tenant_id": name, "runs": lines})
        return FINE
    io.columns(
        ("RUN", "STATUS", "AGENT", "PRINCIPAL", "CREATED", "TOKENS", "COST"),
        (
            (
                one.run_id,
                one.status,
                one.agent_id,
                one.principal_id,
                f"{one.created_at:%Y-%m-%d %H:%M:%S}",
                f"{one.total_tokens:,}",
                money(one.cost_nanousd),
            )
            for one in lines
        ),
    )
    return FINE
