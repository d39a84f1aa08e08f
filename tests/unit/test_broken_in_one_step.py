"""The kit's tests over broken adapters are run in one step: it says of each test what pytest's own steps say."""

from pathlib import Path
from typing import Final

import pytest

from tests.contract.broken import one_step

pytest_plugins = ["pytester"]

ROOT: Final = Path(__file__).parents[2]
SUITE: Final = """
    import asyncio
    import warnings

    import pytest

    said = "as ever"

    async def fails():
        raise LookupError

    class Contract:
        async def test_passes(self, harness):
            assert harness == "opened"

        async def test_fails(self, harness):
            assert harness == "closed"

        async def test_skips(self, harness):
            pytest.skip("not declared")

        @pytest.mark.parametrize("n", [1, 2])
        async def test_fails_of_two(self, n, harness):
            assert n == 1

        async def test_fails_in_a_callback(self, harness):
            asyncio.get_running_loop().call_soon(lambda: 1 // 0)
            await asyncio.sleep(0)

        async def test_fails_by_a_warning(self, harness):
            warnings.warn("old", DeprecationWarning)

        async def test_fails_by_what_is_never_awaited(self, harness):
            fails()

        async def test_replaces_more_itself(self, monkeypatch, harness):
            monkeypatch.setitem(globals(), "said", "another thing")
            assert (harness, said) == ("opened", "another thing")

        async def test_leaves_a_task_behind(self, harness):
            self.left = asyncio.ensure_future(asyncio.Event().wait())

        async def test_sees_what_is_replaced(self, harness):
            assert said == "otherwise"

    @pytest.mark.anyio
    class TestBroken(Contract):
        @pytest.fixture
        def anyio_backend(self):
            return "asyncio"

        @pytest.fixture
        async def harness(self, monkeypatch):
            monkeypatch.setitem(globals(), "said", "otherwise")
            yield "opened"

    @pytest.mark.anyio
    class TestPutBack:
        @pytest.fixture
        def anyio_backend(self):
            return "asyncio", {"loop_factory": asyncio.SelectorEventLoop}

        @pytest.fixture
        def harness(self):
            return "given"

        async def test_is_not_what_was_replaced_before(self, harness):
            assert (harness, said) == ("given", "as ever")

    @pytest.mark.anyio
    class TestDoesNotOpen:
        @pytest.fixture
        def anyio_backend(self):
            return "asyncio"

        @pytest.fixture
        async def harness(self):
            raise LookupError
            yield

        async def test_fails_before(self, harness):
            pass

    @pytest.mark.anyio
    class TestDoesNotClose:
        @pytest.fixture
        def anyio_backend(self):
            return "asyncio"

        @pytest.fixture
        async def harness(self):
            yield
            raise LookupError

        async def test_fails_after(self, harness):
            pass
"""


LEAVING: Final = """
    import pytest

    async def unawaited():
        pass

    @pytest.mark.anyio
    class TestBroken:
        @pytest.fixture
        def anyio_backend(self):
            return "asyncio"

        @pytest.fixture
        def harness(self):
            return None

        async def test_fails(self, harness):
            left = unawaited()
            pytest.fail("before it was awaited")

        async def test_is_not_blamed(self, harness):
            pass
"""


@pytest.mark.parametrize("plugins", [[], ["-p", one_step.__name__]], ids=["as ever", "in one step"])
def test_a_test_passes_fails_or_skips_in_one_step_as_it_does_in_several(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, plugins: list[str]
) -> None:
    done = run(pytester, monkeypatch, SUITE, plugins)

    told = {line.partition("::")[2].partition(" - ")[0]: line.split(" ")[0] for line in done.outlines if "::" in line}
    passed = {name.rpartition("::")[2] for name, outcome in told.items() if outcome == "PASSED"}
    assert {name.rpartition("::")[2] for name, outcome in told.items() if outcome in {"FAILED", "ERROR"}} == {
        "test_fails", "test_fails_of_two[2]", "test_fails_in_a_callback", "test_fails_by_a_warning",
        "test_fails_by_what_is_never_awaited", "test_fails_before", "test_fails_after",
    }  # fmt: skip
    assert passed - {"test_fails_after"} == {
        "test_passes", "test_fails_of_two[1]", "test_leaves_a_task_behind", "test_sees_what_is_replaced",
        "test_replaces_more_itself", "test_is_not_what_was_replaced_before",
    }  # fmt: skip
    assert done.parseoutcomes()["skipped"] == 1


def test_what_a_failed_test_left_is_its_own_fault(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(pytester, monkeypatch, LEAVING, ["-p", one_step.__name__])

    done.assert_outcomes(failed=1, errors=1, passed=1)
    done.stdout.fnmatch_lines(["ERROR *::test_fails*", "FAILED *::test_fails*"])


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, suite: str, plugins: list[str]) -> pytest.RunResult:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(suite)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester.runpytest_subprocess("-pno:schemathesis", "-pno:logging", *plugins, "-rA", "--tb=no")
