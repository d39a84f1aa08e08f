"""Hypothesis strategies for what crosses ports."""

from typing import Final

from hypothesis import strategies as st

from ports.context import SCOPES, AuthContext, PolicyContext, Trace
from ports.ids import NodeId, PrincipalId, TenantId
from ports.messages import Fault, Json, Usage
from ports.run_state import Change, NewEvent, StepIntent, StepResult

# What the strict parser of the HTTP edge lets in: no NUL, no lone surrogates.
_TEXT: Final = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
_NAMES: Final = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=20)
_INT64: Final = st.integers(-(2**63), 2**63 - 1)


def texts() -> st.SearchStrategy[str]:
    return _TEXT


def json_values() -> st.SearchStrategy[Json]:
    """Any JSON the platform takes: 64-bit integers, finite numbers, text without NUL."""
    leaves = st.none() | st.booleans() | _INT64 | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
        max_leaves=12,
    )


def json_objects() -> st.SearchStrategy[dict[str, Json]]:
    return st.dictionaries(_TEXT, json_values(), max_size=4)


def tenant_ids() -> st.SearchStrategy[TenantId]:
    return st.from_regex(r"tnt_[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True).map(TenantId)


def contexts() -> st.SearchStrategy[AuthContext]:
    return st.builds(
        AuthContext,
        tenant=tenant_ids(),
        principal=_NAMES.map(PrincipalId),
        scopes=st.frozensets(st.sampled_from(sorted(SCOPES)), max_size=5),
        roles=st.frozensets(_NAMES, max_size=2),
        namespace=_NAMES,
        policy=st.builds(PolicyContext, classification=_NAMES, regions=st.lists(_NAMES, max_size=2).map(tuple)),
        via=st.lists(_NAMES.map(NodeId), max_size=3).map(tuple),
        trace=st.builds(Trace, correlation_id=_NAMES),
    )


def usages() -> st.SearchStrategy[Usage]:
    counts = st.integers(0, 10**9)
    return st.builds(
        Usage, prompt_tokens=counts, completion_tokens=counts, cost_nanousd=counts, estimated=st.booleans()
    )


def faults() -> st.SearchStrategy[Fault]:
    return st.builds(Fault, code=_NAMES, message=_TEXT, retryable=st.booleans())


def intents(n: st.SearchStrategy[int]) -> st.SearchStrategy[StepIntent]:
    return st.builds(
        StepIntent,
        n=n,
        kind=st.sampled_from(("model", "tool", "agent")),
        name=_NAMES,
        effect=st.sampled_from(("pure", "idempotent", "transactional", "unsafe")),
        input=json_values(),
        input_digest=_NAMES,
    )


def results(n: st.SearchStrategy[int]) -> st.SearchStrategy[StepResult]:
    return st.builds(
        StepResult,
        n=n,
        status=st.sampled_from(("completed", "failed", "unknown")),
        output=json_values(),
        error=st.none() | faults(),
        usage=usages(),
    )


def new_events() -> st.SearchStrategy[NewEvent]:
    """Events that end nothing."""
    kinds = ("step.started", "step.completed", "tool.requested", "tool.completed", "model.delta")
    return st.builds(NewEvent, type=st.sampled_from(kinds), data=json_objects())


def changes(n: st.SearchStrategy[int]) -> st.SearchStrategy[Change]:
    """Changes that leave a run's status as it is; whether their steps fit its journal is open."""
    return st.builds(
        Change,
        steps=st.lists(intents(n) | results(n), max_size=3).map(tuple),
        events=st.lists(new_events(), max_size=3).map(tuple),
    )
