"""The tie between specification and kit: every clause has a test or a written deferral, and no test is left alone."""

import importlib
import pkgutil

import pytest

import conformance
import ports
from conformance.clauses import CLAUSES, DEFERRED, PORT_MODULES, clauses_in
from conformance.contract import Contract, proven_clauses

NO_CLAUSES = {
    "adapter", "audit_rules", "budget_rules", "capabilities", "context", "cursor", "errors", "fresh", "http", "ids",
    "memory_rules", "messages", "pii_escapes", "pii_rules", "pii_text", "policy", "priority",
    "hosts", "quota_rules", "randoms", "recent", "roles", "run_rules", "shared_reads",
}  # fmt: skip
"""Modules of `ports` that are no seam: values and rules, tested where they are."""


def all_contracts() -> list[type[Contract]]:
    for module in pkgutil.walk_packages(conformance.__path__, "conformance."):
        importlib.import_module(module.name)
    found: list[type[Contract]] = []
    waiting = [Contract]
    while waiting:
        for one in waiting.pop().__subclasses__():
            waiting.append(one)
            if one.__module__.startswith("conformance."):
                found.append(one)
    return found


def test_every_clause_has_a_test_or_a_written_deferral() -> None:
    tested = frozenset().union(*(proven_clauses(contract) for contract in all_contracts()))

    assert sorted(set(CLAUSES) - tested - set(DEFERRED)) == []


def test_no_deferral_outlives_its_reason() -> None:
    tested = frozenset().union(*(proven_clauses(contract) for contract in all_contracts()))

    assert sorted(set(DEFERRED) & tested) == []
    assert sorted(set(DEFERRED) - set(CLAUSES)) == []
    assert all(reason for reason in DEFERRED.values())


def test_every_contract_keeps_to_the_clauses_of_one_port() -> None:
    for contract in all_contracts():
        assert len({CLAUSES[one].port for one in proven_clauses(contract)}) == 1, contract.__name__


def test_every_port_is_known_to_the_kit() -> None:
    modules = {module.name for module in pkgutil.iter_modules(ports.__path__)}

    assert modules - NO_CLAUSES == set(PORT_MODULES)


@pytest.mark.parametrize("port", PORT_MODULES)
def test_a_ports_clauses_are_numbered_from_one_without_gaps(port: str) -> None:
    module = importlib.import_module(f"ports.{port}")

    ids = [one.id for one in clauses_in(port, module.__doc__ or "")]

    [prefix] = {one.partition("-")[0] for one in ids}
    assert ids == [f"{prefix}-{n}" for n in range(1, len(ids) + 1)]
