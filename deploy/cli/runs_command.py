"""`agentos runs list|show|cancel|kill|retry|fork|resolve`: look at runs, and change their course."""

import argparse
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct
from rich.markup import escape

from deploy.catalogue import stack_a_url
from deploy.cli.access import api_token, run_of
from deploy.cli.io import FINE, Io
from deploy.cli.run_command import answer, elapsed, fault, money, short
from deploy.cli.runs_platform import ENDED_OTHERWISE, TOO_LATE, list_as_operator
from deploy.cli.runs_platform import add_verb as add_kill
from deploy.client import Accepted, RunsClient
from deploy.seed import TENANT
from ports.errors import InvalidArgument
from ports.ids import AgentId, RunId
from ports.run_state import MAX_PAGE, RunFilter, RunStatus

DECIDES: Final = "editor"
"""The least role that may decide about tool calls."""

_EPILOG: Final = """\
examples:
  ./agentos runs list --status needs_operator
  ./agentos runs show run_…
  ./agentos runs kill run_… --tenant tnt_acme           at once, whoever holds it; --all for every open one
  ./agentos runs list --parent run_…                    the runs of the agents that it handed work to
  ./agentos runs retry run_…                            a failed or cancelled run, from where it went wrong
  ./agentos runs fork run_… --from-step 3               a new run that begins with the steps 1 to 3 of this one
  ./agentos runs resolve run_… --step 2 --done '{"sent": true}'    the interrupted call took effect
  ./agentos runs resolve run_… --step 2 --fail "no mail arrived"   it did not, and shall not
  ./agentos runs resolve run_… --step 2 --retry                    it did not; call it once more"""


class ListRuns(Struct, frozen=True, kw_only=True):
    tenant: str | None
    status: str
    agent: str
    parent: str
    limit: int
    json: bool
    as_operator: bool = False


class One(Struct, frozen=True, kw_only=True):
    tenant: str | None
    run_id: str
    json: bool
    reason: str = ""
    from_step: int = 0


class Resolve(Struct, frozen=True, kw_only=True):
    tenant: str | None
    run_id: str
    json: bool
    step: int
    done: str | None
    fail: str | None


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "runs",
        help="list, show, cancel, kill, retry, fork and resolve runs",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="<command>", required=True)
    listed = verbs.add_parser("list", help="the newest runs", allow_abbrev=False)
    listed.add_argument("--status", default="", choices=("", *get_args(RunStatus)), help="only those in this status")
    listed.add_argument("--agent", default="", help="only those of this agent")
    listed.add_argument("--parent", metavar="RUN_ID", default="", help="only those that this run made")
    listed.add_argument("--limit", type=int, default=20, help=f"at most so many, up to {MAX_PAGE} (20)")
    listed.add_argument("--as-operator", action="store_true", help="from the store; also of a disabled tenant")
    listed.set_defaults(run=list_runs, options=_list_options)
    add_kill(verbs)
    shown = verbs.add_parser("show", help="a run and its steps")
    cancelled = verbs.add_parser("cancel", help="end a run", allow_abbrev=False)
    cancelled.add_argument("--reason", default="", help="why; told in its last event")
    retried = verbs.add_parser("retry", help="a new run from where a failed or cancelled one went wrong")
    forked = verbs.add_parser("fork", help="a new run from a step of this one", allow_abbrev=False)
    forked.add_argument("--from-step", type=int, required=True, help="the last step to take over; 0 begins anew")
    for verb, act in ((shown, show), (cancelled, cancel), (retried, retry), (forked, fork)):
        verb.set_defaults(run=act, options=_one_options)
    resolved = verbs.add_parser("resolve", help="decide about an interrupted call", allow_abbrev=False)
    resolved.add_argument("--step", type=int, required=True, help="the step whose outcome is unknown")
    decision = resolved.add_mutually_exclusive_group(required=True)
    decision.add_argument("--done", metavar="JSON", help="it took effect; this is what it would have answered")
    decision.add_argument("--fail", metavar="MESSAGE", help="it did not and shall not; the model is told this")
    decision.add_argument("--retry", action="store_true", help="call it once more under the same key")
    resolved.set_defaults(run=resolve, options=_resolve_options)
    for verb in (shown, cancelled, retried, forked, resolved):
        verb.add_argument("run_id")
    for verb in (listed, shown, cancelled, retried, forked, resolved):
        verb.add_argument("--tenant", help="whose (the seeded one)")
        verb.add_argument("--json", action="store_true", help="print as JSON")


