"""What the kit's own parts promise: clauses, contracts, deviations, the report."""

import json

import pytest

from conformance.clauses import CLAUSES, clause, clauses_in
from conformance.contract import Contract, contract_tests, proven_clauses
from conformance.queue import QueueContract
from conformance.report import required, status_of, verdict_of

pytest_plugins = ["pytester"]

SUITE = """
    import pytest
    from conformance.clauses import clause
    from conformance.contract import Contract

    class SmallContract(Contract):
        @clause("CLK-1")
        def test_first(self, works): assert works

        @clause("CLK-2")
        @pytest.mark.parametrize("n", [1, 2])
        def test_second(self, n): pass

        @clause("CLK-3")
        def test_third(self): pytest.skip("not declared")

    class TestSmall(SmallContract):
        deviations = {DEVIATIONS}

        @pytest.fixture
        def works(self): return {WORKS}
"""


def suite(*, works: bool, deviations: dict[str, str] | None = None) -> str:
    return SUITE.replace("{WORKS}", repr(works)).replace("{DEVIATIONS}", repr(deviations or {}))


def test_an_unknown_clause_fails_at_import() -> None:
    with pytest.raises(LookupError, match="QUE-999"):
        clause("QUE-999")


def test_a_clause_goes_on_over_its_indented_lines_and_ends_with_the_list() -> None:
    docstring = "Port.\n\n* ABC-1  First\n         goes on.\n* ABC-2  Second.\n\nAfterwards\n  indented.\n"

    found = clauses_in("port", docstring)

    assert [(one.id, one.text) for one in found] == [("ABC-1", "First goes on."), ("ABC-2", "Second.")]


def test_a_contracts_test_can_not_be_overridden() -> None:
    with pytest.raises(TypeError, match=r"overrides QueueContract\.test_a_leased_message_is_invisible"):

        class Overriding(QueueContract):
            async def test_a_leased_message_is_invisible(self) -> None:  # type: ignore[override]  # that is the point
                pass


def test_a_contracts_test_can_not_be_overridden_by_a_mixin() -> None:
    class Mixin:
        test_a_leased_message_is_invisible = None

    with pytest.raises(TypeError, match="in Mixin"):

        class Overriding(Mixin, QueueContract):  # type: ignore[misc]  # that is the point
            pass


def test_a_subclass_may_have_tests_of_its_own() -> None:
    class Wider(QueueContract):
        def test_something_of_this_adapter(self) -> None:
            pass

    assert set(contract_tests(Wider)) == {*contract_tests(QueueContract), "test_something_of_this_adapter"}


def test_a_deviation_from_a_clause_the_contract_does_not_test_is_refused() -> None:
    with pytest.raises(TypeError, match="RUN-1"):

        class Deviating(QueueContract):
            deviations = {"RUN-1": "another port's"}  # noqa: RUF012 - how adapter authors write it


def test_a_contract_knows_the_clauses_it_tests() -> None:
    assert proven_clauses(QueueContract) == {one for one in CLAUSES if one.startswith("QUE-")}
    assert proven_clauses(Contract) == frozenset()


def test_a_deviation_is_an_expected_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(suite(works=False, deviations={"CLK-1": "issue 12"}))

    outcome = pytester.runpytest_inprocess("-p", "no:cacheprovider")

    outcome.assert_outcomes(passed=2, skipped=1, xfailed=1)


def test_a_deviation_that_has_been_repaired_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(suite(works=True, deviations={"CLK-1": "issue 12"}))

    outcome = pytester.runpytest_inprocess("-p", "no:cacheprovider")

    outcome.assert_outcomes(passed=2, skipped=1, failed=1)


@pytest.mark.parametrize(
    ("works", "deviations", "statuses", "verdict"),
    [
        (True, {}, ["passed", "passed", "not shown"], "incomplete"),
        (False, {}, ["failed", "passed", "not shown"], "failed"),
        (False, {"CLK-1": "issue 12"}, ["deviates", "passed", "not shown"], "incomplete"),
    ],
)
def test_the_report_has_an_entry_for_every_clause(
    pytester: pytest.Pytester, works: bool, deviations: dict[str, str], statuses: list[str], verdict: str
) -> None:
    pytester.makepyfile(suite(works=works, deviations=deviations))
    path = pytester.path / "clauses.json"

    pytester.runpytest_inprocess("-p", "no:cacheprovider", f"--clause-report={path}")

    [subject] = json.loads(path.read_text())
    assert [one["id"] for one in subject["clauses"]] == ["CLK-1", "CLK-2", "CLK-3"]
    assert [one["status"] for one in subject["clauses"]] == statuses
    assert subject["verdict"] == verdict


def test_a_clause_no_test_was_run_for_is_missing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(suite(works=True))
    path = pytester.path / "clauses.txt"

    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "first", f"--clause-report={path}")

    lines = path.read_text().splitlines()
    assert lines[0].endswith("TestSmall: incomplete")
    assert [line.split()[0] for line in lines[1:4]] == ["passed", "missing", "missing"]


def test_a_clause_is_as_good_as_its_worst_test() -> None:
    assert status_of([]) == "missing"
    assert status_of(["skipped"]) == "not shown"
    assert status_of(["skipped", "passed"]) == "passed"
    assert status_of(["passed", "deviates"]) == "deviates"
    assert status_of(["passed", "deviates", "failed"]) == "failed"


def test_only_a_report_without_gaps_is_a_pass() -> None:
    assert verdict_of(["passed", "passed"]) == "passed"
    assert verdict_of(["passed", "deviates"]) == "deviates"
    assert verdict_of(["deviates", "not shown"]) == "incomplete"
    assert verdict_of(["missing", "failed"]) == "failed"


def test_a_report_requires_every_clause_of_its_port_but_the_deferred() -> None:
    assert {one.id for one in required(["QUE-1"])} == {one for one in CLAUSES if one.startswith("QUE-")}
    assert required(["INT-1"]) == []
