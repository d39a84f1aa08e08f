"""What was promised against what is there: one record per invariant."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import asyncpg
from msgspec import Struct

from ports.ids import RunId, minted
from ports.run_state import step_key
from tests.bench.figures import percentile
from tests.faults.clients import TERMINAL
from tests.faults.ledger import Ledger
from tests.faults.payments import Disturbed, paid_twice
from tests.faults.tools import UNSAFE, read_calls
from tests.faults.upstream import Upstream
from tests.faults.witness import ask

ENDS_WITHIN_S: Final = 60.0
"""After the last fault."""
TAKEN_OVER_WITHIN_S: Final = 30.0
OPEN: Final = ("queued", "running", "waiting", "needs_operator")


class Record(Struct, frozen=True, kw_only=True):
    invariant: str
    ok: bool
    gates: dict[str, float]
    """What decides: each must be at most its limit."""
    limits: dict[str, float]
    figures: dict[str, float | str | list[str]] = {}


def record(
    invariant: str,
    gates: dict[str, float],
    *,
    limits: dict[str, float] | None = None,
    **figures: float | str | list[str],
) -> Record:
    """Gates without a limit must be 0."""
    allowed = {name: (limits or {}).get(name, 0.0) for name in gates}
    ok = all(value <= allowed[name] for name, value in gates.items())
    return Record(invariant=invariant, ok=ok, gates=gates, limits=allowed, figures=figures)


def told(found: Record) -> str:
    """For whoever reads along: each figure that decides beside its limit, and examples of what is broken."""
    figures = " · ".join(
        f"{name} {value:g} {'≤' if value <= found.limits[name] else '>'} {found.limits[name]:g}"
        for name, value in found.gates.items()
    )
    examples = found.figures.get("examples")
    shown = examples if isinstance(examples, list) and not found.ok else []
    return "\n".join([f"{'✓' if found.ok else '✗'} {found.invariant:<5} {figures}", *(f"{'':8}{one}" for one in shown)])


def told_at_the_end(records: Sequence[Record]) -> str:
    """Whether all hold; else what is broken, by how much."""
    broken = [
        f"{one.invariant} ({name} {value:g} > {one.limits[name]:g})"
        for one in records
        for name, value in one.gates.items()
        if value > one.limits[name]
    ]
    return f"broken: {', '.join(broken)}" if broken else "all hold"


async def promised_runs_end(dsn: str, ledger: Ledger, *, settled_s: float | None = None) -> Record:
    """`settled_s`: after the last fault, where there was one."""
    rows = await ask(dsn, "SELECT id, status FROM runs")
    found = {minted("run", row["id"]): row["status"] for row in rows}
    lost = [run_id for run_id in ledger.acked if run_id not in found]
    stuck = [run_id for run_id in ledger.acked if found.get(run_id) in OPEN]
    ended = Counter(found[run_id] for run_id in ledger.acked if run_id in found)
    failures = await ask(
        dsn, "SELECT error ->> 'code' AS code, count(*) AS runs FROM runs WHERE error IS NOT NULL GROUP BY 1"
    )
    return record(
        "R1",
        {
            "lost": len(lost),
            "stuck": len(stuck),
            # No fault of the driver's is a reason for a run to fail of a defect.
            "failed_of_a_defect": sum(row["runs"] for row in failures if row["code"] == "internal"),
            **({} if settled_s is None else {"settled_s": round(settled_s, 1)}),
        },
        limits={"settled_s": ENDS_WITHIN_S},
        acked=len(ledger.acked),
        ended=", ".join(f"{status}={count}" for status, count in sorted(ended.items())),
        failures=", ".join(f"{row['code']}={row['runs']}" for row in failures),
        examples=(lost + stuck)[:5],
    )


async def steps_are_recorded_once(dsn: str, sink: Path, *, one_kill_each: bool = False) -> Record:
    """With `one_kill_each`, where no run lost its worker twice, also how often a step may have been called."""
    rows = await ask(
        dsn, "SELECT run_id, n, count(*) AS times FROM faults.results GROUP BY run_id, n HAVING count(*) > 1"
    )
    calls = read_calls(str(sink))
    keys, places = defaultdict(set), defaultdict(set)
    for call in calls:
        keys[call.place].add(call.key)
        places[call.key].add((call.place, call.tool))
    per_key = Counter(call.key for call in calls)
    repeated_unsafe = [key for key, times in per_key.items() if times > 1 and places_tool(places[key]) == UNSAFE]
    most_calls = max(per_key.values(), default=0)
    return record(
        "R4",
        {
            "recorded_twice": len(rows),
            "keys_per_step": max((len(found) for found in keys.values()), default=0),
            "steps_per_key": max((len(found) for found in places.values()), default=0),
            "unsafe_repeated": len(repeated_unsafe),
            **({"calls_per_step": most_calls} if one_kill_each else {}),
        },
        limits={"keys_per_step": 1, "steps_per_key": 1, "calls_per_step": 2},
        tool_steps=len(keys),
        tool_calls=len(calls),
        calls_per_step_max=most_calls,
        examples=repeated_unsafe[:5],
    )


def places_tool(found: set[tuple[str, str]]) -> str:
    return min(tool for _, tool in found)


async def model_calls_are_paid_once(
    dsn: str, upstream: Upstream, disturbed: Disturbed, *, taken_over: int = 0
) -> Record:
    """E10: by what the model's provider was asked, and what the driver did to the gateway meanwhile.

    Also that there was enough to see: so many model steps in which another worker took over.
    """
    steps = await _model_steps(dsn)
    journaled = {place: step.journaled_at for place, step in steps.items() if step.journaled_at is not None}
    found = paid_twice(upstream.payments, journaled, disturbed)
    unsaid = [place for place in found.in_doubt if place in steps and steps[place].said_duplicate is False]
    per_step = [len(paid) for paid in upstream.payments.values()]
    [row] = await ask(dsn, _TAKEN_OVER)
    return record(
        "E10",
        {
            "model_steps_paid_twice": len(found.unexplained),
            "in_doubt_and_not_said": len(unsaid),
            "taken_over_too_few": max(0, taken_over - row["steps"]),
        },
        model_steps=len(per_step),
        model_calls=sum(per_step),
        model_calls_per_step_max=max(per_step, default=0),
        model_steps_taken_over=row["steps"],
        gateway_kills=len(disturbed.killed),
        model_steps_in_doubt_paid_twice=len(found.in_doubt),
        examples=[*(f"{place}: {why}" for place, why in found.unexplained.items()), *unsaid][:5],
    )


class ModelStep(Struct, frozen=True, kw_only=True):
    journaled_at: float | None
    """When the gateway first had its reply in the journal."""
    said_duplicate: bool | None
    """Whether its receipt says that it may have been paid before; None without a receipt."""


_MODEL_STEPS: Final = """
SELECT s.run_id, s.n, (r.input #>> '{}')::json ->> 'marker' AS marker,
       row_number() OVER (PARTITION BY s.run_id ORDER BY s.n) - 1 AS turn,
       (s.output #>> '{route,possible_duplicate}')::boolean AS said
FROM steps s JOIN runs r ON r.id = s.run_id
WHERE s.kind = 'model'
"""
_JOURNALED: Final = """
SELECT split_part(step_key, '/', 1) AS key, extract(epoch FROM min(at))::float8 AS at FROM faults.replies GROUP BY 1
"""
_TAKEN_OVER: Final = """
SELECT count(DISTINCT (s.run_id, s.n)) AS steps
FROM steps s JOIN faults.claims c ON c.run_id = s.run_id AND c.at > s.started_at AND c.at < s.finished_at
WHERE s.kind = 'model'
"""


async def _model_steps(dsn: str) -> dict[str, ModelStep]:
    """By place, as the model names it: run and turn."""
    journaled = {row["key"]: row["at"] for row in await ask(dsn, _JOURNALED)}
    return {
        f"{row['marker']}/{row['turn']}": ModelStep(
            journaled_at=journaled.get(step_key(RunId(minted("run", row["run_id"])), row["n"])),
            said_duplicate=row["said"],
        )
        for row in await ask(dsn, _MODEL_STEPS)
    }


async def nothing_is_written_by_the_stale(
    dsn: str, takeovers_s: Sequence[float], *, held: int, **figures: float
) -> Record:
    zombies = await ask(dsn, "SELECT run_id, n, status, epoch, current FROM faults.zombies")
    older = await ask(dsn, "SELECT count(*) AS all FROM faults.older")
    claims = await ask(dsn, "SELECT count(*) FILTER (WHERE epoch > 1) AS again, count(*) AS all FROM faults.claims")
    return record(
        "R5",
        {
            "zombie_commits": len(zombies),
            "never_taken_over": held - len(takeovers_s),
            "takeover_p99_s": round(percentile(takeovers_s, 0.99), 1) if takeovers_s else 0.0,
        },
        limits={"takeover_p99_s": TAKEN_OVER_WITHIN_S},
        **figures,
        claims=claims[0]["all"],
        claims_after_the_first=claims[0]["again"],
        taken_over_from_the_stopped=len(takeovers_s),
        steps_closed_by_a_cancel=older[0]["all"] - len(zombies),
        examples=[" ".join(f"{name}={value}" for name, value in row.items()) for row in zombies[:5]],
    )


async def events_have_no_gaps(dsn: str, ledger: Ledger, *, races: int, followed: int, prolonged_s: float = 0) -> Record:
    """Also that there was enough to see: so many cancels that raced the end, so many runs followed with reconnects."""
    rows = await ask(dsn, "SELECT run_id, sequence, event_id, type FROM run_events ORDER BY run_id, sequence")
    stored: defaultdict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        stored[minted("run", row["run_id"])].append(row)
    gaps = multi = 0
    for events in stored.values():
        types = [row["type"] for row in events]
        gaps += [row["sequence"] for row in events] != list(range(1, len(events) + 1))
        ends = [kind for kind in types if kind in TERMINAL]
        multi += len(ends) > 1 or (len(ends) == 1 and types[-1] != ends[0])
    dups = rewritten = received = 0
    for run_id, streams in ledger.streams.items():
        truth = {row["sequence"]: (minted("evt", row["event_id"]), row["type"]) for row in stored[run_id]}
        for seen in streams:
            received += len(seen)
            sequences = [one.sequence for one in seen]
            dups += len(sequences) - len(set(sequences))
            gaps += sequences != sorted(sequences) or (bool(sequences) and sequences != [*range(1, len(sequences) + 1)])
            rewritten += sum(truth.get(one.sequence) != (one.event_id, one.type) for one in seen)
    return record(
        "R6",
        {
            "gaps": gaps,
            "dups": dups,
            "multi_terminal": multi,
            "rewritten": rewritten,
            "races_too_few": max(0, races - ledger.raced),
            "reconnected_runs_too_few": max(0, followed - ledger.followed),
        },
        prolonged_s=round(prolonged_s, 1),
        runs=len(stored),
        events=len(rows),
        streams=sum(len(streams) for streams in ledger.streams.values()),
        events_received=received,
        reconnects=sum(ledger.reconnects.values()),
        runs_with_five_reconnects=ledger.followed,
        cancels_racing_the_end=ledger.raced,
    )


async def one_run_per_key(dsn: str, ledger: Ledger) -> Record:
    rows = await ask(dsn, "SELECT (input #>> '{}')::json ->> 'marker' AS marker, count(*) AS runs FROM runs GROUP BY 1")
    made = {row["marker"]: int(row["runs"]) for row in rows}
    told = max((len(runs) for runs in ledger.answers.values()), default=0)
    return record(
        "R7",
        {"max_runs_per_key": max(told, *made.values(), 0)},
        limits={"max_runs_per_key": 1},
        keys=len(ledger.answers),
        runs=sum(made.values()),
        runs_nobody_was_promised=sum(marker not in ledger.answers for marker in made),
    )
