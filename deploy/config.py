"""The settings of a node: flags, then `.agentos.env`, then the defaults below.

The process environment is no source of settings. It is read where a value *refers* to it (`env:NAME`), for
`AGENTOS_HOME`, which chooses the node, and nothing else: the same file gives the same node from every shell.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_type_hints

import msgspec
from msgspec import Meta, Struct

from deploy.home_settings import problems_of as home_problems
from deploy.roots.secret_references import check_secret, secrets_of_a_node
from ports.errors import InvalidArgument
from ports.secrets import is_reference
from stack_b.backends.demo import CHAT_MODEL
from stack_b.backends.settings import KINDS, parse_settings

PREFIX: Final = "AGENTOS_"
MASK: Final = "********"
MAX_TOKENS_PER_DAY: Final = 10**15
"""Beyond any need, and far from where the ledger's 64-bit sums end."""

Mode: TypeAlias = Literal["demo", "dev", "prod"]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65_535)]

_SECRET: Final = {"secret": True}
_REFERENCE: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENV_NAMES: Final = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One member per setting; in the file it is `AGENTOS_` and the name in capitals."""

    mode: Annotated[
        Mode, Meta(description="demo: seeded, demo model. dev: the same, verbose. prod: nothing seeded.")
    ] = "demo"
    profile: Annotated[Literal["local"], Meta(description="Which set of services; `local` is one machine.")] = "local"
    stack_a_host: Annotated[str, Meta(min_length=1, description="Address the public API listens on.")] = "127.0.0.1"
    stack_a_port: Annotated[Port, Meta(description="Port of the public API.")] = 8080
    stack_b_host: Annotated[str, Meta(min_length=1, description="Address the model gateway listens on.")] = "127.0.0.1"
    stack_b_port: Annotated[Port, Meta(description="Port of the model gateway.")] = 8081
    worker_port: Annotated[Port, Meta(description="Port of the worker's health and metrics, on loopback.")] = 8082
    admin_host: Annotated[str, Meta(min_length=1, description="Address the admin API listens on.")] = "127.0.0.1"
    admin_port: Annotated[Port, Meta(description="Port of the admin API.")] = 9080
    postgres_port: Annotated[Port, Meta(description="Port of the embedded PostgreSQL, on loopback.")] = 5433
    replicas: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000,
            description="Processes of each API, on all machines, that serve the same tenants: each gives away its part of"
            " the quotas of requests and streams.",
        ),
    ] = 1
    worker_concurrency: Annotated[int, Meta(ge=1, le=256, description="Runs one worker executes at a time.")] = 32
    queue_ack: Annotated[
        Literal["accept", "complete"],
        Meta(
            description="When a worker acknowledges a queued run's message: accept = once it has the run; complete = when "
            "the run needs no worker any more, for autoscalers that count unacknowledged messages."
        ),
    ] = "accept"
    retention_days: Annotated[
        int, Meta(ge=7, le=3_650, description="Ended runs, their events and keys are removed this long after creation.")
    ] = 90
    max_queue_depth: Annotated[
        int,
        Meta(ge=1, le=100_000_000, description="Runs queued, of all tenants, beyond which new ones are refused (503)."),
    ] = 100_000
    slow_database_ms: Annotated[
        int, Meta(ge=10, le=4_000, description="New runs are refused (503) while a look at the queue takes longer.")
    ] = 1_000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="How much the services log.")
    ] = "info"
    issuer: Annotated[str, Meta(min_length=1, description="`iss` of the tokens this node signs.")] = "urn:agentos:node"
    tokens_per_day: Annotated[
        int,
        Meta(ge=0, le=MAX_TOKENS_PER_DAY, description="Hard model-token budget per UTC day that a new tenant gets."),
    ] = 1_000_000
    demo_agent_model: Annotated[
        str, Meta(min_length=1, description="Model of the seeded agent; another one makes a new version of it.")
    ] = CHAT_MODEL
    database_url: Annotated[
        str,
        Meta(
            description="External PostgreSQL (role ao_app) as a reference, env:NAME or file:/path; empty = embedded.",
            extra=_SECRET,
        ),
    ] = ""
    database_owner_url: Annotated[
        str, Meta(description="The same database as role ao_owner, for migrations; a reference.", extra=_SECRET)
    ] = ""
    database_control_url: Annotated[
        str,
        Meta(description="The same database as role ao_control, for administration; a reference.", extra=_SECRET),
    ] = ""
    allow_embedded_postgres: Annotated[
        bool, Meta(description="Accept the embedded PostgreSQL in prod: one machine, no replica, backups are yours.")
    ] = False
    openai_api_key: Annotated[
        str, Meta(description="Key of an OpenAI-compatible model provider; a reference.", extra=_SECRET)
    ] = "env:OPENAI_API_KEY"
    openai_base_url: Annotated[str, Meta(description="Its base URL, or a reference; empty = the provider's own.")] = (
        "env:OPENAI_BASE_URL"
    )
    backends: Annotated[
        str,
        Meta(
            description="More model backends: a JSON list of {name, "
            f"kind ({' or '.join(KINDS)}; may be left out), base_url, api_key (reference), models}}."
        ),
    ] = ""
    gateway_file: Annotated[
        str,
        Meta(
            description="The gateway's configuration: path of a JSON file (docs/gateway.md), followed while it runs, and "
            "going before what is stored; empty = the newest stored version (./agentos gateway)."
        ),
    ] = ""
    gateway_env: Annotated[
        str,
        Meta(
            description="Names of environment variables, apart by commas, that a stored configuration of the gateway may "
            "refer to as env:NAME; read when `up` runs."
        ),
    ] = ""
    audit_copy: Annotated[
        str,
        Meta(
            description="A directory, best on another machine's disk, where the audit's signed heads are added as well; "
            "empty = only in the node's home."
        ),
    ] = ""
    secrets: Annotated[
        str,
        Meta(
            description='Where secret:name is read (docs/secrets.md): JSON such as {"adapter": "kv", "config": {"url": '
            '"https://bao.example", "token_file": "/etc/agentos/token"}}; empty = files in .agentos/gateway-secrets/.'
        ),
    ] = ""
    gateway_limits: Annotated[
        str,
        Meta(
            description='Caps of the gateway that differ (see its /openapi.json): JSON such as {"output_slice_tokens": 512}'
        ),
    ] = ""
    prices_file: Annotated[
        str,
        Meta(
            description="What models cost, by version: path of a JSON list of {model, valid_from, prompt, completion, "
            "cache_read, cache_write, reasoning}, in US dollars per million tokens; empty = as the backends say."
        ),
    ] = ""
    egress: Annotated[
        str,
        Meta(
            description="Where calls made for tenants may go, beside the public web (docs/egress.md): JSON such as "
            '{"allow_private": ["wiki.example:8443"], "ports": [80, 443]}; empty = nowhere.'
        ),
    ] = ""
    issuers_file: Annotated[
        str,
        Meta(
            description="Issuers of tokens that are trusted beside this node's own, by OpenID Connect: path of a JSON file "
            "(docs/identity.md), followed while it runs; empty = none."
        ),
    ] = ""
    tools_file: Annotated[
        str,
        Meta(description="Commands that agents may use as tools: path of a JSON file (docs/tools.md); empty = none."),
    ] = ""
    homes: Annotated[
        str,
        Meta(
            description="Databases that tenants may live in beside the node's (docs/homes.md): "
            "<name>=<port of its worker>,<reference for ao_app>,<reference for ao_owner>,<reference for ao_control>, or "
            "<name>=<port>,embedded; several apart by ;"
        ),
    ] = ""


class Effective(Struct, frozen=True, kw_only=True):
    """One setting as it stands, and where it came from."""

    key: str
    value: str
    origin: str
    description: str


class Resolved(Struct, frozen=True, kw_only=True):
    config: Config
    origins: dict[str, str]
    """Field name → `flag`, `<file>:<line>` or `default`."""


FIELDS: Final = Config.__struct_fields__
_DEFAULTS: Final = dict(zip(FIELDS, Config.__struct_defaults__, strict=True))


def key_of(field: str) -> str:
    return PREFIX + field.upper()


def description(field: str) -> str:
    return next(meta.description for meta in _metas(field) if meta.description)


def is_secret(field: str) -> bool:
    return any((meta.extra or {}).get("secret") for meta in _metas(field))


def default_text(field: str) -> str:
    return _text(_DEFAULTS[field])


def parse_file(path: Path) -> dict[str, tuple[str, str]]:
    """Field name → (value, `<file>:<line>`) of every setting in the file; an absent file has none.

    Raises:
        InvalidArgument: a line that is no setting, an unknown key, or a key given twice; it names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        place = f"{path.name}:{number}"
        key, equals, value = stripped.partition("=")
        key = key.rstrip()
        if not equals:
            raise InvalidArgument(f"{place}: expected KEY=value, found {key!r}")
        field = key.removeprefix(PREFIX).lower()
        if not key.startswith(PREFIX) or key != key_of(field) or field not in FIELDS:
            raise InvalidArgument(f"{place}: unknown key {key!r}{_meant(key)}")
        if field in found:
            raise InvalidArgument(f"{place}: {key} is already set in {found[field][1]}; keep one")
        found[field] = (_unquoted(value.strip()), place)
    return found


