"""`agentos agent publish|list|show`: the agents of a tenant."""

import argparse
import sys
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from msgspec import Struct

from deploy.agent_spec import MAX_SPEC_BYTES, parse_spec, render_spec
from deploy.cli.access import tenant_id, whole, with_directory
from deploy.cli.io import FINE, Io
from deploy.internal import Directory, operator_of
from deploy.seed import TENANT
from deploy.tool_file import offered
from ports.agent import Agent, AgentSpec
from ports.errors import InvalidArgument, NotFound
from ports.ids import AgentId
from ports.run_state import MAX_PAGE

_EPILOG: Final = """\
an agent of your own:
  ./agentos agent show agt_demo > support.json                 one to start from; edit its id, instructions, tools
  ./agentos agent publish support.json --tenant tnt_acme
  "agents": ["agt_billing"] in it lets it hand work to others, each piece in a run of its own
  ./agentos run agt_support "Hello" --tenant tnt_acme
A changed spec makes the next version; runs that have begun keep theirs. The same spec again changes nothing."""

_MOST_VERSIONS: Final = 2**31 - 1


class Publish(Struct, frozen=True, kw_only=True):
    spec: str
    """Path of the JSON, or `-`."""
    tenant: str
    json: bool


class ListAll(Struct, frozen=True, kw_only=True):
    tenant: str
    json: bool


class Show(Struct, frozen=True, kw_only=True):
    agent: str
    tenant: str
    version: int | None


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "agent",
        help="publish, list and show agents",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    published = verbs.add_parser("publish", help="make an agent, or its next version", allow_abbrev=False)
    published.add_argument("spec", help="a JSON file as `agent show` prints it; `-` reads standard input")
    published.set_defaults(
        run=publish,
        options=lambda parsed: Publish(spec=parsed.spec, tenant=parsed.tenant, json=parsed.json),
    )
    listed = verbs.add_parser("list", help="the tenant's agents, in their newest version", allow_abbrev=False)
    listed.set_defaults(run=list_all, options=lambda parsed: ListAll(tenant=parsed.tenant, json=parsed.json))
    shown = verbs.add_parser("show", help="print an agent as JSON that `publish` takes", allow_abbrev=False)
    shown.add_argument("agent", help="its id, such as agt_demo")
    shown.add_argument("--version", type=int, help="an older version; the newest, if not said")
    shown.set_defaults(run=show, options=_show_options)
    for verb in (published, listed, shown):
        verb.add_argument("--tenant", default=TENANT, help=f"whose ({TENANT})")
    for verb in (published, listed):
        verb.add_argument("--json", action="store_true", help="print as JSON")


def _show_options(parsed: argparse.Namespace) -> Show:
    version = None if parsed.version is None else whole("--version", parsed.version, least=1, most=_MOST_VERSIONS)
    return Show(agent=parsed.agent, tenant=parsed.tenant, version=version)


def publish(options: Publish, io: Io) -> int:
    tenant = tenant_id(options.tenant)
    spec = _spec_at(options.spec, offered(io.config(), io.environ))

    async def act(directory: Directory) -> tuple[bool, Agent]:
        operator = operator_of(tenant)
        # Without this, a typo in the tenant's name would make an agent that nobody can run.
        await directory.tenants.get(operator, tenant)
        try:
            before = (await directory.agents.get(operator, spec.id)).version
        except NotFound:
            before = 0
        agent = await directory.agents.publish(operator, spec)
        return agent.version > before, agent

    new, agent = with_directory(io, act)
    if options.json:
        io.json(agent)
        return FINE
    said = "is published" if new else "was published already; nothing was changed"
    io.out.write(f"{agent.spec.id} version {agent.version} {said}\n")
    io.say(f'Next: ./agentos run {agent.spec.id} "…" --tenant {tenant}')
    return FINE


def list_all(options: ListAll, io: Io) -> int:
    tenant = tenant_id(options.tenant)

    async def act(directory: Directory) -> list[Agent]:
        found: list[Agent] = []
        cursor: str | None = None
        # A tenant without agents and none at all would look the same.
        await directory.tenants.get(operator_of(tenant), tenant)
        while True:
            page = await directory.agents.list_agents(operator_of(tenant), limit=MAX_PAGE, cursor=cursor)
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                return found

    agents = with_directory(io, act)
    if options.json:
        io.json(agents)
        return FINE
    io.columns(
        ("AGENT", "VERSION", "MODEL", "TOOLS", "PUBLISHED", "DESCRIPTION"),
        (
            (
                agent.spec.id,
                str(agent.version),
                agent.spec.model,
                ", ".join(agent.spec.tools) or "none",
                f"{agent.created_at:%Y-%m-%d %H:%M}",
                " ".join(agent.spec.description.split()),
            )
            for agent in agents
        ),
    )
    return FINE


def show(options: Show, io: Io) -> int:
    tenant = tenant_id(options.tenant)

    async def act(directory: Directory) -> Agent:
        return await directory.agents.get(operator_of(tenant), AgentId(options.agent), options.version)

    agent = with_directory(io, act)
    io.out.write(render_spec(agent.spec))
    return FINE


def _spec_at(path: str, tools: Collection[str]) -> AgentSpec:
    """Raises `InvalidArgument` when there is no usable agent; the text names the file."""
    place = "standard input" if path == "-" else path
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb") as file:
            raw = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{place} can't be read: {error.strerror}") from None
    try:
        return parse_spec(raw, tools=tools)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{place}: {error.message} (`./agentos agent show agt_demo` prints a whole one)"
        ) from None
