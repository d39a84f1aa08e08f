"""LiteLLM's proxy, from PyPI, in an environment of its own: an OpenAI-compatible server that isn't ours.

The environment is made once per version, in the user's cache and outside of the repository. Where it can't be made, a
test is skipped on a developer's machine and fails in CI.
"""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import httpx
import pytest

from tests.support.ports import free_port

VERSION: Final = "1.106.2"
KEY: Final = "sk-foreign-0f1e2d3c4b5a69788796a5b4c3d2e1f0"
INSTALL_S: Final = 300
START_S: Final = 180
"""The first start of a fresh installation reads thousands of files, on a machine that does much else."""
_DONE: Final = "installed"


@asynccontextmanager
async def litellm_proxy(home: Path, upstream: str, upstream_key: str) -> AsyncIterator[str]:
    """A proxy that serves `foreign-demo` and `foreign-embed` from `upstream`; its base URL, `/v1` included."""
    python = await anyio.to_thread.run_sync(_environment)
    config = home / "litellm.yaml"
    models = {"foreign-demo": "agentos-demo", "foreign-embed": "agentos-demo-embed"}
    config.write_text(
        "model_list:\n"
        + "".join(
            f"  - model_name: {name}\n    litellm_params:\n      model: openai/{model}\n"
            f"      api_base: {upstream}\n      api_key: {upstream_key}\n"
            for name, model in models.items()
        )
    )
    port = free_port()
    command = [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LITELLM_MASTER_KEY": KEY,
        # No look-ups on the network at start.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "NO_PROXY": "127.0.0.1",
    }
    log = (home / "litellm.log").open("wb")
    process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT)  # noqa: ASYNC220 - returns at once
    try:
        await _answers(f"http://127.0.0.1:{port}/health/liveliness", process, home / "litellm.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_ended, process)
        log.close()


async def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with anyio.fail_after(START_S):
        async with httpx.AsyncClient(trust_env=False) as client:
            while process.poll() is None:
                try:
                    if (await client.get(url)).is_success:
                        return
                except httpx.TransportError:
                    await anyio.sleep(0.2)  # another program's start: there is nothing to wait on but its port
    pytest.fail(f"LiteLLM's proxy ended at start: {await anyio.Path(log).read_text()}")


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _environment() -> Path:
    """The Python of the environment, made if it isn't there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentos-tests"
    place = cache / f"litellm-{VERSION}-py{sys.version_info.major}{sys.version_info.minor}"
    python = place / "bin" / "python"
    if (place / _DONE).exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    wanted = f"litellm[proxy]=={VERSION}"
    uv = shutil.which("uv") or _private_uv()
    try:
        if uv is not None:
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(place))
            _run(uv, "pip", "install", "--quiet", "--python", str(python), wanted)
        else:
            venv.create(place, with_pip=True)
            _run(str(python), "-m", "pip", "install", "--quiet", wanted)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(place, ignore_errors=True)
        reason = f"LiteLLM's proxy can't be installed from PyPI: {type(error).__name__}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    (place / _DONE).touch()
    return python


def _private_uv() -> str | None:
    """The uv that `./agentos` installs for itself."""
    found = Path(__file__).parents[2] / ".uv" / "bin" / "uv"
    return str(found) if found.exists() else None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)