def resolve(flags: Mapping[str, str], file: Mapping[str, tuple[str, str]]) -> Resolved:
    """The effective settings.

    Raises:
        InvalidArgument: a value that is not allowed; it names the key and where it was set.
    """
    texts = {field: value for field, (value, _) in file.items()} | dict(flags)
    origins = dict.fromkeys(FIELDS, "default")
    origins |= {field: place for field, (_, place) in file.items()} | dict.fromkeys(flags, "flag")
    # One at a time, so that the message can say where the bad value was written.
    for field, text in texts.items():
        try:
            msgspec.convert({field: _word(field, text)}, Config, strict=False)
        except msgspec.ValidationError as error:
            reason = str(error).partition(" - at ")[0]
            raise InvalidArgument(f"{origins[field]}: {key_of(field)}={_shown(field, text)}: {reason}") from error
    return Resolved(
        config=msgspec.convert({field: _word(field, text) for field, text in texts.items()}, Config, strict=False),
        origins=origins,
    )


def explain(resolved: Resolved, environ: Mapping[str, str]) -> list[Effective]:
    """Every setting for people: secrets masked, references with whether they lead anywhere."""
    found = []
    for field in FIELDS:
        text = _text(getattr(resolved.config, field))
        shown = _shown(field, text)
        if _REFERENCE.fullmatch(text):
            shown += " (found)" if dereference(text, environ) else " (not set)"
        found.append(
            Effective(key=key_of(field), value=shown, origin=resolved.origins[field], description=description(field))
        )
    return found


