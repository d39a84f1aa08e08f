"""Who tests the tests: adapters broken on purpose fail exactly the tests that are about what is broken."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Final, TypeAlias

import msgspec
import pytest

from conformance.clauses import CLAUSES
from conformance.report import SubjectResult
from tests.contract.broken import (
    administrations,
    audits,
    detectors,
    directories,
    events,
    gateway_configurations,
    lax_ledgers,
    lax_run_states,
    ledgers,
    memories,
    models,
    one_step,
    privacies,
    providers,
    queues,
    registries,
    replies,
    request_logs,
    run_claims,
    run_effects,
    run_families,
    run_order,
    run_states,
    run_verbs,
    secret_stores,
    tools,
    unfair_queues,
    upkeeps,
    ways_out,
)
from tests.contract.broken.mutant import Mutant

ROOT: Final = Path(__file__).parents[2]
SUITES: Final = {
    "administration": administrations,
    "queue": queues,
    "unfair_queues": unfair_queues,
    "run_state": run_states,
    "lax_run_states": lax_run_states,
    "run_claims": run_claims,
    "run_verbs": run_verbs,
    "run_effects": run_effects,
    "run_families": run_families,
    "run_order": run_order,
    "event": events,
    "maintenance": upkeeps,
    "memory": memories,
    "budget": ledgers,
    "lax_ledgers": lax_ledgers,
    "reply_journal": replies,
    "request_log": request_logs,
    "gateway_configuration": gateway_configurations,
    "audit": audits,
    "privacy": privacies,
    "model": models,
    "tool": tools,
    "agent": registries,
    "tenant": directories,
    "pii": detectors,
    "secrets": secret_stores,
    "egress": ways_out,
    "provider": providers,
}
_PARTS: Final = {
    "lax_ledgers": "budget",
    "unfair_queues": "queue",
    "lax_run_states": "run_state",
    "run_claims": "run_state",
    "run_verbs": "run_state",
    "run_effects": "run_state",
    "run_families": "run_state",
    "run_order": "run_state",
}
PROCESSES: Final = 3
"""That run the kit over broken adapters beside each other: it is some 45,000 tests."""
UNUSED: Final = ("cacheprovider", "xdist", "logging", "hypothesispytest")
"""Plugins that cost a third of the time and neither pass nor fail a test."""
PORT_OF: Final = {suite: _PARTS.get(suite, suite) for suite in SUITES}

Failures: TypeAlias = dict[str, dict[str, set[str]]]
"""Of each broken adapter: the tests that failed, with the clauses they are for."""


def mutants(module: ModuleType) -> list[type[Mutant]]:
    return [found for name, found in vars(module).items() if name.startswith("Test") and issubclass(found, Mutant)]


CASES: Final = [
    pytest.param(suite, mutant, id=f"{suite}-{mutant.__name__}")
    for suite, module in SUITES.items()
    for mutant in mutants(module)
]


def reported(suites: Sequence[ModuleType], report: Path) -> list[SubjectResult]:
    """What the kit says of broken adapters, of which some must fail."""
    sources = [str(module.__file__) for module in suites]
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "--tb=no", "--capture=no", *(f"-pno:{name}" for name in UNUSED),
            f"-p{one_step.__name__}", f"--clause-report={report}", *sources,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=1_800, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-2_000:] + done.stderr[-2_000:]
    return msgspec.json.decode(report.read_bytes(), type=list[SubjectResult])


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Failures]:
    """What failed in each suite of broken adapters; the kit runs over all of them, once, in processes of its own."""
    folder = tmp_path_factory.mktemp("broken")
    shares = [list(SUITES.values())[share::PROCESSES] for share in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        reports = list(pool.map(reported, shares, [folder / f"clauses-{share}.json" for share in range(PROCESSES)]))
    found: dict[str, Failures] = {suite: {} for suite in SUITES}
    for result in chain.from_iterable(reports):
        path, _, mutant = result.subject.rpartition("::")
        suite = next(name for name, module in SUITES.items() if str(module.__file__).endswith(f"/{path}"))
        failed = found[suite].setdefault(mutant, {})
        for one in result.clauses:
            for test, outcome in one.tests.items():
                if outcome == "failed":
                    failed.setdefault(test.partition("[")[0], set()).add(one.id)
    return found


@pytest.mark.parametrize(("suite", "mutant"), CASES)
def test_a_broken_adapter_fails_exactly_the_tests_about_what_is_broken(
    failures: dict[str, Failures], suite: str, mutant: type[Mutant]
) -> None:
    assert set(failures[suite][mutant.__name__]) == mutant.caught_by


@pytest.mark.parametrize("port", sorted(set(PORT_OF.values())))
def test_every_clause_catches_a_broken_adapter(failures: dict[str, Failures], port: str) -> None:
    found = [failed for suite in SUITES if PORT_OF[suite] == port for failed in failures[suite].values()]
    catching = {one for failed in found for clauses in failed.values() for one in clauses}

    assert catching == {one.id for one in CLAUSES.values() if one.port == port}
