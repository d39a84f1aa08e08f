"""Disks that a test has in its hand, below a directory of its choice. Each needs root and the right to mount.

A tmpfs has the size that a test chose, and is enlarged when it has seen enough. An ext4 in a file has its power cut.
"""

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Final

_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

_SHUT_DOWN: Final = 0x8004587D
"""`EXT4_IOC_SHUTDOWN`, see the kernel's `fs/ext4/ext4.h`; it is what xfstests' `godown` asks."""
_WITHOUT_ITS_JOURNAL: Final = struct.pack("I", 2)
"""`EXT4_GOING_FLAGS_NOLOGFLUSH`: what is in memory only, data and journal, is never written."""
_CLOSED_WITHIN_S: Final = 10.0


def _run(*command: str | Path) -> bool:
    return subprocess.run(["/usr/bin/env", f"PATH={_PATH}", *command], check=False, capture_output=True).returncode == 0


def _mounted(target: Path, options: str) -> bool:
    return _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", target)


def _unmount(target: Path) -> None:
    subprocess.run(["/usr/bin/env", "umount", "--lazy", str(target)], check=True)


def _as_directory(made: Path) -> Path:
    """`made`'s content aside, to be brought onto a disk that is mounted there now."""
    aside = made.with_name(made.name + ".aside")
    made.rename(aside)
    made.mkdir()
    return aside


def _bring(aside: Path, onto: Path) -> None:
    shutil.copytree(aside, onto, symlinks=True, dirs_exist_ok=True)
    for kept in (aside, *aside.rglob("*")):
        owner, here = kept.stat(follow_symlinks=False), onto / kept.relative_to(aside)
        os.chown(here, owner.st_uid, owner.st_gid, follow_symlinks=False)
    shutil.rmtree(aside)


@cache
def may_mount() -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as probe:
        if not _mounted(Path(probe), "size=1m"):
            return False
        _unmount(Path(probe))
    return True


@cache
def may_cut_power() -> bool:
    """Whether an ext4 in a file may be mounted and shut down here."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as probe:
        inside = Path(probe, "inside")
        inside.mkdir()
        try:
            disk = PowerCutDisk(inside, size_bytes=16 * 1024 * 1024)
        except OSError:
            return False
        try:
            disk.cut()
        except OSError:
            return False
        finally:
            disk.end()
    return True


class SmallDisk:
    """`directory`, with all that is in it, on a disk with `spare_bytes` left. Whoever has it open must have closed it."""

    def __init__(self, directory: Path, *, spare_bytes: int) -> None:
        self._at = directory
        aside = _as_directory(directory)
        used = sum(one.stat().st_blocks * 512 for one in aside.rglob("*"))
        self.size_bytes = used + spare_bytes
        if not _mounted(directory, f"size={self.size_bytes},mode=0700"):
            raise OSError(f"{directory} can't be mounted")
        _bring(aside, directory)

    def enlarge(self, more_bytes: int) -> None:
        self.size_bytes += more_bytes
        subprocess.run(["/usr/bin/env", "mount", "-o", f"remount,size={self.size_bytes}", str(self._at)], check=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._at).free

    def end(self) -> None:
        _unmount(self._at)


class PowerCutDisk:
    """`directory`, with all that is in it, on an ext4 in a file beside it. Whoever has it open must have closed it."""

    def __init__(self, directory: Path, *, size_bytes: int) -> None:
        self._at = directory
        self._image = directory.with_name(directory.name + ".disk")
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        if not _run("mkfs.ext4", "-q", "-F", self._image):
            raise OSError(f"no ext4 can be made in {self._image}")
        mode = directory.stat().st_mode & 0o7777
        aside = _as_directory(directory)
        self._mount()
        (directory / "lost+found").rmdir()
        directory.chmod(mode)
        _bring(aside, directory)
        # This one alone: the machine's other disks have much to write, and nothing to do with it.
        if not _run("sync", "--file-system", directory):
            raise OSError(f"{directory} can't be written to its disk")

    def _mount(self) -> None:
        if not _run("mount", "-t", "ext4", "-o", "loop", self._image, self._at):
            raise OSError(f"{self._image} can't be mounted")

    def cut(self) -> None:
        """From now on nothing reaches the disk, and whoever writes is told so. What it holds is what was written to it
        before: what was waited for, and what the kernel wrote by itself."""
        directory = os.open(self._at, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _SHUT_DOWN, _WITHOUT_ITS_JOURNAL)
        finally:
            os.close(directory)

    def restore(self) -> None:
        """Power again, as soon as nobody has it open any more."""
        deadline = time.monotonic() + _CLOSED_WITHIN_S
        while not _run("umount", self._at):
            if time.monotonic() > deadline:
                raise OSError(f"{self._at} is still open after {_CLOSED_WITHIN_S:.0f} s")
            time.sleep(0.02)  # the end of another's process sets no event of ours
        self._mount()

    def end(self) -> None:
        _unmount(self._at)
        self._image.unlink()
