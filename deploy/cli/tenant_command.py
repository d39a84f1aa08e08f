"""`agentos tenant create|list|quota|policy|move|enable|disable`; the other verbs are in `tenant_life`."""

import argparse
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct

from deploy.cli.access import tenant_id, whole, with_directory
from deploy.cli.io import FINE, Io
from deploy.cli.tenant_life import add_verbs as add_life
from deploy.cli.tenant_move import add_verb as add_move
from deploy.cli.tenant_policy import add_verb as add_policy
from deploy.config import MAX_TOKENS_PER_DAY, Config
from deploy.credentials import SeededKey
from deploy.internal import OPERATOR, Directory, operator_of
from deploy.seed import demo_agent, issue
from ports.agent import AgentSpec
from ports.errors import InvalidArgument
from ports.ids import PrincipalId, TenantId
from ports.pii import PiiMode
from ports.run_state import MAX_PAGE
from ports.tenant import ALL_MODELS, MAX_KEPT_DAYS, Entitlements, StorePrompts, Tenant, check_entitlements
from stack_b.backends.demo import CHAT_MODEL

# Member of `Entitlements` and flag, with what it means.
_QUOTA: Final = {
    "tokens_per_day": "hard model-token budget per UTC day",
    "max_active_runs": "runs running at a time; others wait",
    "runs_per_minute": "creations of runs; a minute's worth may come at once",
    "max_queued_runs": "runs waiting to be started",
    "requests_per_minute": "requests of the API, and as many of the gateway; a minute's worth may come at once",
    "max_event_streams": "streams of runs' events open at a time",
    "max_event_streams_per_principal": "the same, of each of its principals",
    "max_model_streams": "streamed answers of models at a time",
    "max_model_streams_per_principal": "the same, of each of its principals",
    "weight": "share of the workers while tenants wait for them, relative to the others' weights",
}
_NAMES: Final = {
    "tiers": "tiers it may ask for",
    "backends": "backends that may see its requests",
    "regions": "where its requests may be seen, by what backends declare",
    "egress_hosts": "hosts that calls made for it may go to: names, or *.example.com for all below",
}
_MODES: Final = get_args(PiiMode)
_PII: Final = f"what becomes of personal data, by class: {', '.join(_MODES)}"
_STORE: Final = f"keep prompts and answers so long, redacted and sealed: 1 to {MAX_KEPT_DAYS} days, or 0 for not at all"
_EPILOG: Final = """\
examples:
  ./agentos tenant create tnt_acme --name "Acme" --admin-key --sample-agent
  ./agentos tenant create tnt_small --tokens-per-day 10000 --models small-model
  ./agentos tenant list
  ./agentos tenant quota tnt_acme         what it is entitled to; with flags, changes it
  ./agentos tenant quota tnt_acme --max-active-runs 200 --weight 3
  ./agentos tenant quota tnt_acme --pii email=reversible,secret=block
  ./agentos tenant quota tnt_acme --store-prompts 30     keep prompts and answers for 30 days, redacted and sealed; 0: none
  ./agentos tenant quota tnt_acme --backends eu-1,eu-2 --regions eu --tiers standard
  ./agentos tenant quota tnt_acme --egress-hosts api.example.com,*.example.org     where calls made for it may go
  ./agentos tenant policy tnt_acme --file policy.json     see docs/policies.md
  ./agentos tenant move tnt_acme --to eu1 --dry-run      to a database of its own while it works, see docs/homes.md
  ./agentos tenant disable tnt_acme       refuses its keys and tokens within 5 s
  ./agentos tenant show tnt_acme          the same and what it is, in one
  ./agentos tenant entitle tnt_acme max_active_runs=7 models='["m-1"]'     members of the entitlements, as JSON
  ./agentos tenant export tnt_acme        all that there is of it, in one file
  ./agentos tenant delete tnt_acme --confirm tnt_acme     exports a disabled tenant, and removes it for good"""


class Create(Struct, frozen=True, kw_only=True):
    tenant: str
    name: str
    models: tuple[str, ...]
    quota: dict[str, Any]
    """Members of `Entitlements` that were given."""
    admin_key: bool
    sample_agent: bool
    json: bool


class ListAll(Struct, frozen=True, kw_only=True):
    json: bool


class Quota(Struct, frozen=True, kw_only=True):
    tenant: str
    quota: dict[str, Any]
    models: tuple[str, ...] | None
    json: bool


