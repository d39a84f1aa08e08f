"""What a process has in memory, moved onto huge pages: a look at it then seldom has to find out first where it lies.

A service looks at some hundred small things for each request, spread over all of its memory: on more pages of 4 KiB than a
processor remembers, and a virtual machine asks twice for each. Linux 6.1 and newer move them when asked (`MADV_COLLAPSE`).
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SETTING: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SIZE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MAPS: Final = Path("/proc/self/maps")
_OURS: Final = frozenset({"", "[heap]"})
_COLLAPSE: Final = 25
"""See `madvise(2)`."""


def onto_huge_pages(setting: Path = SETTING) -> None:
    """Move this process's own memory, once. Nothing happens where the machine can't, or where its operator has said
    "never" in `setting`."""
    try:
        if "[never]" in setting.read_text():
            return
        size = int(_SIZE.read_text())
        regions = list(_regions(size))
    except (OSError, ValueError):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in regions:
        # What can't be moved stays where it is.
        madvise(start, end - start, _COLLAPSE)


def _regions(size: int) -> Iterator[tuple[int, int]]:
    """Private, writable and in no file: the whole huge pages that fit in."""
    for line in _MAPS.read_text().splitlines():
        where, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights != "rw-p" or "".join(name) not in _OURS:
            continue
        start, end = (int(address, 16) for address in where.split("-"))
        start, end = -(-start // size) * size, end // size * size
        if start < end:
            yield start, end
