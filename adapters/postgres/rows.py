"""Rows to Structs, and JSON to what a column takes."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from ports.context import AuthContext
from ports.errors import Internal, InvalidArgument
from ports.event import Event
from ports.ids import AgentId, EventId, RunId, TenantId, minted
from ports.messages import Fault, Json, Usage
from ports.run_state import Origin, Parent, Run, Step

ValueT = TypeVar("ValueT")
Row: TypeAlias = Mapping[str, Any]
"""By column."""

BLOB_MARK: Final = "$blob"
"""In a column, a reference to a large body, see `blobs`. `whole` puts the body in its place."""
WHOLE: Final = "$whole"
"""In a row whose references `whole` has replaced."""
RUN_BODIES: Final = ("input", "context", "output")
STEP_BODIES: Final = ("input", "output")


def packed(value: Json) -> str:
    """`value` as JSON text. Raises `InvalidArgument` for what no JSON can hold."""
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise InvalidArgument(
            "the value can't be written as JSON: it holds a lone surrogate or an unknown type"
        ) from error


def packed_or_null(value: Json) -> str | None:
    return None if value is None else packed(value)


def optional(value: Json, kind: type[ValueT]) -> ValueT | None:
    return None if value is None else msgspec.convert(value, kind)


def page_size(limit: int, most: int) -> int:
    """`limit` where it makes sense, `most` where it asks for more. Raises `InvalidArgument` below 1."""
    if limit < 1:
        raise InvalidArgument(f"limit must be at least 1, not {limit}")
    return min(limit, most)


def position(after: int) -> int:
    """Any number a caller may send, as one the column can be compared with."""
    return max(-1, min(after, 2**31 - 1))


def positive(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):
        raise InvalidArgument(f"a lease must last longer than nothing, not {duration}")
    return duration


def body(row: Row, column: str) -> Json:
    """A body that may be large, once it is whole: a reference must not be taken for what was written."""
    value: Json = row[column]
    if isinstance(value, dict) and BLOB_MARK in value and WHOLE not in row:
        raise Internal("a large body was not fetched; read the rows through `blobs.whole`")
    return value


def run_of(row: Row) -> Run:
    allowed: list[str] | None = row["tool_allowlist"]
    origin, parent = row["forked_from"], row["parent_id"]
    return Run(
        id=RunId(minted("run", row["id"])),
        requester=msgspec.convert(row["requester"], AuthContext),
        agent_id=AgentId(row["agent_id"]),
        agent_version=row["agent_version"],
        agent_digest=row["agent_digest"],
        status=row["status"],
        input=body(row, "input"),
        context=msgspec.convert(body(row, "context"), dict[str, Json]),
        tool_allowlist=None if allowed is None else tuple(allowed),
        session_id=row["session_id"],
        created_at=row["created_at"],
        deadline_at=row["deadline_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        cancel_requested_at=row["cancel_requested_at"],
        worker=row["worker_id"],
        epoch=row["epoch"],
        last_sequence=row["last_sequence"],
        recoveries=row["recoveries"],
        output=body(row, "output"),
        error=optional(row["error"], Fault),
        usage=Usage(
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            cost_nanousd=row["cost_nanousd"],
            estimated=row["usage_estimated"],
        ),
        forked_from=None if origin is None else Origin(run_id=RunId(minted("run", origin)), step=row["forked_step"]),
        parent=None
        if parent is None
        else Parent(run_id=RunId(minted("run", parent)), step=row["parent_step"], depth=row["depth"]),
        priority=row["priority"],
        waits_for=row["waits_for"] if row["status"] == "waiting" else None,
    )


def step_of(row: Row) -> Step:
    return Step(
        n=row["n"],
        kind=row["kind"],
        name=row["name"],
        effect=row["effect"],
        status=row["status"],
        input=body(row, "input"),
        input_digest=row["input_digest"],
        epoch=row["epoch"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        output=body(row, "output"),
        error=optional(row["error"], Fault),
        usage=msgspec.convert(row["usage"], Usage),
    )


def event_of(row: Row) -> Event:
    return Event(
        event_id=EventId(minted("evt", row["event_id"])),
        run_id=RunId(minted("run", row["run_id"])),
        tenant_id=TenantId(row["tenant_id"]),
        sequence=row["sequence"],
        type=row["type"],
        time=row["time"],
        data=msgspec.convert(body(row, "data"), dict[str, Json]),
        correlation_id=row["correlation_id"],
        traceparent=row["traceparent"],
    )


def scope_of(auth: AuthContext) -> dict[str, Any]:
    """The parameters that keep a statement to the caller's tenant and namespace."""
    return {"tenant": auth.tenant, "namespace": auth.namespace}


def by_place(rows: Sequence[Row], tenants: Sequence[TenantId]) -> dict[int, Row]:
    """What a batch did, by the ask's place in it; `tenants` are those of the asks.

    Raises:
        Internal: a row is not its asker's. A batch is bound to the tenants of all its asks, so row-level security does not
            keep these apart from each other; this does, because it comes before the commit.
    """
    for row in rows:
        if row["tenant_id"] != tenants[row["place"]]:
            raise Internal("a statement reached a row of a tenant that did not ask for it; nothing of it was kept")
    return {row["place"]: row for row in rows}


def trace_of(auth: AuthContext) -> dict[str, Any]:
    return {"correlation_id": auth.trace.correlation_id, "traceparent": auth.trace.traceparent}


def actor_of(auth: AuthContext) -> dict[str, Any]:
    """Who does it, for the audit."""
    return {
        "namespace": auth.namespace,
        "actor": auth.actor_tenant,
        "principal": auth.principal,
        "correlation_id": auth.trace.correlation_id,
    }