class SetStatus(Struct, frozen=True, kw_only=True):
    tenant: str
    status: Literal["active", "disabled"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "tenant",
        help="create, list, show, entitle, enable, disable, export and delete tenants",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    created = verbs.add_parser("create", help="make a tenant", allow_abbrev=False)
    created.add_argument("tenant", help="tnt_ and small letters, digits, - or _")
    created.add_argument("--name", default="", help="for people")
    created.add_argument("--models", default=ALL_MODELS, help="model ids it may use, with commas (all)")
    _add_quota(created)
    created.add_argument("--admin-key", action="store_true", help="also issue a key for its admin, and print it once")
    created.add_argument("--sample-agent", action="store_true", help="also publish the sample agent, agt_demo, in it")
    created.add_argument("--json", action="store_true", help="print as JSON")
    created.set_defaults(run=create, options=_create_options)
    listed = verbs.add_parser("list", help="every tenant of the node")
    listed.add_argument("--json", action="store_true", help="print as JSON")
    listed.set_defaults(run=list_all, options=lambda parsed: ListAll(json=parsed.json))
    quota_of = verbs.add_parser("quota", help="show or change what a tenant is entitled to", allow_abbrev=False)
    quota_of.add_argument("tenant")
    quota_of.add_argument("--models", help="model ids it may use, with commas; * for all")
    _add_quota(quota_of)
    quota_of.add_argument("--json", action="store_true", help="print as JSON")
    quota_of.set_defaults(run=quota, options=_quota_options)
    add_policy(verbs)
    add_life(verbs)
    add_move(verbs)
    for verb, status in (("enable", "active"), ("disable", "disabled")):
        changed = verbs.add_parser(verb, help=f"make a tenant {status}")
        changed.add_argument("tenant")
        changed.set_defaults(
            run=set_status, options=lambda parsed, to=status: SetStatus(tenant=parsed.tenant, status=to)
        )


def _add_quota(parser: argparse.ArgumentParser) -> None:
    for name, meaning in _QUOTA.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=meaning)
    parser.add_argument("--store-prompts", type=int, metavar="DAYS", help=_STORE)
    for name, meaning in _NAMES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="NAME,…", help=f"{meaning}; * for all")
    parser.add_argument("--pii", metavar="CLASS=MODE,…", help=_PII)


def _quota_given(parsed: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any] = {name: value for name in _QUOTA if (value := getattr(parsed, name)) is not None}
    if "tokens_per_day" in given:
        whole("--tokens-per-day", given["tokens_per_day"], least=0, most=MAX_TOKENS_PER_DAY)
    for name in _NAMES:
        if (told := getattr(parsed, name)) is not None:
            given[name] = _listed(f"--{name.replace('_', '-')}", told)
    if parsed.pii is not None:
        given["pii"] = _pii(parsed.pii)
    if parsed.store_prompts is not None:
        days = whole("--store-prompts", parsed.store_prompts, least=0, most=MAX_KEPT_DAYS)
        given["store_prompts"] = StorePrompts(retention_days=days) if days else None
    check_entitlements(msgspec.structs.replace(Entitlements(), **given))
    return given


def _pii(text: str) -> dict[str, str]:
    pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or not all(kind and mode in _MODES for kind, _, mode in pairs):
        raise InvalidArgument(f"--pii takes classes and modes, as in email=reversible,secret=block; {_PII}")
    return {kind: mode for kind, _, mode in pairs}


def _models(text: str) -> tuple[str, ...]:
    return _listed("--models", text)