def problems(config: Config) -> list[str]:
    """What no valid node may combine; each sentence says what to do. Empty when all is well."""
    found = []
    ports = [("stack_a_port", config.stack_a_port), ("stack_b_port", config.stack_b_port)]
    ports += [("worker_port", config.worker_port), ("postgres_port", config.postgres_port)]
    ports += [("admin_port", config.admin_port)]
    taken: dict[int, str] = {}
    for field, port in ports:
        if port in taken:
            found.append(f"{key_of(taken[port])} and {key_of(field)} are both {port}; give each its own port")
        taken[port] = field
    found += [
        f"AGENTOS_GATEWAY_ENV: {name!r} can't name an environment variable; write names apart by commas"
        for name in names_in(config.gateway_env)
        if not _NAME.fullmatch(name)
    ]
    if len({bool(config.database_url), bool(config.database_owner_url), bool(config.database_control_url)}) > 1:
        found.append(
            "an external database needs AGENTOS_DATABASE_URL (role ao_app), AGENTOS_DATABASE_OWNER_URL (role ao_owner, for"
            " migrations) and AGENTOS_DATABASE_CONTROL_URL (role ao_control, for administration); set all or none"
        )
    found += [
        f"{key_of(field)} must be a reference: write env:NAME or file:/path instead of the address and password"
        for field in ("database_url", "database_owner_url", "database_control_url")
        if getattr(config, field) and not _REFERENCE.fullmatch(getattr(config, field))
    ]
    found += home_problems(config.homes, taken, external=bool(config.database_url))
    try:
        secrets_of_a_node(config.secrets, "")
    except InvalidArgument as error:
        found.append(error.message)
    found += _backend_problems(config.backends, prod=config.mode == "prod")
    if config.mode == "prod":
        found += _prod_problems(config)
    return found


def dangling(config: Config, environ: Mapping[str, str]) -> list[str]:
    """Backends' keys that lead nowhere from this shell, for settings without `problems`; the gateway would not start."""
    found = []
    for backend in parse_settings(config.backends):
        if backend.api_key:
            try:
                check_secret(backend.api_key, environ)
            except InvalidArgument as error:
                found.append(
                    f"AGENTOS_BACKENDS: the api_key of backend {backend.name!r}: {error.message}; set it for this command"
                )
    return found


def dereference(text: str, environ: Mapping[str, str]) -> str:
    """What a reference leads to, or the text itself when it is none. Empty when it leads nowhere."""
    if text.startswith("env:"):
        return environ.get(text.removeprefix("env:"), "")
    if text.startswith("file:"):
        try:
            return Path(text.removeprefix("file:")).read_text(encoding="utf-8").strip()
        except OSError:
            return ""
    return text


