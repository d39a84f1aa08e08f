"""`agentos gateway apply|show|history|rollback`: the stored versions of the gateway's configuration.

They go to the store itself, as whoever can read this node's secrets: they work while no service does.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from deploy import gateway_file
from deploy.cli.gateway_check import OPERATOR, document_in, gateway_of, running_text, tell
from deploy.cli.io import FAILED, FINE, Io
from deploy.config import Config
from deploy.internal import open_gateway_configurations
from ports.gateway_configuration import Summary, Version
from ports.messages import Json
from stack_b.administration import Administration, Plan
from stack_b.diagnosis import Change, Diagnostic

FOLLOW_SECONDS: Final = 6.0
"""Gateways look every 2 s; beyond this one does not follow."""
_POLL_SECONDS: Final = 0.2
_SHOWN: Final = 200

ResultT = TypeVar("ResultT")


class Apply(Struct, frozen=True, kw_only=True):
    file: str
    dry_run: bool
    comment: str
    json: bool


class Show(Struct, frozen=True, kw_only=True):
    version: int | None
    json: bool


class History(Struct, frozen=True, kw_only=True):
    limit: int
    json: bool


class Rollback(Struct, frozen=True, kw_only=True):
    version: int
    dry_run: bool
    comment: str
    json: bool


def apply(options: Apply, io: Io) -> int:
    document = document_in(Path(options.file))
    if isinstance(document, Diagnostic):
        return _unusable(
            Plan(usable=False, digest="", current=0, diagnostics=(document,), changes=()), io, options.json
        )
    plan = _with_store(io, lambda administration: administration.plan(OPERATOR, document))
    if not plan.usable:
        return _unusable(plan, io, options.json)
    if options.dry_run:
        return _planned(plan, io, options.json)
    if not options.json:
        tell(io, plan.diagnostics)
    key = f"cli-{uuid.uuid4().hex}"
    made = _with_store(
        io,
        # Only over what it was compared with.
        lambda store: store.put(OPERATOR, document, comment=options.comment, if_match=plan.current, key=key),
    )
    return _made(made, io, options.json)


def rollback(options: Rollback, io: Io) -> int:
    old = _with_store(io, lambda administration: administration.get(OPERATOR, options.version))
    plan = _with_store(io, lambda administration: administration.plan(OPERATOR, old.document))
    if not plan.usable:
        return _unusable(plan, io, options.json)
    if options.dry_run:
        return _planned(plan, io, options.json)
    key = f"cli-{uuid.uuid4().hex}"
    made = _with_store(
        io,
        lambda store: store.restore(OPERATOR, options.version, comment=options.comment, if_match=plan.current, key=key),
    )
    return _made(made, io, options.json)


def show(options: Show, io: Io) -> int:
    config = io.config()
    if options.version is None:
        found = _with_store(io, lambda administration: administration.current(OPERATOR))
    else:
        version = options.version
        found = _with_store(io, lambda administration: administration.get(OPERATOR, version))
    running = gateway_of(config)
    if options.json:
        io.json({"stored": found, "comes_from": gateway_file.origin(config), "gateway": running})
        return FINE
    if found is not None:
        io.out.write(msgspec.json.format(msgspec.json.encode(found.document), indent=2).decode() + "\n")
        io.say(_told(found))
    else:
        io.say("nothing is stored; ./agentos gateway apply FILE stores a first version")
    io.say(f"this node's gateway takes {gateway_file.origin(config)}")
    io.say(f"it goes by {running_text(running)}" if running else "it does not answer; see ./agentos status")
    return FINE


def history(options: History, io: Io) -> int:
    page = _with_store(io, lambda administration: administration.history(OPERATOR, limit=options.limit))
    if options.json:
        io.json({"versions": page.items, "more": page.next_cursor is not None})
        return FINE
    io.columns(
        ("VERSION", "WHEN", "WHO", "DIGEST", "SAYS AGAIN", "WHY"),
        (
            (
                str(one.version),
                one.created_at.isoformat(timespec="seconds"),
                f"{one.principal} of {one.tenant}",
                one.digest,
                str(one.restores or ""),
                one.comment,
            )
            for one in page.items
        ),
    )
    if page.next_cursor is not None:
        io.say("there are older ones; --limit shows more")
    return FINE


def _with_store(io: Io, act: Callable[[Administration], Awaitable[ResultT]]) -> ResultT:
    async def acted() -> ResultT:
        async with open_gateway_configurations(io.node) as store:
            return await act(Administration(store, gateway_file.store_facts(io.config(), io.node, io.environ)))

    return asyncio.run(acted())


def _unusable(plan: Plan, io: Io, as_json: bool) -> int:
    if as_json:
        io.json(plan)
    tell(io, () if as_json else plan.diagnostics)
    io.say("agentos: it can't be used; nothing was changed")
    return FAILED


def _planned(plan: Plan, io: Io, as_json: bool) -> int:
    if as_json:
        io.json(plan)
        return FINE
    tell(io, plan.diagnostics)
    for change in plan.changes:
        io.out.write(change_text(change) + "\n")
    compared = f"version {plan.current}" if plan.current else "nothing, which is what is stored"
    io.say(f"usable; digest {plan.digest}; {len(plan.changes)} changes from {compared}; nothing was changed")
    return FINE


def change_text(change: Change) -> str:
    match change.change:
        case "added":
            return f"+ {change.path} = {_short(change.after)}"
        case "removed":
            return f"- {change.path} = {_short(change.before)}"
        case "changed":
            return f"~ {change.path}: {_short(change.before)} -> {_short(change.after)}"


def _made(made: Version, io: Io, as_json: bool) -> int:
    """Say what was stored, and whether this node's gateway goes by it."""
    config = io.config()
    running = _followed(made, config)
    in_force = running.get("source") == "store" and running.get("version") == made.version
    if as_json:
        io.json({"stored": made, "in_force": in_force, "gateway": running})
    else:
        io.out.write(f"{_told(made)}\n")
    if config.gateway_file:
        io.say(f"NOT in force: this node's gateway takes {gateway_file.origin(config)}")
        return FINE
    if not running:
        io.say("the gateway does not answer; it will begin with this version. See ./agentos status")
        return FINE
    io.say("in force" if in_force else f"NOT in force: the gateway goes by {running_text(running)}")
    return FINE if in_force else FAILED


def _followed(made: Version, config: Config) -> dict[str, Json]:
    """What the gateway says once it has taken or refused the version, or when it had time enough."""
    end_at = time.monotonic() + FOLLOW_SECONDS
    while True:
        running = gateway_of(config)
        settled = made.version in {running.get("version"), running.get("refused_version")}
        if settled or not running or config.gateway_file or time.monotonic() > end_at:
            return running
        time.sleep(_POLL_SECONDS)


def _told(one: Summary) -> str:
    again = f", which says again what version {one.restores} said" if one.restores else ""
    why = f": {one.comment}" if one.comment else ""
    when = one.created_at.isoformat(timespec="seconds")
    return f"version {one.version}{again}; digest {one.digest}; by {one.principal} of {one.tenant} at {when}{why}"


def _short(value: Json) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