def _listed(flag: str, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        what = flag.removeprefix("--")
        raise InvalidArgument(f"{flag} names no {what[:-1]}; write them with commas, or leave it out for all {what}")
    return names


def _quota_options(parsed: argparse.Namespace) -> Quota:
    models = None if parsed.models is None else _models(parsed.models)
    return Quota(tenant=parsed.tenant, quota=_quota_given(parsed), models=models, json=parsed.json)


def _create_options(parsed: argparse.Namespace) -> Create:
    return Create(
        tenant=parsed.tenant,
        name=parsed.name or parsed.tenant.removeprefix("tnt_"),
        models=_models(parsed.models),
        quota=_quota_given(parsed),
        admin_key=parsed.admin_key,
        sample_agent=parsed.sample_agent,
        json=parsed.json,
    )


def create(options: Create, io: Io) -> int:
    name = tenant_id(options.tenant)
    config = io.config()
    entitlements = Entitlements(models=options.models, **{"tokens_per_day": config.tokens_per_day, **options.quota})

    sample = _sample_agent(options, config) if options.sample_agent else None

    async def act(directory: Directory) -> tuple[Tenant, SeededKey | None]:
        made = await directory.tenants.create(operator_of(name), name, name=options.name, entitlements=entitlements)
        if sample is not None:
            await directory.agents.publish(operator_of(name), sample)
        if not options.admin_key:
            return made, None
        admin = PrincipalId(f"usr_{name.removeprefix('tnt_')}_admin")
        return made, await issue(
            directory, name, principal=admin, role="tenant_admin", env=config.mode, label="tenant admin"
        )

    tenant, key = with_directory(io, act)
    if options.json:
        io.json({"tenant": tenant, "admin_key": key, "agent": sample})
        return FINE
    io.out.write(f"{tenant.id} is active: {tenant.entitlements.tokens_per_day:,} tokens a day\n")
    if key is not None:
        io.out.write(f"{key.api_key}\n")
        io.say(f"The key of {key.principal} (id {key.key_id}); it is shown this once.")
    else:
        io.say(f"Its keys: ./agentos key issue --tenant {tenant.id} --role tenant_admin")
    if sample is not None:
        io.say(f'Next: ./agentos run {sample.id} "What is 17.5 % of 2340?" --tenant {tenant.id}')
    else:
        io.say(f"Next: ./agentos agent publish <spec.json> --tenant {tenant.id}   (it has no agent yet)")
    return FINE


def _sample_agent(options: Create, config: Config) -> AgentSpec:
    """Raises `InvalidArgument` when the new tenant could not run it."""
    spec = demo_agent(config.demo_agent_model)
    if config.mode == "prod" and spec.model == CHAT_MODEL:
        raise InvalidArgument(
            f"--sample-agent uses the model {spec.model!r}, which prod does not serve; set AGENTOS_DEMO_AGENT_MODEL to one "
            "that it does, or publish an agent of your own with ./agentos agent publish"
        )
    if ALL_MODELS not in options.models and spec.model not in options.models:
        raise InvalidArgument(
            f"--sample-agent uses the model {spec.model!r}, which --models leaves out; add it there, or publish an agent "
            "of your own with ./agentos agent publish"
        )
    return spec


def list_all(options: ListAll, io: Io) -> int:
    async def act(directory: Directory) -> list[Tenant]:
        # The directory wants to know who asks; listing tenants names none of them.
        operator = operator_of(TenantId(f"tnt_{OPERATOR}"))
        found: list[Tenant] = []
        cursor: str | None = None
        while True:
            page = await directory.tenants.list_tenants(operator, limit=MAX_PAGE, cursor=cursor)
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                return found

    tenants = with_directory(io, act)
    if options.json:
        io.json(tenants)
        return FINE
    io.columns(
        ("TENANT", "NAME", "STATUS", "TOKENS/DAY", "MODELS", "CREATED"),
        (
            (
                tenant.id,
                tenant.name,
                tenant.status,
                f"{tenant.entitlements.tokens_per_day:,}",
                ", ".join(tenant.entitlements.models),
                f"{tenant.created_at:%Y-%m-%d %H:%M}",
            )
            for tenant in tenants
        ),
    )
    return FINE


def quota(options: Quota, io: Io) -> int:
    name = tenant_id(options.tenant)
    given = options.quota if options.models is None else {**options.quota, "models": options.models}

    async def act(directory: Directory) -> Tenant:
        operator = operator_of(name)
        known = await directory.tenants.get(operator, name)
        if not given:
            return known
        # A class that isn't named stays as it is.
        pii = {**known.entitlements.pii, **given.get("pii", {})}
        wanted = msgspec.structs.replace(known.entitlements, **{**given, "pii": pii})
        return await directory.tenants.set_entitlements(operator, name, wanted, if_match=known.version)

    tenant = with_directory(io, act)
    if options.json:
        io.json(tenant)
        return FINE
    rows = [
        (member.replace("_", " "), f"{getattr(tenant.entitlements, member):,}", _QUOTA[member]) for member in _QUOTA
    ]
    kept = tenant.entitlements.store_prompts
    pii = ", ".join(f"{kind}={mode}" for kind, mode in sorted(tenant.entitlements.pii.items()))
    io.columns(
        ("ENTITLEMENT", "VALUE", "WHAT IT IS"),
        (
            ("models", ", ".join(tenant.entitlements.models), "model ids it may use"),
            *((name, ", ".join(getattr(tenant.entitlements, name)), meaning) for name, meaning in _NAMES.items()),
            *rows,
            (
                "policy",
                tenant.entitlements.policy.version or "none",
                "its own rules; ./agentos tenant policy shows them",
            ),
            ("pii", pii or "redact all", _PII),
            ("store prompts", "no" if kept is None else f"{kept.retention_days} days", _STORE),
        ),
    )
    return FINE


def set_status(options: SetStatus, io: Io) -> int:
    name = tenant_id(options.tenant)

    async def act(directory: Directory) -> Tenant:
        return await directory.tenants.set_status(operator_of(name), name, options.status)

    tenant = with_directory(io, act)
    io.out.write(f"{tenant.id} is {tenant.status}\n")
    return FINE
