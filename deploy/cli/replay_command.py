"""`agentos replay <run_id>`: make every decision of a run again from its journal, and name the first that differs."""

import argparse
import asyncio
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from deploy.cli.access import run_of, tenant_id
from deploy.cli.io import FAILED, FINE, Io, harmless
from deploy.internal import open_journals, operator_of
from deploy.seed import TENANT
from ports.context import DEFAULT_NAMESPACE
from ports.ids import RunId
from ports.run_state import Run
from stack_a.runs.journal import read_steps
from stack_a.runs.replay import Decision, Divergence, Replayed, replay
from stack_a.tools.agents import with_agents

_EPILOG: Final = """\
Reads the database only: no model and no tool is called, and the services need not run. A divergence means that the journal
was changed, or that the agent's tools or this version of AgentOS decide otherwise than what ran then.

exit codes: 0 all equal · 1 a decision differs · 3 the database does not answer"""


class Options(Struct, frozen=True, kw_only=True):
    run_id: str
    tenant: str
    namespace: str
    json: bool


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "replay",
        help="check a run's decisions against its journal",
        description="Make every decision of a run again from its journal, and name the first that differs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_id")
    parser.add_argument("--tenant", default=TENANT, help=f"whose ({TENANT})")
    parser.add_argument("--namespace", default=DEFAULT_NAMESPACE, help=f"in which namespace ({DEFAULT_NAMESPACE})")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=run, options=_options)


def _options(parsed: argparse.Namespace) -> Options:
    return Options(run_id=parsed.run_id, tenant=parsed.tenant, namespace=parsed.namespace, json=parsed.json)


def run(options: Options, io: Io) -> int:
    found, replayed = asyncio.run(_replayed(options, io))
    if options.json:
        io.json({"run_id": found.id, "status": found.status, "forked_from": found.forked_from, **asdict(replayed)})
    elif replayed.divergence is not None:
        io.out.write(harmless("\n".join(told(replayed, replayed.divergence))) + "\n")
    else:
        io.out.write(harmless(agreed(found, replayed)) + "\n")
    return FINE if replayed.divergence is None else FAILED


async def _replayed(options: Options, io: Io) -> tuple[Run, Replayed]:
    auth = replace(operator_of(tenant_id(options.tenant)), namespace=options.namespace)
    async with open_journals(io.node, io.environ, tools_file=io.config().tools_file) as ports:
        with run_of(options.tenant):
            found = await ports.runs.load(auth, RunId(options.run_id))
        steps = await read_steps(ports.runs, auth, found.id)
        agent = await ports.agents.get(auth, found.agent_id, found.agent_version)
        served = {spec.name: spec for spec in await ports.tools.list_tools(auth)}
        tools = await with_agents(ports.agents, auth, agent.spec, served)
    return found, replay(found, agent.spec, tools, steps)


def agreed(found: Run, replayed: Replayed) -> str:
    """That nothing differs, and what of the run was not looked at."""
    beyond = "" if replayed.complete else f"; the run is {found.status}, and its end is not in its journal"
    origin = found.forked_from
    before = f"; what came before them is of {origin.run_id}" if origin is not None and origin.step else ""
    return f"{replayed.decisions} decisions, all equal{before}{beyond}"


def told(replayed: Replayed, divergence: Divergence) -> list[str]:
    """The first divergence for people."""
    where = "at the end of the run" if divergence.step is None else f"at step {divergence.step}"
    return [
        f"{replayed.decisions} decisions equal, then one differs {where}: {divergence.reason}",
        f"  expected  {_shown(divergence.expected)}",
        f"  recorded  {_shown(divergence.recorded)}",
    ]


def _shown(decision: Decision | None) -> str:
    return "nothing" if decision is None else f"{decision.what}  {decision.digest}"
