"""`agentos tenant policy`: what a tenant's own policy says, and setting it from a file."""

import argparse
from pathlib import Path

import msgspec
from msgspec import Struct

from deploy.cli.access import tenant_id, with_directory
from deploy.cli.io import FINE, Io
from deploy.internal import Directory, operator_of
from ports.errors import InvalidArgument
from ports.policy import Policy, Rule
from ports.tenant import Tenant
from stack_b.policies.problems import MAX_BYTES, parse_policy


class ShowOrSet(Struct, frozen=True, kw_only=True):
    tenant: str
    file: str | None
    clear: bool
    json: bool


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser("policy", help="show or set a tenant's own rules on models and tools", allow_abbrev=False)
    parser.add_argument("tenant")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--file", metavar="PATH", help="JSON with the rules, which replace those that there are")
    change.add_argument("--clear", action="store_true", help="take all of its rules away; those of the node stay")
    parser.add_argument("--json", action="store_true", help="print as JSON, which --file takes again")
    parser.set_defaults(
        run=show_or_set,
        options=lambda parsed: ShowOrSet(tenant=parsed.tenant, file=parsed.file, clear=parsed.clear, json=parsed.json),
    )


def show_or_set(options: ShowOrSet, io: Io) -> int:
    name = tenant_id(options.tenant)
    wanted = Policy() if options.clear else None if options.file is None else read_policy(Path(options.file))

    async def act(directory: Directory) -> Tenant:
        operator = operator_of(name)
        known = await directory.tenants.get(operator, name)
        if wanted is None:
            return known
        changed = msgspec.structs.replace(known.entitlements, policy=wanted)
        return await directory.tenants.set_entitlements(operator, name, changed, if_match=known.version)

    policy = with_directory(io, act).entitlements.policy
    if options.json:
        io.json(policy)
        return FINE
    if not policy.rules:
        io.out.write(f"{name} has no policy of its own\n")
        return FINE
    io.columns(
        ("RULE", "EFFECT", "ON", "WHERE"),
        ((rule.id, rule.effect, ", ".join(rule.on), _where(rule)) for rule in policy.rules),
    )
    io.say(f"Version {policy.version}; in force within 5 s of a change. Try it: POST /v1/policy/check.")
    return FINE


def read_policy(path: Path) -> Policy:
    """Raises `InvalidArgument` with every problem in the file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}; it should hold a policy, see docs/policies.md") from None
    try:
        return parse_policy(raw)
    except InvalidArgument as error:
        problems = "".join(f"\n  - {problem}" for problem in error.details.get("problems", [error.message]))
        raise InvalidArgument(f"{path} is not usable, and nothing was changed:{problems}") from None


def _where(rule: Rule) -> str:
    """Its conditions, shortened."""
    said = msgspec.to_builtins(rule)
    stated = [
        f"{name}={_short(said[name])}" for name in said if name not in {"id", "effect", "on"} and _is_stated(said[name])
    ]
    return " ".join(stated) or "always"


def _is_stated(value: object) -> bool:
    return value is not None and value not in ((), [])


def _short(value: object) -> str:
    if not isinstance(value, list | tuple):
        return str(value)
    shown = ",".join(str(one["path"]) if isinstance(one, dict) else str(one) for one in value[:3])
    return shown + (f" and {len(value) - 3} more" if len(value) > 3 else "")  # noqa: PLR2004 - three are a taste
