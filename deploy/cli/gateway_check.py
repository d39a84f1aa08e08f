"""`agentos gateway check`: everything that is wrong with a configuration, and which names lead where."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import httpx
import msgspec
from msgspec import Struct

from deploy import gateway_file, plain_http
from deploy.catalogue import stack_b_url
from deploy.cli.io import FAILED, FINE, Io
from deploy.config import Config
from deploy.internal import open_gateway_configurations, operator_of
from ports.gateway_configuration import Version
from ports.ids import TenantId
from ports.messages import Json
from stack_b.backends.settings import BackendSettings, discovered, merged, parse_settings
from stack_b.configuration import MAX_FILE_BYTES, Configuration
from stack_b.diagnosis import Diagnosis, Diagnostic, diagnosed

OPERATOR: Final = operator_of(TenantId("tnt_system"))
_ANSWER_SECONDS: Final = 2.0


class Options(Struct, frozen=True, kw_only=True):
    file: str
    json: bool


class Named(Struct, frozen=True, kw_only=True):
    """A name that clients may ask for."""

    name: str
    is_a: str
    leads_to: tuple[str, ...]
    """`backend/model`, in the order they are tried; a backend whose models are not in the file is asked for them later."""


def run(options: Options, io: Io) -> int:
    config = io.config()
    stored = None
    if options.file or config.gateway_file:
        what = options.file or config.gateway_file
        diagnosis = in_file(Path(what), config, io)
    else:
        stored = asyncio.run(newest(io))
        what = f"version {stored.version}" if stored is not None else "what is in force, which is nothing of yours"
        facts = gateway_file.store_facts(config, io.node, io.environ)
        diagnosis = diagnosed({} if stored is None else stored.document, facts)
    found = diagnosis.configuration
    names = [] if found is None else names_of(found, backends_of(found, config, io.environ))
    running = gateway_of(config)
    if options.json:
        io.json(
            {
                "usable": found is not None,
                "version": "" if found is None else found.version,
                "diagnostics": diagnosis.diagnostics,
                "names": names,
                "canaries": () if found is None else found.routing.canaries,
                "policies": {} if found is None else {name: one.version for name, one in found.policies.items()},
                "gateway": running,
            }
        )
        return FAILED if found is None else FINE
    tell(io, diagnosis.diagnostics)
    if found is None:
        io.say(f"agentos: {what} can't be used; {len(diagnosis.diagnostics)} findings above")
        return FAILED
    io.columns(("NAME", "IS", "LEADS TO"), ((one.name, one.is_a, ", ".join(one.leads_to)) for one in names))
    for canary in found.routing.canaries:
        io.say(f"canary {canary.experiment}: {canary.percent:g} % of who asks for {canary.name} get {canary.model}")
    for name, policy in found.policies.items():
        io.say(f"policy {name}: {len(policy.rules)} rules for every tenant, version {policy.version}")
    io.say(f"usable; version {found.version}")
    if running:
        same = ", the same" if running.get("digest") == found.version else ""
        io.say(f"the gateway of this node goes by {running_text(running)}{same}")
    return FINE


def in_file(path: Path, config: Config, io: Io) -> Diagnosis:
    """As a file of this node; what a stored version could not say is a warning."""
    document = document_in(path)
    if not isinstance(document, Diagnostic):
        diagnosis = diagnosed(document, gateway_file.file_facts(config, io.environ))
        stored = diagnosed(document, gateway_file.store_facts(config, io.node, io.environ))
        if config.gateway_file or diagnosis.configuration is None or stored.configuration is not None:
            return diagnosis
        more = tuple(
            msgspec.structs.replace(one, severity="warning", message=f"not for `gateway apply`: {one.message}")
            for one in stored.diagnostics
            if one.severity == "error"
        )
        return msgspec.structs.replace(diagnosis, diagnostics=(*diagnosis.diagnostics, *more))
    return Diagnosis(configuration=None, diagnostics=(document,))


def document_in(path: Path) -> Json | Diagnostic:
    """The JSON in a file, or why there is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return _unread(f"{path}: {error.strerror}", "name a JSON file that holds a configuration")
    if len(raw) > MAX_FILE_BYTES:
        return _unread(f"{path} is over {MAX_FILE_BYTES:,} bytes", "a gateway's configuration is small")
    try:
        document: Json = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _unread(f"{path} is not usable as JSON: {error}", "docs/gateway.md shows one")
    return document


def tell(io: Io, diagnostics: Iterable[Diagnostic]) -> None:
    for one in diagnostics:
        hint = f"; {one.hint}" if one.hint else ""
        io.say(f"{one.severity}: {one.path}: {one.message}{hint} ({one.code})")


async def newest(io: Io) -> Version | None:
    async with open_gateway_configurations(io.node) as store:
        return await store.current(OPERATOR)


def gateway_of(config: Config) -> dict[str, Json]:
    """What the running gateway of this node says that it goes by; empty when it does not answer."""
    try:
        answer = plain_http.get(f"{stack_b_url(config)}/readyz", timeout=_ANSWER_SECONDS)
        found = answer.json().get("configuration", {})
    except (httpx.HTTPError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def running_text(running: Mapping[str, Json]) -> str:
    where = f"version {running.get('version')}" if running.get("source") == "store" else "its file"
    refused = ""
    if running.get("refused"):
        newer = f"version {running['refused_version']}" if running.get("refused_version") else "what the file says now"
        refused = f", because it can't use {newer} (./agentos logs stack-b)"
    return f"{where}, digest {running.get('digest')}{refused}"


def backends_of(found: Configuration, config: Config, environ: Mapping[str, str]) -> tuple[BackendSettings, ...]:
    explicit = (*found.backends, *parse_settings(config.backends))
    return merged(explicit, discovered(environ), demo=config.mode != "prod")


def names_of(found: Configuration, backends: tuple[BackendSettings, ...]) -> list[Named]:
    places: dict[str, list[str]] = {}
    for backend in backends:
        for model in backend.models:
            places.setdefault(model.id, []).append(f"{backend.name}/{model.upstream or model.id}")

    def where(name: str) -> tuple[str, ...]:
        return tuple(place for model in found.routing.models(name) for place in places.get(model, [f"?/{model}"]))

    named = [Named(name=name, is_a="alias", leads_to=where(name)) for name in sorted(found.routing.aliases)]
    named += [Named(name=name, is_a="tier", leads_to=where(name)) for name in sorted(found.routing.tiers)]
    named += [Named(name=name, is_a="model", leads_to=where(name)) for name in sorted(places)]
    return named


def _unread(message: str, hint: str) -> Diagnostic:
    return Diagnostic(code="unreadable", severity="error", path="$", message=message, hint=hint)
