"""Lists the benches: `python -m tests.bench`. Runs one: `python -m tests.bench gateway --rounds 3`."""

import ast
import runpy
import sys
from pathlib import Path
from typing import Final

BENCHES: Final = ("audit", "isolation", "engine", "engine_dbos", "scale", "fairness", "events", "waiting", "gateway")


def says(bench: str) -> str:
    """What a bench measures: the first paragraph of its module, read without importing what it needs."""
    source = Path(__file__).with_name(f"{bench}.py").read_text(encoding="utf-8")
    first, _, _ = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    return first.partition(": `")[0]


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in BENCHES:
        name = sys.argv.pop(1)
        runpy.run_module(f"tests.bench.{name}", run_name="__main__", alter_sys=True)
        sys.exit()
    for name in BENCHES:
        sys.stdout.write(f"python -m tests.bench.{name:<12}  {says(name)}\n")
    sys.stdout.write("\nEach takes --smoke, --json FILE and --help. docs/benchmarks.md says what the figures mean.\n")
