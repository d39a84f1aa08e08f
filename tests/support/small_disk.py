"""A disk of a size that a test chooses, and enlarges when it has seen enough: a tmpfs, which needs the right to mount."""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path


def _mounted(target: Path, options: str) -> bool:
    done = subprocess.run(
        ["/usr/bin/env", "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)], check=False, capture_output=True
    )
    return done.returncode == 0


def _unmount(target: Path) -> None:
    subprocess.run(["/usr/bin/env", "umount", "--lazy", str(target)], check=True)


@cache
def may_mount() -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as probe:
        if not _mounted(Path(probe), "size=1m"):
            return False
        _unmount(Path(probe))
    return True


class SmallDisk:
    """`directory`, with all that is in it, on a disk with `spare_bytes` left. Whoever has it open must have closed it."""

    def __init__(self, directory: Path, *, spare_bytes: int) -> None:
        self._at = directory
        aside = directory.with_name(directory.name + ".aside")
        directory.rename(aside)
        directory.mkdir()
        used = sum(one.stat().st_blocks * 512 for one in aside.rglob("*"))
        self.size_bytes = used + spare_bytes
        if not _mounted(directory, f"size={self.size_bytes},mode=0700"):
            raise OSError(f"{directory} can't be mounted")
        shutil.copytree(aside, directory, symlinks=True, dirs_exist_ok=True)
        for kept in (aside, *aside.rglob("*")):
            owner, here = kept.stat(follow_symlinks=False), directory / kept.relative_to(aside)
            os.chown(here, owner.st_uid, owner.st_gid, follow_symlinks=False)
        shutil.rmtree(aside)

    def enlarge(self, more_bytes: int) -> None:
        self.size_bytes += more_bytes
        subprocess.run(["/usr/bin/env", "mount", "-o", f"remount,size={self.size_bytes}", str(self._at)], check=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._at).free

    def end(self) -> None:
        _unmount(self._at)