def _list_options(parsed: argparse.Namespace) -> ListRuns:
    return ListRuns(
        tenant=parsed.tenant,
        status=parsed.status,
        agent=parsed.agent,
        parent=parsed.parent,
        limit=parsed.limit,
        json=parsed.json,
        as_operator=parsed.as_operator,
    )


def _one_options(parsed: argparse.Namespace) -> One:
    own = {name: getattr(parsed, name) for name in ("reason", "from_step") if hasattr(parsed, name)}
    return One(tenant=parsed.tenant, run_id=parsed.run_id, json=parsed.json, **own)


def _resolve_options(parsed: argparse.Namespace) -> Resolve:
    return Resolve(
        tenant=parsed.tenant,
        run_id=parsed.run_id,
        json=parsed.json,
        step=parsed.step,
        done=parsed.done,
        fail=parsed.fail,
    )


def list_runs(options: ListRuns, io: Io) -> int:
    if not 1 <= options.limit <= MAX_PAGE:
        raise InvalidArgument(f"--limit must be 1 to {MAX_PAGE}, not {options.limit}")
    if options.as_operator:
        return _as_operator(options, io)
    with _client(io, options.tenant) as client:
        found = client.list_runs(limit=options.limit, status=options.status, agent=options.agent, parent=options.parent)
    if options.json:
        io.json(found)
        return FINE
    io.columns(("RUN", "STATUS", "AGENT", "CREATED", "TOOK", "TOKENS", "WHY"), (_line(run) for run in found))
    if len(found) == options.limit < MAX_PAGE:
        io.say(f"These are the newest {options.limit}; there may be more: --limit, up to {MAX_PAGE}")
    return FINE


def _as_operator(options: ListRuns, io: Io) -> int:
    if options.tenant is None:
        raise InvalidArgument("say whose runs with --tenant tnt_<name>")
    where = RunFilter(
        status=msgspec.convert(options.status, RunStatus) if options.status else None,
        agent_id=AgentId(options.agent) if options.agent else None,
        parent=RunId(options.parent) if options.parent else None,
    )
    return list_as_operator(io, tenant=options.tenant, where=where, limit=options.limit, as_json=options.json)


def _line(run: dict[str, Any]) -> tuple[str, ...]:
    return (
        run["run_id"],
        run["status"],
        f"{run['agent_id']}@{run['agent_version']}",
        _time(run["created_at"]),
        f"{elapsed(run):.2f} s" if run["finished_at"] else "",
        f"{run['usage']['total_tokens']:,}",
        run["error"]["code"] if run["error"] else "",
    )


def show(options: One, io: Io) -> int:
    with _client(io, options.tenant) as client, run_of(options.tenant or TENANT):
        run, steps = client.run(options.run_id), client.steps(options.run_id)
    if options.json:
        io.json({**run, "steps": steps})
        return FINE
    console = io.data()
    for name, text in facts_of(run):
        console.print(f"[bold]{name:<9}[/] {escape(text)}")
    if steps:
        console.print()
        io.columns(("STEP", "KIND", "NAME", "EFFECT", "STATUS", "RESULT"), (_step_line(step) for step in steps))
    for line in next_of(run, steps):
        io.say(line)
    return FINE


