"""What one append does to the steps: pure, as rows for the statement that does it."""

from typing import Any, TypeAlias

from adapters.postgres.blobs import Outgoing
from adapters.postgres.rows import packed, packed_or_null
from ports.errors import Conflict
from ports.messages import Usage
from ports.run_state import StepIntent, StepResult

StepRow: TypeAlias = dict[str, Any]
"""Columns of one step; JSON among them as text."""


def step_rows(facts: tuple[StepIntent | StepResult, ...], outgoing: Outgoing) -> tuple[list[StepRow], list[StepRow]]:
    """The steps to insert, and the changes of steps that are in the journal already: `was` is what each must be before.
    Large bodies go to `outgoing`.

    An intent and its result in the same append become one row, because a statement can't change a row twice.

    Raises:
        Conflict: a step has two intents or two results here, or its result comes before its intent.
    """
    intents: dict[int, StepIntent] = {}
    results: dict[int, StepResult] = {}
    for fact in facts:
        if isinstance(fact, StepIntent):
            if fact.n in intents:
                raise Conflict(f"step {fact.n} has an intent already")
            if fact.n in results:
                raise Conflict(f"step {fact.n} has no intent; write the intent before the result")
            intents[fact.n] = fact
        else:
            if fact.n in results:
                raise Conflict(f"step {fact.n} has a result already")
            results[fact.n] = fact
    both = [(intent, results.pop(n, None)) for n, intent in intents.items()]
    inserted = [_inserted(intent, result, outgoing) for intent, result in both if not intent.again]
    repeated = [_repeated(intent, result, outgoing) for intent, result in both if intent.again]
    return inserted, [*repeated, *(_result(result, outgoing) | {"was": "started"} for result in results.values())]


def usage_of(facts: tuple[StepIntent | StepResult, ...]) -> Usage:
    """What the results among `facts` consumed."""
    used = Usage()
    for fact in facts:
        if isinstance(fact, StepResult):
            used = used.plus(fact.usage)
    return used


def _inserted(intent: StepIntent, result: StepResult | None, outgoing: Outgoing) -> StepRow:
    begun = {
        "n": intent.n,
        "kind": intent.kind,
        "name": intent.name,
        "effect": intent.effect,
        "status": "started",
        "input": outgoing.packed(intent.input),
        "digest": intent.input_digest,
        "usage": packed(Usage()),
    }
    return begun if result is None else begun | _result(result, outgoing)


def _repeated(intent: StepIntent, result: StepResult | None, outgoing: Outgoing) -> StepRow:
    begun = {"n": intent.n, "status": "started", "output": None, "error": None, "usage": packed(Usage())}
    return (begun if result is None else _result(result, outgoing)) | {"was": "planned"}


def _result(result: StepResult, outgoing: Outgoing) -> StepRow:
    return {
        "n": result.n,
        "status": result.status,
        "output": outgoing.packed_or_null(result.output),
        "error": packed_or_null(result.error),
        "usage": packed(result.usage),
    }
