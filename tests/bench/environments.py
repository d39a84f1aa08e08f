"""Environments for what a bench compares with: made once per version in the user's cache, outside of the repository."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from ports.errors import Unavailable
from tests.bench import machine

_INSTALL_S: Final = 110
_DONE: Final = "installed"


def python_with(package: str, version: str, *, extra: str = "") -> Path:
    """The Python of an environment that holds `package`, from PyPI. Raises `Unavailable` without it."""
    place = _cache() / f"{package}-{version}-py{sys.version_info.major}{sys.version_info.minor}"
    python = place / "bin" / "python"
    if (place / _DONE).exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    wanted, private = f"{package}{extra}=={version}", machine.ROOT / ".uv" / "bin" / "uv"
    uv = shutil.which("uv") or (str(private) if private.exists() else None)
    try:
        if uv is not None:
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(place))
            _run(uv, "pip", "install", "--quiet", "--python", str(python), wanted)
        else:
            venv.create(place, with_pip=True)
            _run(str(python), "-m", "pip", "install", "--quiet", wanted)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(place, ignore_errors=True)
        raise Unavailable(
            f"{wanted} can't be installed from PyPI ({type(error).__name__}); check the network"
        ) from error
    (place / _DONE).touch()
    return python


def node_modules_with(package: str, version: str) -> Path:
    """The `node_modules` that hold `package`, from npm, whose install scripts did not run. Raises `Unavailable` without."""
    place = _cache() / f"{package.rpartition('/')[2]}-{version}-node"
    if (place / _DONE).exists():
        return place / "node_modules"
    shutil.rmtree(place, ignore_errors=True)
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise Unavailable(f"{package} needs node and npm; apt install npm")
    place.mkdir(parents=True)
    try:
        _run(
            "npm", "install", "--prefix", str(place), "--no-audit", "--no-fund", "--ignore-scripts",
            f"{package}@{version}",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(place, ignore_errors=True)
        raise Unavailable(
            f"{package}@{version} can't be installed from npm ({type(error).__name__}); check the network"
        ) from error
    (place / _DONE).touch()
    return place / "node_modules"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentos-tests"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_S)
