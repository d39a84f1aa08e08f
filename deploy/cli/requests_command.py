"""`agentos requests list|show` and `agentos usage`: what the gateway was asked, and what it cost."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from deploy import credentials
from deploy.cli.access import tenant_id, whole
from deploy.cli.io import FINE, Io
from deploy.cli.run_command import money
from deploy.internal import open_ledger, open_request_log, operator_of
from ports.budget import Spent
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.ids import TenantId
from ports.messages import Json
from ports.request_log import MAX_PAGE, Counted, RequestLog, RequestRecord
from stack_b.records.recorder import CONTENT
from stack_b.vault import Vault, parse_keys

MAX_DAYS: Final = 366

_EPILOG: Final = """\
examples:
  ./agentos requests list --tenant tnt_acme --limit 50
  ./agentos requests list --tenant tnt_acme --denied         refused by policy or entitlement
  ./agentos requests show req_… --tenant tnt_acme
  ./agentos requests show req_… --tenant tnt_acme --texts    prompt and answer, where the tenant has them kept; audited
  ./agentos usage tnt_acme --days 7                          by day and model
  ./agentos usage tnt_acme --by-agent                        by day, model and agent"""

ResultT = TypeVar("ResultT")


class List(Struct, frozen=True, kw_only=True):
    tenant: str
    limit: int
    cursor: str | None
    denied: bool
    json: bool


class Show(Struct, frozen=True, kw_only=True):
    tenant: str
    request: str
    texts: bool
    json: bool


class Usage(Struct, frozen=True, kw_only=True):
    tenant: str
    days: int
    by_agent: bool = False
    json: bool


class Used(Struct, frozen=True, kw_only=True):
    """Of one day and model. Without a model: what was denied, and what was counted of calls that were lost."""

    day: date
    model: str
    requests: int
    denied: int
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "requests",
        help="what the model gateway was asked, and what it decided",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    listed = verbs.add_parser("list", help="the newest requests", allow_abbrev=False)
    listed.add_argument("--limit", type=int, default=20, help=f"at most so many, up to {MAX_PAGE} (20)")
    listed.add_argument("--cursor", help="go on from here: `next_cursor` of the page before")
    listed.add_argument("--denied", action="store_true", help="of those, only what policy or entitlement refused")
    listed.set_defaults(
        run=list_requests,
        options=lambda parsed: List(
            tenant=parsed.tenant, limit=parsed.limit, cursor=parsed.cursor, denied=parsed.denied, json=parsed.json
        ),
    )
    shown = verbs.add_parser("show", help="one request", allow_abbrev=False)
    shown.add_argument("request", metavar="REQUEST_ID")
    shown.add_argument("--texts", action="store_true", help="also its prompt and answer, if kept; noted in the audit")
    shown.set_defaults(
        run=show,
        options=lambda parsed: Show(tenant=parsed.tenant, request=parsed.request, texts=parsed.texts, json=parsed.json),
    )
    for verb in (listed, shown):
        verb.add_argument("--tenant", required=True, help="whose")
        verb.add_argument("--json", action="store_true", help="print as JSON")
    used = commands.add_parser(
        "usage", help="what a tenant's model requests were, and what they cost", allow_abbrev=False
    )
    used.add_argument("tenant")
    used.add_argument("--days", type=int, default=30, help="today and the days before it, up to 366 (30)")
    used.add_argument("--by-agent", action="store_true", help="tell agents apart; of what was paid only")
    used.add_argument("--json", action="store_true", help="print as JSON")
    used.set_defaults(
        run=usage,
        options=lambda parsed: Usage(
            tenant=parsed.tenant, days=parsed.days, by_agent=parsed.by_agent, json=parsed.json
        ),
    )


def list_requests(options: List, io: Io) -> int:
    whole("--limit", options.limit, least=1, most=MAX_PAGE)
    page = _asked(
        io,
        tenant_id(options.tenant),
        lambda log, auth: log.recent(auth, limit=options.limit, cursor=options.cursor),
    )
    items = [one for one in page.items if one.denied or not options.denied]
    if options.json:
        io.json({"requests": items, "next_cursor": page.next_cursor})
        return FINE
    io.columns(
        ("REQUEST", "AT", "PRINCIPAL", "ASKED", "SERVED BY", "STATUS", "TOKENS", "COST", "TOOK", "DECIDED"),
        (_line(one) for one in items),
    )
    if page.next_cursor is not None:
        io.say(f"More: --cursor {page.next_cursor}")
    return FINE


def show(options: Show, io: Io) -> int:
    async def act(log: RequestLog, auth: AuthContext) -> tuple[RequestRecord, bytes | None]:
        found = await log.find(auth, options.request)
        return found, await log.content(auth, options.request) if options.texts else None

    tenant = tenant_id(options.tenant)
    record, sealed = _asked(io, tenant, act)
    texts: Json = None
    if sealed is not None:
        texts = msgspec.json.decode(_vault(io).open(tenant, CONTENT, record.id, sealed))
    shown = {**msgspec.to_builtins(record), **({"texts": texts} if options.texts else {})}
    if options.json:
        io.json(shown)
    else:
        io.out.write(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() + "\n")
    return FINE


def usage(options: Usage, io: Io) -> int:
    whole("--days", options.days, least=1, most=MAX_DAYS)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=options.days - 1)
    tenant = tenant_id(options.tenant)
    if options.by_agent:
        return _by_agent(options, io, tenant, since)
    counted = _asked(io, tenant, lambda log, auth: log.counted(auth, since=since))
    lines = used(counted, asyncio.run(_spent(io, tenant, since)))
    if options.json:
        io.json({"tenant_id": options.tenant, "since": since, "usage": lines})
        return FINE
    io.columns(("DAY", "MODEL", "REQUESTS", "DENIED", "PROMPT", "COMPLETION", "COST"), map(_shown, lines))
    return FINE


def _by_agent(options: Usage, io: Io, tenant: TenantId, since: datetime) -> int:
    spent = asyncio.run(_spent(io, tenant, since, by_agent=True))
    if options.json:
        io.json({"tenant_id": options.tenant, "since": since, "usage": spent})
        return FINE
    io.columns(
        ("DAY", "MODEL", "AGENT", "CALLS", "PROMPT", "COMPLETION", "COST"),
        (
            (
                f"{one.day:%Y-%m-%d}",
                one.model or "(none)",
                one.agent or "(none)",
                f"{one.calls:,}",
                f"{one.prompt_tokens:,}",
                f"{one.completion_tokens:,}",
                money(one.cost_nanousd),
            )
            for one in spent
        ),
    )
    return FINE


def used(counted: Iterable[Counted], spent: Iterable[Spent]) -> list[Used]:
    """What was asked is the log's to say, what it has cost the ledger's: it has all that was booked, and nothing twice."""
    asked = {(one.day, one.model): one for one in counted}
    paid = {(one.day, one.model): one for one in spent}
    lines: list[Used] = []
    for day, model in sorted(asked.keys() | paid.keys()):
        count, sums = asked.get((day, model)), paid.get((day, model))
        lines.append(
            Used(
                day=day,
                model=model,
                requests=0 if count is None else count.requests,
                denied=0 if count is None else count.denied,
                prompt_tokens=0 if sums is None else sums.prompt_tokens,
                completion_tokens=0 if sums is None else sums.completion_tokens,
                cost_nanousd=0 if sums is None else sums.cost_nanousd,
            )
        )
    return lines


def _line(one: RequestRecord) -> tuple[str, ...]:
    tokens = one.prompt_tokens + one.completion_tokens
    decided = ", ".join(one.reasons) or one.decision or "-"
    how = " (joined)" if one.joined else " (replayed)" if one.replayed else ""
    return (
        one.id,
        f"{one.at:%Y-%m-%d %H:%M:%S}",
        one.principal,
        one.model_asked,
        (f"{one.backend}/{one.model}" if one.backend else "-") + how,
        f"{one.status} {one.code}".strip(),
        f"{tokens:,}",
        money(one.cost_nanousd),
        f"{one.latency_ms} ms",
        decided,
    )


def _shown(one: Used) -> tuple[str, ...]:
    return (
        f"{one.day:%Y-%m-%d}",
        one.model or "(none)",
        f"{one.requests:,}",
        f"{one.denied:,}",
        f"{one.prompt_tokens:,}",
        f"{one.completion_tokens:,}",
        money(one.cost_nanousd),
    )


async def _spent(io: Io, tenant: TenantId, since: datetime, *, by_agent: bool = False) -> tuple[Spent, ...]:
    async with open_ledger(io.node) as ledger:
        return await ledger.spent(operator_of(tenant), since=since, by_agent=by_agent)


def _asked(io: Io, tenant: TenantId, act: Callable[[RequestLog, AuthContext], Awaitable[ResultT]]) -> ResultT:
    async def acted() -> ResultT:
        async with open_request_log(io.node) as log:
            return await act(log, operator_of(tenant))

    return asyncio.run(acted())


def _vault(io: Io) -> Vault:
    path = io.node.secret(credentials.RECORD_KEYS)
    try:
        return parse_keys(path.read_text(encoding="utf-8"))
    except OSError:
        raise InvalidArgument(f"the keys that texts are sealed with are not at {path}; put that file back") from None
