"""`agentos run <agent> "<input>"`: create a run, follow it live, and read it at a glance."""

import argparse
import sys
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.markup import escape

from deploy.catalogue import stack_a_url
from deploy.cli.access import api_token
from deploy.cli.io import FAILED, FINE, Io
from deploy.client import TERMINAL, RunsClient, SseEvent
from ports.priority import DEFAULT, HIGHEST, LOWEST

_EPILOG: Final = """\
examples:
  ./agentos run agt_demo "What is 17.5 % of 2340, and how many words are in: to be or not to be?"
  ./agentos run agt_demo "Remember that the deploy is on Friday"
  ./agentos run agt_demo "Count the words: one two three" --json | tail -1
  ./agentos run agt_demo "Is anybody there?" --priority 9      before the tenant's other queued runs
  ./agentos run agt_demo "What is 2 + 2?" --tenant tnt_acme     a tenant that was made with --sample-agent

Exit 0 when the run completed, 1 when it failed or was cancelled. Ctrl-C asks whether to cancel it."""

_NANO: Final = 1_000_000_000
_MAX_SHOWN_CHARS: Final = 300


class Options(Struct, frozen=True, kw_only=True):
    agent: str
    input: str
    tenant: str | None = None
    priority: int | None = None
    json: bool = False


class Totals(Struct, kw_only=True):
    """What the run has used so far, by its events."""

    model_calls: int = 0
    tool_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nanousd: int = 0
    estimated: bool = False

    def add(self, event: SseEvent) -> None:
        if event.type == "tool.completed":
            self.tool_calls += 1
        if event.type == "model.completed":
            self.model_calls += 1
            usage = event.body.get("usage") or {}
            self.prompt_tokens += usage.get("prompt_tokens", 0)
            self.completion_tokens += usage.get("completion_tokens", 0)
            self.cost_nanousd += usage.get("cost_nanousd", 0)
            self.estimated = self.estimated or usage.get("estimated", False)


class _Times(Struct, frozen=True, kw_only=True):
    created_at: datetime | None = None
    finished_at: datetime | None = None


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "run",
        help="run an agent and follow it live",
        description="Create a run and follow its events to the end.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("agent", help="the agent's id, such as agt_demo")
    parser.add_argument("input", help="what to ask; `-` reads standard input")
    parser.add_argument("--tenant", help="act in this tenant instead of the seeded one (a token is minted for you)")
    parser.add_argument(
        "--priority",
        type=int,
        choices=range(LOWEST, HIGHEST + 1),
        metavar=f"{LOWEST}-{HIGHEST}",
        help=f"how urgent among the tenant's queued runs; {HIGHEST} starts first ({DEFAULT})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per event, and a summary as the last line")
    parser.set_defaults(run=run, options=_options)


def _options(parsed: argparse.Namespace) -> Options:
    text = sys.stdin.read() if parsed.input == "-" else parsed.input
    return Options(agent=parsed.agent, input=text, tenant=parsed.tenant, priority=parsed.priority, json=parsed.json)


def run(options: Options, io: Io) -> int:
    config = io.config()
    with RunsClient(stack_a_url(config), api_token(io, options.tenant)) as client:
        accepted = client.create_run(options.agent, options.input, priority=options.priority)
        console = io.data()
        told = Told(console)
        if not options.json:
            console.print(f"[bold]{escape(options.agent)}[/] [dim]{accepted.run_id}[/]")
        totals = Totals()
        after, last = "", None
        while last is None:
            try:
                for event in client.follow(accepted.events_url, after=after):
                    after = event.id
                    totals.add(event)
                    if options.json:
                        io.json(event.data)
                    else:
                        told.show(event)
                    if event.type in TERMINAL:
                        last = event
            except KeyboardInterrupt:
                if not _cancelled(client, accepted.run_id, io):
                    io.say(f"agentos: {accepted.run_id} goes on without you")
                    raise
        view = client.run(accepted.run_id)
    return _finish(options, io, last, totals, view, told=told.text)


