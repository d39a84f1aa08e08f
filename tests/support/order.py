"""In which order files are run when several processes share them: whoever is free takes the next one.

The longest come first, so that none is still at work when the others are done. A file that isn't named stands with those
of its folder.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import pytest

File = TypeVar("File")

ROOT: Final = Path(__file__).resolve().parents[2]
LONGEST: Final = (
    "tests/e2e/test_bench_smoke.py",
    "tests/e2e/test_faults_short.py",
    "tests/e2e/test_node_redeploy.py",
    "tests/contract/test_kit_detects_faults.py",
    "tests/contract/test_sequences_detect_faults.py",
    "tests/e2e/test_node_faults.py",
    "tests/e2e/test_node_operator.py",
    "tests/unit/test_engine_simulation.py",
    "tests/unit/test_policy_check_equals_live.py",
)
"""Those that would be worked at when all the others are done."""
FOLDERS: Final = ("tests/e2e", "tests/integration", "tests/contract", "tests/unit", "tests/architecture")
"""Files of the first take longest, those of the last are many and short."""
ALONE: Final = "tests/e2e"
"""Where the tests that are marked `alone` are looked for."""


def place(file: str) -> tuple[int, int]:
    """Of a file, named from the repository's root. Pure."""
    longest = LONGEST.index(file) if file in LONGEST else len(LONGEST)
    folder = next((number for number, name in enumerate(FOLDERS) if file.startswith(f"{name}/")), len(FOLDERS))
    return longest, folder


def turned(files: Sequence[File], number: int, of: int) -> list[File]:
    """From where the process of this number, of so many, reads on; the earlier ones come last. Pure."""
    first = len(files) * number // of
    return [*files[first:], *files[:first]]


def file_of(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).as_posix() if item.path.is_relative_to(ROOT) else item.path.as_posix()


def misplaced(items: Iterable[pytest.Item]) -> list[str]:
    """Tests that want to be alone where nobody looks for such."""
    return [one.nodeid for one in items if one.get_closest_marker("alone") and not file_of(one).startswith(f"{ALONE}/")]