def facts_of(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "run", run["run_id"]
    yield "status", run["status"]
    yield "agent", f"{run['agent_id']} version {run['agent_version']}"
    if run["parent_run_id"]:
        yield "parent", f"{run['parent_run_id']}, {run['depth']} deep"
    if origin := run["forked_from"]:
        yield "forked", f"from {origin['run_id']} after step {origin['step']}"
    if run["waits_for"]:
        yield "waits for", run["waits_for"]
    yield "priority", str(run["priority"])
    yield "created", f"{_time(run['created_at'])} by {run['principal_id']}"
    if run["finished_at"]:
        yield "took", f"{elapsed(run):.2f} s"
    elif run["deadline_at"]:
        yield "deadline", _time(run["deadline_at"])
    if run["cancel_requested_at"] and not run["finished_at"]:
        yield "to end", f"as asked at {_time(run['cancel_requested_at'])}"
    if run["recoveries"]:
        yield "recovered", f"{run['recoveries']} times"
    usage = run["usage"]
    yield "usage", f"{usage['total_tokens']:,} tokens, {money(usage['cost_nanousd'])}"
    yield "input", short(run["input"])
    if run["error"]:
        yield "error", fault(run["error"])
    elif run["status"] == "succeeded":
        yield "output", short(answer(run["output"]))


def _step_line(step: dict[str, Any]) -> tuple[str, ...]:
    if step["error"]:
        result = fault(step["error"])
    elif step["status"] != "completed":
        result = ""
    elif step["kind"] == "model":
        wanted = ", ".join(call["name"] for call in step["output"]["tool_calls"])
        result = f"wants {wanted}" if wanted else short(step["output"]["text"])
    else:
        result = short(step["output"])
    return (str(step["n"]), step["kind"], step["name"], step["effect"], step["status"], result)


def next_of(run: dict[str, Any], steps: list[dict[str, Any]]) -> Iterator[str]:
    """What somebody who looks at the run may do about it, line by line."""
    run_id = run["run_id"]
    if run["status"] in {"failed", "cancelled"}:
        yield f"Next: ./agentos runs retry {run_id}"
    if run["status"] == "waiting":
        yield f"It waits for runs that it made. Next: ./agentos runs list --parent {run_id}"
    if run["status"] != "needs_operator":
        return
    for step in steps:
        if step["status"] == "unknown":
            n, key = step["n"], f"{run_id}:{step['n']}"
            yield f"Step {n} was interrupted: find out whether the call of {step['name']} with the key {key}"
            yield f"took effect. Next: ./agentos runs resolve {run_id} --step {n} --done|--fail|--retry"


def cancel(options: One, io: Io) -> int:
    with _client(io, options.tenant) as client, run_of(options.tenant or TENANT):
        run = client.cancel(options.run_id, reason=options.reason)
    return _ended(io, run, as_json=options.json)


def retry(options: One, io: Io) -> int:
    with _client(io, options.tenant) as client, run_of(options.tenant or TENANT):
        accepted = client.retry(options.run_id)
    return _accepted(io, accepted, as_json=options.json)


def fork(options: One, io: Io) -> int:
    if options.from_step < 0:
        raise InvalidArgument(
            f"--from-step must be 0, which begins anew, or a step of the run, not {options.from_step}"
        )
    with _client(io, options.tenant) as client, run_of(options.tenant or TENANT):
        accepted = client.fork(options.run_id, from_step=options.from_step)
    return _accepted(io, accepted, as_json=options.json)


def resolve(options: Resolve, io: Io) -> int:
    body = decision_of(options)
    with _client(io, options.tenant, role=DECIDES) as client, run_of(options.tenant or TENANT):
        run = client.resolve(options.run_id, body)
    code = _changed(io, run, as_json=options.json)
    if run["status"] == "needs_operator":
        io.say(f"Another of its steps waits for a decision. Next: ./agentos runs show {run['run_id']}")
    return code


def decision_of(options: Resolve) -> dict[str, Any]:
    """The body of the request. Raises `InvalidArgument` for a step that can't be one, or an output that is not JSON."""
    if options.step < 1:
        raise InvalidArgument(f"--step must be a step of the run, which are numbered from 1, not {options.step}")
    if options.done is not None:
        try:
            output = msgspec.json.decode(options.done)
        except msgspec.DecodeError as error:
            raise InvalidArgument(f"--done must be JSON, such as '{{\"sent\": true}}' or null: {error}") from None
        return {"step": options.step, "decision": "done", "output": output}
    if options.fail is not None:
        return {"step": options.step, "decision": "fail", "message": options.fail}
    return {"step": options.step, "decision": "retry"}


def _changed(io: Io, run: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        io.json(run)
    else:
        asked = " and asked to end" if run["status"] == "running" and run["cancel_requested_at"] else ""
        io.out.write(f"{run['run_id']} is {run['status']}{asked}\n")
    return FINE


def _ended(io: Io, run: dict[str, Any], *, as_json: bool) -> int:
    code = _changed(io, run, as_json=as_json)
    if run["status"] in ENDED_OTHERWISE:
        io.say(TOO_LATE)
    return code


def _accepted(io: Io, accepted: Accepted, *, as_json: bool) -> int:
    if as_json:
        io.json(accepted)
    else:
        io.out.write(f"{accepted.run_id}\n")
        io.say(f"It is {accepted.status}. Next: ./agentos runs show {accepted.run_id}")
    return FINE


def _client(io: Io, tenant: str | None, *, role: str = "service") -> RunsClient:
    return RunsClient(stack_a_url(io.config()), api_token(io, tenant, role=role))


def _time(text: str) -> str:
    return f"{msgspec.convert(text, datetime):%Y-%m-%d %H:%M:%S}"
