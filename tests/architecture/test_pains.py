"""`docs/pains.md` names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def named() -> list[tuple[str, str]]:
    return NAMED.findall((ROOT / "docs" / "pains.md").read_text(encoding="utf-8"))


def functions_in(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_pain_has_a_test_and_every_test_that_is_named_exists() -> None:
    rows = [line for line in (ROOT / "docs" / "pains.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]

    assert [row for row in rows[1:] if NAMED.search(row) is None] == []
    assert [(path, name) for path, name in named() if name not in functions_in(ROOT / path)] == []


def test_no_test_is_named_for_nothing() -> None:
    assert len(named()) > 20
