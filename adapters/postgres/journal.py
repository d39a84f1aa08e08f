"""What one append does to the steps: pure, as rows for the statement that does it."""

from typing import Any, TypeAlias

from adapters.postgres.rows import packed, packed_or_null
from ports.errors import Conflict
from ports.messages import Usage
from ports.run_state import StepIntent, StepResult

StepRow: TypeAlias = dict[str, Any]
"""Columns of one step; JSON among them as text."""


def step_rows(facts: tuple[StepIntent | StepResult, ...]) -> tuple[list[StepRow], list[StepRow]]:
    """The steps to insert, and the results of steps that are in the journal already.

    An intent and its result in the same append become one inserted row, because a statement can't update what it inserts.

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
    new = [(intent, results.pop(n, None)) for n, intent in intents.items()]
    return [_inserted(intent, result) for intent, result in new], [_result(result) for result in results.values()]


def usage_of(facts: tuple[StepIntent | StepResult, ...]) -> Usage:
    """What the results among `facts` consumed."""
    used = Usage()
    for fact in facts:
        if isinstance(fact, StepResult):
            used = used.plus(fact.usage)
    return used


def _inserted(intent: StepIntent, result: StepResult | None) -> StepRow:
    begun = {
        "n": intent.n,
        "kind": intent.kind,
        "name": intent.name,
        "effect": intent.effect,
        "status": "started",
        "input": packed(intent.input),
        "digest": intent.input_digest,
        "usage": packed(Usage()),
    }
    return begun if result is None else begun | _result(result)


def _result(result: StepResult) -> StepRow:
    return {
        "n": result.n,
        "status": result.status,
        "output": packed_or_null(result.output),
        "error": packed_or_null(result.error),
        "usage": packed(result.usage),
    }
