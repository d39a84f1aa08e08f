"""`agentos requests list|show` and `agentos usage`: what the gateway was asked, and what it cost."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from deploy import credentials
from deploy.administration.platform import Platform
from deploy.administration.standing import first_moment, usage_of
from deploy.administration.wire import UsageLine
from deploy.cli.access import tenant_id, whole
from deploy.cli.io import FINE, Io, harmless_json
from deploy.cli.platform_access import with_platform
from deploy.cli.run_command import money
from deploy.internal import open_request_log, operator_of
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.ids import TenantId
from ports.messages import Json
from ports.request_log import MAX_PAGE, RequestLog, RequestRecord
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
        io.out.write(harmless_json(msgspec.json.format(msgspec.json.encode(shown), indent=2)) + "\n")
    return FINE


def usage(options: Usage, io: Io) -> int:
    whole("--days", options.days, least=1, most=MAX_DAYS)
    since = first_moment(datetime.now(UTC), options.days)
    name = tenant_id(options.tenant)

    async def act(platform: Platform) -> tuple[UsageLine, ...]:
        operator = operator_of(name)
        tenant = await platform.tenants.get(operator, name)
        return await usage_of(
            platform.budget, platform.requests, operator, tenant, since=since, by_agent=options.by_agent
        )

    lines = with_platform(io, act)
    if options.json:
        io.json({"tenant_id": options.tenant, "since": since, "usage": lines})
        return FINE
    counted = ("AGENT", "CALLS") if options.by_agent else ("REQUESTS", "DENIED")
    io.columns(("DAY", "MODEL", *counted, "PROMPT", "COMPLETION", "COST"), map(_shown, lines))
    return FINE


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


def _shown(one: UsageLine) -> tuple[str, ...]:
    # Requests are null where agents are told apart.
    agents = one.requests is None
    counted = (one.agent or "(none)", f"{one.calls:,}") if agents else (f"{one.requests:,}", f"{one.denied:,}")
    return (
        f"{one.day:%Y-%m-%d}",
        one.model or "(none)",
        *counted,
        f"{one.prompt_tokens:,}",
        f"{one.completion_tokens:,}",
        money(one.cost_nanousd),
    )


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