def names_in(text: str) -> list[str]:
    """Names that are apart by commas, sorted."""
    return sorted({name.strip() for name in text.split(",") if name.strip()})


def referred_names(text: str) -> list[str]:
    """Names of the process environment that a JSON setting refers to, sorted."""
    return sorted(set(_ENV_NAMES.findall(text)))


def render_file(overrides: Mapping[str, str]) -> str:
    """A fresh `.agentos.env`: every key explained, only the overrides active."""
    lines = [
        "# The settings of this node. Written by `./agentos up`, yours to edit; `./agentos up` applies what changed.",
        "# Order: command-line flags, then this file, then the defaults (shown here behind a #).",
        "# Secrets are references, never values: env:NAME (read when `up` runs), file:/path; for backends secret:name.",
        "# `./agentos config explain` shows what is in force, and why.",
    ]
    for field in FIELDS:
        lines += ["", f"# {description(field)}"]
        if field in overrides:
            lines.append(f"{key_of(field)}={overrides[field]}")
        else:
            lines.append(f"#{key_of(field)}={default_text(field)}")
    return "\n".join(lines) + "\n"


def updated_file(text: str, overrides: Mapping[str, str]) -> str:
    """The file with the overrides set where the key already stands, active or behind a #, else at the end."""
    lines = text.splitlines()
    for field, value in overrides.items():
        key = key_of(field)
        setting = f"{key}={value}"
        places = [i for i, line in enumerate(lines) if re.match(rf"\s*{key}\s*=", line)]
        places += [i for i, line in enumerate(lines) if re.match(rf"\s*#\s*{key}\s*=", line)]
        if places:
            lines[places[0]] = setting
        else:
            lines.append(setting)
    return "\n".join(lines) + "\n"


def _metas(field: str) -> list[Meta]:
    hints = get_type_hints(Config, include_extras=True)
    return [meta for meta in hints[field].__metadata__ if isinstance(meta, Meta)]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _word(field: str, text: str) -> str:
    """Yes and no as people write them."""
    if not isinstance(_DEFAULTS[field], bool):
        return text
    return {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower(), text)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _shown(field: str, text: str) -> str:
    if is_secret(field) and text and not _REFERENCE.fullmatch(text):
        return MASK
    if field == "backends":
        return re.sub(r'("api_key"\s*:\s*)"(?!env:|file:|secret:)[^"]*"', rf'\1"{MASK}"', text)
    if "://" in text:
        return re.sub(r"://[^/@]*@", f"://{MASK}@", text)
    return text


def _meant(key: str) -> str:
    close = get_close_matches(key.upper(), [key_of(field) for field in FIELDS], n=1)
    return f"; did you mean {close[0]}?" if close else "; `./agentos config explain` lists the keys"


def _backend_problems(text: str, *, prod: bool) -> list[str]:
    """What would keep the gateway from starting, as the gateway itself reads it."""
    try:
        backends = parse_settings(text)
    except InvalidArgument as error:
        return [f"AGENTOS_BACKENDS: {error.message}"]
    found = [
        f"AGENTOS_BACKENDS: the api_key of backend {backend.name!r} must be a reference: env:NAME, file:/path, secret:name"
        for backend in backends
        if backend.api_key and not is_reference(backend.api_key)
    ]
    found += [
        f"AGENTOS_BACKENDS: backend {backend.name!r} is the demo backend, which prod does not serve; remove it"
        for backend in backends
        if prod and backend.kind == "demo"
    ]
    return found


def _prod_problems(config: Config) -> list[str]:
    found = []
    if not config.database_url and not config.allow_embedded_postgres:
        found.append(
            "prod needs a database of its own: set AGENTOS_DATABASE_URL and AGENTOS_DATABASE_OWNER_URL (references to an"
            " external PostgreSQL 18), or accept the embedded one on this machine with --allow-embedded-postgres"
        )
    if config.openai_api_key and not _REFERENCE.fullmatch(config.openai_api_key):
        found.append("prod takes secrets by reference only: write AGENTOS_OPENAI_API_KEY=env:NAME or file:/path")
    exposed = sorted({config.stack_a_host, config.stack_b_host, config.admin_host} - _LOOPBACK)
    if exposed:
        found.append(
            f"prod does not serve plain HTTP to a network ({', '.join(exposed)}): keep the hosts on 127.0.0.1 and put a"
            " TLS-terminating proxy in front"
        )
    return found
