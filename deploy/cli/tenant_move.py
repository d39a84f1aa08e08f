"""`agentos tenant move`: where a tenant lives, and taking it elsewhere while it works."""

import argparse
import asyncio
from datetime import timedelta
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from adapters.postgres.move import (
    FREEZE_S,
    GRACE,
    Plan,
    abort_move,
    clear_remains,
    move_tenant,
    plan_move,
)
from adapters.postgres.move_job import Report, Step
from deploy.cli.access import tenant_id
from deploy.cli.io import FINE, Io
from deploy.homes import places_of
from deploy.internal import operator_of
from ports.errors import InvalidArgument

MOST_FREEZE_S: Final = 60.0
MOST_GRACE_HOURS: Final = 24 * 365
_TOLD_EVERY: Final = 20
"""Stretches of a table; each is some hundred rows."""
_SAID: Final = {
    "marked": "marked as leaving; it works on",
    "guarded": "its writes are noted from now on",
    "frozen": "its writers wait",
    "compared": "what was copied is what there is",
    "written": "written there",
    "left": "switched",
    "directed": "the directory says so",
    "opened": "workers there take its runs",
}

_EPILOG: Final = """\
examples:
  ./agentos tenant move tnt_acme                            where it lives
  ./agentos tenant move tnt_acme --to eu1 --dry-run         how many rows, and how long its writers would wait
  ./agentos tenant move tnt_acme --to eu1                   move it, or go on with a move that was killed
  ./agentos tenant move tnt_acme --abort                    until the switch: it stays where it is
  ./agentos tenant move tnt_acme --clear                    a day later: remove what was left behind
  ./agentos tenant move tnt_acme --to shared                back

Its audit stays where it was written; ./agentos audit reads, checks and signs all of it.
Something is wrong: runbooks/tenant-move.md.

Exit codes: 0 done · 1 refused, nothing has changed for the tenant · 2 usage ·
3 a database does not answer, or the switch took longer than allowed"""

Deed: TypeAlias = Literal["look", "plan", "move", "abort", "clear"]


class MoveIt(Struct, frozen=True, kw_only=True):
    tenant: str
    deed: Deed
    to: str
    freeze_s: float
    grace: timedelta
    json: bool


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "move",
        help="where a tenant lives, and taking it to another database while it works",
        description="Where a tenant lives, and taking it to another database while it works (docs/homes.md).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("tenant")
    deed = parser.add_mutually_exclusive_group()
    deed.add_argument(
        "--to", metavar="HOME", help="move it there, or go on with a move; see AGENTOS_HOMES; shared = back"
    )
    deed.add_argument("--abort", action="store_true", help="take back a move that has not come to its switch")
    deed.add_argument("--clear", action="store_true", help="remove what a move has left in the old home")
    parser.add_argument("--dry-run", action="store_true", help="with --to: say what would be moved, and change nothing")
    parser.add_argument(
        "--freeze-seconds",
        type=float,
        default=FREEZE_S,
        metavar="S",
        help=f"how long its writers may wait at the switch ({FREEZE_S:g}); else it is taken back and tried again",
    )
    parser.add_argument(
        "--grace-hours",
        type=int,
        default=int(GRACE.total_seconds() // 3600),
        metavar="H",
        help="with --clear: how long ago it must have left (24)",
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=move, options=_options)


def _options(parsed: argparse.Namespace) -> MoveIt:
    if parsed.dry_run and parsed.to is None:
        raise InvalidArgument("--dry-run goes with --to")
    if not 0 < parsed.freeze_seconds <= MOST_FREEZE_S:
        raise InvalidArgument(f"--freeze-seconds must be above 0 and at most {MOST_FREEZE_S:g}")
    if not 0 <= parsed.grace_hours <= MOST_GRACE_HOURS:
        raise InvalidArgument(f"--grace-hours must be from 0 to {MOST_GRACE_HOURS:,}")
    deed: Deed = "look"
    if parsed.to is not None:
        deed = "plan" if parsed.dry_run else "move"
    elif parsed.abort:
        deed = "abort"
    elif parsed.clear:
        deed = "clear"
    return MoveIt(
        tenant=parsed.tenant,
        deed=deed,
        to=parsed.to or "",
        freeze_s=parsed.freeze_seconds,
        grace=timedelta(hours=parsed.grace_hours),
        json=parsed.json,
    )


def move(options: MoveIt, io: Io) -> int:
    tenant = tenant_id(options.tenant)
    places = places_of(io.node, io.config())
    operator = operator_of(tenant)
    tell = _Telling(io)

    async def act() -> Plan | Report:
        match options.deed:
            case "move":
                return await move_tenant(
                    operator, tenant, options.to, places, tell=tell.told, freeze_s=options.freeze_s
                )
            case "abort":
                return await abort_move(operator, tenant, places, tell=tell.told)
            case "clear":
                return await clear_remains(operator, tenant, places, tell=tell.told, grace=options.grace)
            case "plan":
                places.dsn(options.to)
                return await plan_move(operator, tenant, options.to, places)
            case "look":
                return await plan_move(operator, tenant, None, places)

    found = asyncio.run(act())
    if options.json:
        io.json(found)
    elif isinstance(found, Plan):
        _show_plan(found, options, io)
    else:
        _show_report(found, options, io)
    return FINE


class _Telling:
    """Says how far it is; of the copy not every stretch."""

    def __init__(self, io: Io) -> None:
        self._io = io
        self._stretches: dict[str, int] = {}

    async def told(self, step: Step) -> None:
        if step.point in ("copied", "cleared"):
            many = self._stretches[step.table] = self._stretches.get(step.table, 0) + 1
            if many % _TOLD_EVERY == 1:
                self._io.say(f"… {step.table}: {step.point}, stretch {many:,}")
        elif step.point == "caught_up":
            self._io.say(f"… caught up with {step.rows:,} changes")
        elif step.point == "left":
            self._io.say(f"… switched; its writers waited for {step.seconds:.2f} s")
        else:
            self._io.say(f"… {_SAID[step.point]}")


def _show_plan(plan: Plan, options: MoveIt, io: Io) -> None:
    io.out.write(f"{plan.tenant} lives in {plan.home}\n")
    for remark in plan.remarks:
        io.out.write(f"{remark}\n")
    if options.deed == "look":
        return
    io.columns(("TABLE", "ROWS"), ((name, f"{rows:,}") for name, rows in plan.rows.items()))
    io.say(
        f"To {plan.to}: {sum(plan.rows.values()):,} rows. Comparing them at the switch takes about {plan.compare_s:.2f} s, "
        f"which its writers wait for; {options.freeze_s:g} s are allowed. The audit stays where it was written."
    )


def _show_report(report: Report, options: MoveIt, io: Io) -> None:
    io.out.write(f"{report.done}\n")
    if options.deed == "move" and report.rows:
        io.say(
            f"{sum(report.rows.values()):,} rows, equal by count and checksum in {len(report.rows)} tables; its writers "
            f"waited for {report.frozen_s:.2f} s. Remains in {report.source}: ./agentos tenant move {report.tenant} --clear"
        )
