"""`agentos budget set|list|show|remove`: what a tenant may spend, and what of it is spent, held and left."""

import argparse
from collections.abc import Iterable
from typing import Final, get_args

from msgspec import Struct

from deploy.administration.platform import Platform
from deploy.administration.standing import budgets_of
from deploy.administration.wire import BudgetView
from deploy.cli.access import tenant_id
from deploy.cli.io import FINE, Io
from deploy.cli.platform_access import with_platform
from deploy.internal import operator_of
from ports.budget import Budget, Mode, Period, Scope, Unit
from ports.errors import NotFound

_EPILOG: Final = """\
examples:
  ./agentos budget list tnt_acme
  ./agentos budget set tnt_acme monthly --limit 50000000000 --unit nanousd --period month --tz Europe/Berlin
  ./agentos budget set tnt_acme each-key --limit 200000 --scope key           each key has this much for itself
  ./agentos budget set tnt_acme night --limit 1000 --scope agent --scope-id agt_night --mode soft
  ./agentos budget show tnt_acme each-key --scope-id svc_shop                 the window of that key
  ./agentos budget remove tnt_acme monthly

While a hard budget in nanousd applies to a call, models without a price are refused to it (403, model_not_entitled)."""


class Set(Struct, frozen=True, kw_only=True):
    tenant: str
    budget: Budget
    json: bool


class Named(Struct, frozen=True, kw_only=True):
    tenant: str
    budget: str
    scope_id: str
    json: bool


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "budget",
        help="set, list, show and remove what tenants may spend",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    made = verbs.add_parser("set", help="make or change a budget; its windows stay", allow_abbrev=False)
    listed = verbs.add_parser("list", help="all of a tenant's", allow_abbrev=False)
    shown = verbs.add_parser("show", help="one", allow_abbrev=False)
    removed = verbs.add_parser("remove", help="end one", allow_abbrev=False)
    for verb in (made, listed, shown, removed):
        verb.add_argument("tenant")
    for verb in (made, shown, removed):
        verb.add_argument("budget", help="its id: small letters, digits, - or _")
    for verb in (listed, shown):
        verb.add_argument("--scope-id", default="", help="whose window, of those that each has for itself")
    made.add_argument("--limit", type=int, required=True, help="in its unit; 0 allows nothing")
    choices = (("scope", Scope, "tenant"), ("unit", Unit, "tokens"), ("period", Period, "day"), ("mode", Mode, "hard"))
    for flag, kind, default in choices:
        made.add_argument(f"--{flag}", choices=get_args(kind), default=default, help=f"({default})")
    made.add_argument("--scope-id", default="", help="which key, agent, session or tier; each of them unless named")
    made.add_argument("--tz", default="UTC", help="in which windows begin (UTC)")
    made.set_defaults(run=set_budget, options=_set_options)
    for verb, act in ((listed, list_budgets), (shown, show), (removed, remove)):
        verb.set_defaults(run=act, options=_named_options)
    for verb in (made, listed, shown, removed):
        verb.add_argument("--json", action="store_true", help="print as JSON")


def _set_options(parsed: argparse.Namespace) -> Set:
    budget = Budget(
        id=parsed.budget,
        limit=parsed.limit,
        scope=parsed.scope,
        scope_id=parsed.scope_id,
        unit=parsed.unit,
        period=parsed.period,
        tz=parsed.tz,
        mode=parsed.mode,
    )
    return Set(tenant=parsed.tenant, budget=budget, json=parsed.json)


def _named_options(parsed: argparse.Namespace) -> Named:
    return Named(
        tenant=parsed.tenant,
        budget=getattr(parsed, "budget", ""),
        scope_id=getattr(parsed, "scope_id", ""),
        json=parsed.json,
    )


def set_budget(options: Set, io: Io) -> int:
    name = tenant_id(options.tenant)

    async def act(platform: Platform) -> BudgetView:
        operator = operator_of(name)
        tenant = await platform.tenants.get(operator, name)
        await platform.budget.set_budget(operator, name, options.budget)
        return _one(await budgets_of(platform.budget, operator, tenant), options.budget.id)

    return _told([with_platform(io, act)], io, as_json=options.json, many=False)


def list_budgets(options: Named, io: Io) -> int:
    return _told(_all(options, io), io, as_json=options.json, many=True)


def show(options: Named, io: Io) -> int:
    return _told([_one(_all(options, io), options.budget)], io, as_json=options.json, many=False)


def remove(options: Named, io: Io) -> int:
    name = tenant_id(options.tenant)

    async def act(platform: Platform) -> None:
        await platform.budget.remove_budget(operator_of(name), name, options.budget)

    with_platform(io, act)
    if options.json:
        io.json({"tenant_id": name, "removed": options.budget})
    else:
        io.out.write(f"{name} has no budget {options.budget} any more\n")
    return FINE


def _all(options: Named, io: Io) -> tuple[BudgetView, ...]:
    name = tenant_id(options.tenant)

    async def act(platform: Platform) -> tuple[BudgetView, ...]:
        operator = operator_of(name)
        tenant = await platform.tenants.get(operator, name)
        return await budgets_of(platform.budget, operator, tenant, scope_id=options.scope_id)

    return with_platform(io, act)


def _one(views: Iterable[BudgetView], budget: str) -> BudgetView:
    for view in views:
        if view.budget.id == budget:
            return view
    raise NotFound(f"there is no budget {budget!r}; ./agentos budget list names them")


def _told(views: Iterable[BudgetView], io: Io, *, as_json: bool, many: bool) -> int:
    shown = tuple(views)
    if as_json:
        io.json({"budgets": shown} if many else shown[0])
        return FINE
    io.columns(("BUDGET", "OF", "WINDOW", "MODE", "UNIT", "LIMIT", "SPENT", "HELD", "LEFT", "UNTIL"), map(_line, shown))
    return FINE


def _line(view: BudgetView) -> tuple[str, ...]:
    budget, window = view.budget, view.window
    of = budget.scope if budget.scope == "tenant" else f"{budget.scope} {budget.scope_id or '(each)'}"
    zone = "" if budget.tz == "UTC" else f" {budget.tz}"
    figures = ("-",) * 4
    if window is not None:
        until = "-" if window.end is None else f"{window.end:%Y-%m-%d %H:%M}"
        figures = (f"{window.spent:,}", f"{window.held:,}", f"{window.left:,}", until)
    return (budget.id, of, budget.period + zone, budget.mode, budget.unit, f"{budget.limit:,}", *figures)
