"""The threats of `docs/threat-model.md`, row by row, as the page has them."""

import re
from functools import cache
from typing import Final

from msgspec import Struct

from tests.support.named_tests import NAMED, named, page

PAGE: Final = "threat-model.md"
BEFORE: Final = "What is guarded, and from whom"
OPEN: Final = "Not covered"
_SECTION: Final = re.compile(r"^## (.+)$", re.MULTILINE)


class Row(Struct, frozen=True):
    id: str
    threat: str
    control: str
    named: str

    @property
    def tests(self) -> list[str]:
        return [f"{path}::{name}" for path, name in named(self.named)]

    @property
    def more(self) -> str:
        """What stands beside the names of tests: nothing does."""
        return NAMED.sub("", self.named).strip()


def sections() -> dict[str, str]:
    _, *parts = _SECTION.split(page(PAGE))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def cells(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if not line.startswith("| |")]


def boundaries() -> dict[str, list[Row]]:
    return {name: [Row(*row) for row in cells(text)] for name, text in sections().items() if name not in {BEFORE, OPEN}}


@cache
def rows() -> dict[str, Row]:
    return {row.id: row for found in boundaries().values() for row in found}
