"""The report by clause: what each adapter under test kept, of everything its port promises."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec
import pytest
from msgspec import Struct

from conformance.clauses import CLAUSES, DEFERRED, Clause

Outcome: TypeAlias = Literal["passed", "failed", "skipped", "deviates"]
Status: TypeAlias = Literal["passed", "failed", "deviates", "not shown", "missing"]
Verdict: TypeAlias = Literal["passed", "failed", "deviates", "incomplete"]

PROPERTY: Final = "agentos_clauses"
"""Name of the user property that carries a test's clauses in its report, also between processes."""


class ClauseResult(Struct, frozen=True, kw_only=True):
    id: str
    text: str
    status: Status
    tests: dict[str, Outcome]


class SubjectResult(Struct, frozen=True, kw_only=True):
    """One contract class over one adapter."""

    subject: str
    verdict: Verdict
    clauses: tuple[ClauseResult, ...]


def status_of(outcomes: Sequence[Outcome]) -> Status:
    """A clause is kept when at least one test showed it and none contradicts."""
    if "failed" in outcomes:
        return "failed"
    if "deviates" in outcomes:
        return "deviates"
    if "passed" in outcomes:
        return "passed"
    return "not shown" if outcomes else "missing"


def verdict_of(statuses: Iterable[Status]) -> Verdict:
    """A clause that no test has shown is no pass."""
    found = set(statuses)
    if "failed" in found:
        return "failed"
    if found & {"missing", "not shown"}:
        return "incomplete"
    return "deviates" if "deviates" in found else "passed"


def required(tested: Iterable[str]) -> list[Clause]:
    """Every clause of the ports that `tested` belong to, but those the kit defers."""
    ports = {CLAUSES[one].port for one in tested}
    return [clause for clause in CLAUSES.values() if clause.port in ports and clause.id not in DEFERRED]


def result_of(subject: str, outcomes: dict[str, dict[str, Outcome]]) -> SubjectResult:
    """`outcomes` by clause and test."""
    clauses = tuple(
        ClauseResult(
            id=clause.id,
            text=clause.text,
            status=status_of(list(outcomes.get(clause.id, {}).values())),
            tests=outcomes.get(clause.id, {}),
        )
        for clause in required(outcomes)
    )
    return SubjectResult(subject=subject, verdict=verdict_of(one.status for one in clauses), clauses=clauses)


def as_text(results: Sequence[SubjectResult]) -> str:
    lines: list[str] = []
    for result in results:
        lines.append(f"{result.subject}: {result.verdict}")
        lines += [f"  {one.status:<9}  {one.id:<7} {one.text}" for one in result.clauses]
        lines.append("")
    return "\n".join(lines)


class ClauseReport:
    """A pytest plugin that gathers outcomes and writes them at the end of the session."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._outcomes: defaultdict[str, defaultdict[str, dict[str, Outcome]]] = defaultdict(lambda: defaultdict(dict))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        clauses = dict(report.user_properties).get(PROPERTY)
        outcome = _outcome(report)
        if not isinstance(clauses, list) or outcome is None:
            return
        subject, _, test = report.nodeid.rpartition("::")
        for one in clauses:
            known = self._outcomes[subject][one]
            # A test that passed and failed while tearing down has failed.
            if known.get(test) != "failed":
                known[test] = outcome

    def results(self) -> list[SubjectResult]:
        return [result_of(subject, dict(outcomes)) for subject, outcomes in sorted(self._outcomes.items())]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return  # the process that started the workers writes the report
        results = self.results()
        if self._path.suffix == ".json":
            self._path.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
        else:
            self._path.write_text(as_text(results), encoding="utf-8")


def _outcome(report: pytest.TestReport) -> Outcome | None:
    """None for the phases that say nothing: a set-up or tear-down that went well."""
    if hasattr(report, "wasxfail"):
        return "deviates" if report.skipped else "failed"
    if report.when == "call" or report.outcome != "passed":
        return report.outcome
    return None
