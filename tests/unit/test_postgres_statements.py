"""A lint of ours: a statement names the tenant whose rows it touches, everywhere but where that is the point."""

import re
from importlib.resources import files
from typing import Final

import pytest

from adapters.postgres.statements import Statement, parse, statement

FOLDER: Final = files("adapters.postgres") / "sql"

# They go through functions that cross tenants on purpose, or read what belongs to nobody.
ACROSS_TENANTS: Final = {
    "run_state.renew", "run_state.retire", "run_state.orphans", "run_state.adrift", "queue.lease_any",
    "queue.lease_idle", "queue.depth_any",
    "tenant.list", "tenant.find_key", "tenant.keys_used", "event.stream_epoch", "reply_journal.forget",
    "maintenance.make_event_days", "maintenance.make_request_days",
    "audit.heads", "maintenance.drop_request_days", "maintenance.forget_requests",
    "maintenance.forget_runs", "maintenance.thin_request_days", "maintenance.drop_event_days",
    "maintenance.thin_event_days", "maintenance.retain",
    "privacy.lock_upkeep", "privacy.copy_kept",
    # The node's, and no tenant's.
    "gateway_configuration.current", "gateway_configuration.newest", "gateway_configuration.get",
    "gateway_configuration.list", "gateway_configuration.add",
}  # fmt: skip

# Their function asks which tenant the transaction is bound to, which no caller of it can say otherwise.
BY_THE_TRANSACTION: Final = {
    "administration.forget_home", "administration.move_standing", "administration.stays", "audit.stays",
    "privacy.end", "privacy.erase_requests", "privacy.erase_rest", "privacy.erase_runs", "privacy.erase_usage",
    "privacy.late",
}  # fmt: skip

TABLES: Final = (
    "tenants|api_keys|principals|acting_principals|"
    "agents|runs|idempotency|steps|run_events|queue_messages|memory_items|memory_words|budget_windows|"
    "budget_holds|budget_hold_windows|budgets|usage_events|audit_log|audit_chain|audit_heads|model_replies|request_records|request_contents|blobs|blob_refs|budgets|budget_hold_windows|usage_events|run_slots|run_rates|"
    "run_backlogs|queue_turns"
)
_READ: Final = re.compile(rf"\b(?:FROM|JOIN|UPDATE|DELETE FROM)\s+(?:{TABLES})\b(?:\s+(?:AS\s+)?(\w+))?")
_BOUND: Final = re.compile(r"\b(?:\w+\.)?tenant_id = (?::tenant|\w+\.tenant(?:_id)?)\b")
_NAMED: Final = re.compile(r":tenant\b|:asks\b.*\btenant text\b", re.DOTALL)
"""Once for the whole statement, or in each ask of a batch."""


def _bare(statement: str) -> str:
    """Without comments."""
    return re.sub(r"--.*", "", statement)


def unbound_reads(statement: str) -> int:
    """How many more tables a statement reads than it binds to a tenant."""
    bare = _bare(statement)
    upserts = len(re.findall(r"DO UPDATE\s+SET", bare))
    return len(_READ.findall(bare)) - len(_BOUND.findall(bare)) - upserts


def all_statements() -> dict[str, str]:
    return {
        f"{file.name.removesuffix('.sql')}.{name}": body
        for file in FOLDER.iterdir()
        for name, body in parse(file.read_text(encoding="utf-8")).items()
    }


def last_definition(function: str) -> str:
    """As the migrations leave it."""
    folder = files("adapters.postgres") / "migrations"
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(folder.iterdir(), key=lambda file: file.name))
    before, _, last = text.rpartition(f" FUNCTION {function}(")
    assert before, f"no migration makes {function}"
    return re.split(r"\nREVOKE ALL ON FUNCTION|\nCREATE ", last)[0]


@pytest.mark.parametrize("name", sorted(all_statements().keys() - ACROSS_TENANTS - BY_THE_TRANSACTION))
def test_every_statement_names_the_tenant(name: str) -> None:
    statement = all_statements()[name]

    assert _NAMED.search(statement)
    assert unbound_reads(statement) <= 0


def test_what_crosses_tenants_touches_no_tenants_table_itself() -> None:
    statements = all_statements()

    apart = ACROSS_TENANTS | BY_THE_TRANSACTION
    assert statements.keys() >= apart
    assert [name for name in apart if _READ.search(statements[name])] == []


def asks_the_transaction(function: str) -> bool:
    """Itself, or by the first function it calls for that."""
    body = last_definition(function)
    others = re.findall(r"= (ao_(?:bound_tenant|erasing))\(", body)
    return "current_setting('app.tenant_id', true)" in body or any(asks_the_transaction(other) for other in others)


@pytest.mark.parametrize("name", sorted(BY_THE_TRANSACTION))
def test_a_function_that_is_told_no_tenant_asks_the_transaction(name: str) -> None:
    [function] = re.findall(r"\bao_\w+(?=\()", _bare(all_statements()[name]))

    assert asks_the_transaction(function)


def test_a_function_that_does_not_ask_is_found() -> None:
    assert not asks_the_transaction("ao_retain")


@pytest.mark.parametrize(
    "bad",
    [
        "SELECT * FROM runs WHERE id = :run",
        "UPDATE steps s SET status = 'x' WHERE s.n = :n",
        "DELETE FROM queue_messages WHERE id = :id",
        "UPDATE runs r SET status = 'x' FROM asked a WHERE r.id = a.run",
        "SELECT * FROM runs r JOIN run_events e ON e.run_id = r.id WHERE r.tenant_id = :tenant",
    ],
)
def test_a_statement_that_forgets_the_tenant_is_found(bad: str) -> None:
    assert unbound_reads(bad) > 0


def test_a_good_statement_is_not_found() -> None:
    assert unbound_reads("SELECT * FROM runs r WHERE r.tenant_id = :tenant AND r.id = :run") == 0


def test_no_session_level_set() -> None:
    source = (files("adapters.postgres") / "engine.py").read_text(encoding="utf-8")

    assert re.findall(r"SET (?!LOCAL)\w+\.", source) == []
    assert all("set_config" not in _bare(body).lower() for body in all_statements().values())


def test_a_name_used_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;")


def test_parameters_are_numbered_in_the_order_of_their_first_use() -> None:
    source = "SELECT x::text, '12:30:45', b[1:2] FROM t WHERE b = :b AND a IN (:a, CAST(:b AS int)) LIMIT :limit_1;"

    numbered = "SELECT x::text, '12:30:45', b[1:2] FROM t WHERE b = $1 AND a IN ($2, CAST($1 AS int)) LIMIT $3;"
    assert statement(source) == Statement(numbered, ("b", "a", "limit_1"))
    assert statement(source).arguments({"a": 1, "b": 2, "limit_1": 3, "more": 4}) == [2, 1, 3]
