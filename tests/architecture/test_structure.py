"""The rules of the tree, executed: who imports whom, whose the names are, what is shipped."""

import ast
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
OURS = ("ports", "adapters", "conformance", "observability", "stack_a", "stack_b", "federation", "deploy")
DISTRIBUTION = "nexixai-agentos"


def test_the_import_contracts_hold() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert found.returncode == 0, found.stdout


def test_ports_import_the_standard_library_and_msgspec_only() -> None:
    graph = grimp.build_graph("ports", include_external_packages=True, cache_dir=None)

    imported = {
        name.split(".")[0] for module in graph.modules for name in graph.find_modules_directly_imported_by(module)
    }

    assert imported - set(sys.stdlib_module_names) <= {"ports", "msgspec"}


@pytest.mark.parametrize(
    "module",
    [
        "stack_a.runs.plan",
        "stack_a.runs.replay",
        "stack_a.tools.policy",
        "stack_a.runs.tell",
        "stack_b.routing.choice",
        "stack_b.routing.rules",
        "stack_b.redaction.spans",
    ],
)
def test_code_that_decides_does_no_input_or_output(module: str) -> None:
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()

    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip

    assert not imported & {
        "litestar",
        "httpx",
        "asyncpg",
        "asyncio",
        "anyio",
        "logging",
        "time",
        "random",
    }


@pytest.mark.parametrize("name", OURS)
def test_no_other_distribution_owns_our_names(name: str) -> None:
    owners = set(packages_distributions().get(name, []))

    assert owners <= {DISTRIBUTION}, f"{name} belongs to {owners}: uninstall the other one, it overwrites ours"


def test_the_wheel_holds_our_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT, capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
        migrations = [name for name in archive.namelist() if name.startswith("adapters/postgres/migrations/")]

    assert {name for name in top if not name.endswith(".dist-info")} == set(OURS)
    assert migrations


def test_only_the_bodies_that_may_catch_everything_do() -> None:
    allowed = {
        "ports/http/edge.py",  # answers 500
        "stack_b/http/chat_stream.py",  # the same for a stream that has begun
        "stack_b/pipeline.py",  # before a request is sent: the coroutine meets it and tells it
        "stack_b/following.py",  # one look's defect must not be the last look
        "stack_a/worker.py",  # one run's defect must not end the others
        "adapters/litellm_provider/provider.py",  # a vendor whose errors have no common base
        "observability/instrument.py",  # keeps the error tree closed
        "deploy/cli/main.py",  # says it in a sentence
        "conformance/waiting.py",  # hands it to the test that asked
    }

    found = {
        str(path.relative_to(ROOT))
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and (node.type is None or _names(node.type) & {"Exception", "BaseException"})
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
    }  # fmt: skip

    assert found <= allowed


def test_nothing_is_raised_where_some_pythons_make_a_group_of_it() -> None:
    """Python before 3.11.4 gives an `ExceptionGroup` with what an `except*` raises, where later ones give that alone."""
    found = [
        f"{path.relative_to(ROOT)}:{inner.lineno}"
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
        for inner in ast.walk(handler)
        if isinstance(inner, ast.Raise)
    ]

    assert found == []


def _names(node: ast.expr) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