class Told:
    """Shows events as they come, the text of `model.delta` growing on its own lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._of: tuple[object, object] | None = None
        self._open = False
        self.text = ""
        """What the last answer has shown of itself so far."""

    def show(self, event: SseEvent) -> None:
        if event.type != "model.delta":
            self._close()
            show(self._console, event)
            return
        body = event.body
        of = (body.get("step"), body.get("attempt"))
        if of != self._of:
            self._close()
            if self._of is not None and self._of[0] == of[0]:
                self._console.print("  [yellow]· the answer broke off and begins again[/]")
            self._of, self.text = of, ""
        piece = str(body.get("text", ""))
        self.text += piece
        self._console.print(piece, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._open = True

    def _close(self) -> None:
        if self._open:
            self._console.print()
            self._open = False


def show(console: Console, event: SseEvent) -> None:
    """One line for what a person wants to see of an event; nothing for the rest."""
    body = event.body
    if event.type == "model.requested":
        console.print(f"  [dim]· asks {escape(str(body.get('model', 'the model')))}[/]")
    elif event.type == "model.completed":
        console.print(_model_line(body))
    elif event.type in {"tool.requested", "agent.requested"}:
        console.print(f"  [cyan]→ {escape(_called(body))}[/] {escape(short(body.get('arguments')))}")
    elif event.type in {"tool.completed", "agent.completed"}:
        took = f"[dim]{body.get('duration_ms', 0)} ms[/]"
        name = escape(_called(body))
        if "error" in body:
            console.print(f"  [red]✗ {name}[/] {escape(fault(body['error']))} {took}")
        else:
            console.print(f"  [green]✓ {name}[/] {escape(short(body.get('output')))} {took}")
    elif event.type == "run.waiting":
        children = ", ".join(str(child["run_id"]) for child in body.get("children", ()))
        console.print(f"  [dim]· waits for {escape(children)}[/]")


def _called(body: dict[str, Any]) -> str:
    return str(body.get("tool") or body.get("agent"))


def short(value: Any) -> str:
    """A JSON value on one line, cut where it gets long."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"


def answer(output: Any) -> str:
    """What a person reads of a run's output: its text where it has one, else the JSON."""
    text = output.get("text") if isinstance(output, dict) else output
    return text if isinstance(text, str) else msgspec.json.encode(output).decode()


def fault(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    return f"{error.get('code', 'unknown')}: {error.get('message', '')}"


def money(nanousd: int) -> str:
    return f"${nanousd / _NANO:.6f}" if nanousd else "$0"


def _model_line(body: dict[str, Any]) -> str:
    took = f"[dim]{body.get('duration_ms', 0)} ms[/]"
    if "error" in body:
        return f"  [red]✗ model[/] {escape(fault(body['error']))} {took}"
    usage = body.get("usage") or {}
    tokens = f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens"
    route = body.get("route") or {}
    backend = f" via {route['backend']}" if route.get("backend") else ""
    calls = body.get("tool_calls") or []
    says = f"wants {', '.join(call.get('name', '?') for call in calls)}" if calls else "answers"
    cost = money(usage.get("cost_nanousd", 0))
    return f"  [green]✓ model[/] {escape(says)} [dim]{tokens}, {cost}{escape(backend)}[/] {took}"


def _finish(options: Options, io: Io, last: SseEvent, totals: Totals, view: dict[str, Any], *, told: str) -> int:
    seconds = elapsed(view)
    succeeded = last.type == "run.completed"
    if options.json:
        io.json(
            {
                "run_id": view.get("run_id"),
                "status": view.get("status"),
                "output": view.get("output"),
                "error": view.get("error"),
                "duration_s": seconds,
                **msgspec.structs.asdict(totals),
            }
        )
        return FINE if succeeded else FAILED
    console = io.data()
    console.print()
    if succeeded:
        # Shown already where it grew before the reader's eyes.
        if (whole := answer(last.body.get("output"))) != told:
            console.print(escape(whole))
    elif last.type == "run.cancelled":
        console.print("[yellow]The run was cancelled.[/]")
    else:
        console.print(f"[red]The run failed: {escape(fault(last.body.get('error')))}[/]")
    about = " (estimated)" if totals.estimated else ""
    console.print(
        f"\n[dim]{seconds:.2f} s · {totals.model_calls} model calls · {totals.tool_calls} tool calls · "
        f"{totals.prompt_tokens} + {totals.completion_tokens} tokens{about} · {money(totals.cost_nanousd)}[/]"
    )
    return FINE if succeeded else FAILED


def elapsed(view: dict[str, Any]) -> float:
    """From the run's creation to its end, in seconds, by the server's clock."""
    times = msgspec.convert(view, _Times)
    if times.created_at is None or times.finished_at is None:
        return 0.0
    return round((times.finished_at - times.created_at).total_seconds(), 3)


def _cancelled(client: RunsClient, run_id: str, io: Io) -> bool:
    """Offer to cancel; True when it was asked for. Without a terminal nobody can be asked."""
    if not sys.stdin.isatty():
        return False
    io.say(f"\nCancel {run_id}? [y/N] ")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        return False
    client.cancel(run_id)
    return True
