"""`agentos gateway check`: what a configuration of the gateway would do, before it does."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from deploy import gateway_file
from deploy.cli.io import FAILED, FINE, Io
from deploy.config import Config
from ports.errors import InvalidArgument
from stack_b.backends.settings import BackendSettings, discovered, merged, parse_settings
from stack_b.configuration import Configuration, read_configuration

_EPILOG: Final = """\
  ./agentos gateway check                      the file of this node (AGENTOS_GATEWAY_FILE)
  ./agentos gateway check new.json             one that is not in force yet
Nothing is contacted or changed. A running gateway follows its file within seconds; what can't be used it refuses whole, and
goes on with what it had: `./agentos logs stack-b` says so. Exit 1: it can't be used, and why."""


class Options(Struct, frozen=True, kw_only=True):
    file: str
    json: bool


class Named(Struct, frozen=True, kw_only=True):
    """A name that clients may ask for."""

    name: str
    is_a: str
    leads_to: tuple[str, ...]
    """`backend/model`, in the order they are tried; a backend whose models are not in the file is asked for them later."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("gateway", help="check a configuration of the model gateway")
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    check = verbs.add_parser(
        "check",
        help="what a configuration would do; changes nothing",
        description="Read a configuration as the gateway would, and say which names lead where.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    check.add_argument("file", nargs="?", default="", help="a JSON file; not said, the node's own")
    check.add_argument("--json", action="store_true", help="print as JSON")
    check.set_defaults(run=run, options=lambda parsed: Options(file=parsed.file, json=parsed.json))


def run(options: Options, io: Io) -> int:
    config = io.config()
    if not options.file and not config.gateway_file:
        raise InvalidArgument("this node has no file for its gateway; set AGENTOS_GATEWAY_FILE, or name one to check")
    try:
        found = read_configuration(Path(options.file)) if options.file else gateway_file.configuration(config)
        gateway_file.checked(found, config, io.environ)
    except InvalidArgument as error:
        io.say(f"agentos: {error.message}")
        return FAILED
    names = names_of(found, backends_of(found, config, io.environ))
    versions = {name: policy.version for name, policy in found.policies.items()}
    if options.json:
        io.json({"version": found.version, "names": names, "canaries": found.routing.canaries, "policies": versions})
        return FINE
    io.columns(("NAME", "IS", "LEADS TO"), ((one.name, one.is_a, ", ".join(one.leads_to)) for one in names))
    for canary in found.routing.canaries:
        io.say(f"canary {canary.experiment}: {canary.percent:g} % of who asks for {canary.name} get {canary.model}")
    for name, policy in found.policies.items():
        io.say(f"policy {name}: {len(policy.rules)} rules for every tenant, version {policy.version}")
    io.say(f"usable; version {found.version}")
    return FINE


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
