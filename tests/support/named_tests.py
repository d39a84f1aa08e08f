"""Tests that a page of the documentation names, as `tests/….py::test_…` or `conformance/….py::test_…`."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
NAMED: Final = re.compile(r"`((?:tests|conformance)/[\w/]+\.py)::(test_\w+)`")


def named(text: str) -> list[tuple[str, str]]:
    return NAMED.findall(text)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def absent(text: str) -> list[tuple[str, str]]:
    """Those that are named and not there."""
    return [(path, name) for path, name in named(text) if name not in functions_in(ROOT / path)]


@cache
def functions_in(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
