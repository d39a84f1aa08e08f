"""A service's memory moves onto huge pages when it begins to serve."""

import sys
from pathlib import Path

import pytest

from deploy.roots.huge_pages import SETTING, onto_huge_pages

MIB = 1024 * 1024


def on_huge_pages() -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))


def may_have_some() -> bool:
    """Since Linux 6.1, where nobody has switched them off."""
    if sys.platform != "linux" or not SETTING.exists() or "[never]" in SETTING.read_text():
        return False
    release = Path("/proc/sys/kernel/osrelease").read_text().split(".")
    return (int(release[0]), int(release[1].split("-")[0])) >= (6, 1)


pytestmark = pytest.mark.skipif(not may_have_some(), reason="huge pages on request need Linux 6.1, which may have them")


def test_what_is_in_memory_moves_and_stays_the_same() -> None:
    before = on_huge_pages()
    held = [b"%0999d" % number for number in range(32 * 1024)]

    onto_huge_pages()

    assert on_huge_pages() - before >= 8 * MIB
    assert all(int(one) == number for number, one in enumerate(held))


def test_nothing_moves_where_the_operator_has_said_never(tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    held = [b"%0999d" % number for number in range(32 * 1024)]
    before = on_huge_pages()

    onto_huge_pages(setting)

    assert on_huge_pages() <= before
    assert held


def test_a_machine_without_them_is_left_alone(tmp_path: Path) -> None:
    before = on_huge_pages()

    onto_huge_pages(tmp_path / "missing")

    assert on_huge_pages() <= before
