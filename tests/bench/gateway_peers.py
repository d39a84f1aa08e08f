"""Other gateways, to be measured beside ours: each as its makers ship it, in one process, with nothing switched on.

Each is an `Opener`: it installs the peer where it isn't yet, starts it before the upstream, and says how to ask it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import psutil
from msgspec import Struct

from ports.errors import Unavailable
from tests.bench import machine
from tests.bench.environments import node_modules_with, python_with
from tests.bench.upstream import INSTANT
from tests.support.litellm_proxy import VERSION as LITELLM
from tests.support.ports import free_port

TENSORZERO: Final = "2026.6.0"
PORTKEY: Final = "1.15.2"
VERSIONS: Final = {"tensorzero": TENSORZERO, "portkey": PORTKEY, "litellm": LITELLM}
_START_S: Final = 120.0
_LITELLM_S: Final = 10.0
"""It answers some 50 requests a second: with 64 at once, none may be over within two seconds on a busy machine."""
_TENSORZERO_PEER: Final = Path(__file__).with_name("tensorzero_peer.py")


class Peer(Struct, frozen=True, kw_only=True):
    """A gateway that runs."""

    port: int
    process: psutil.Process
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = {}
    model: str = INSTANT
    """As this gateway calls the upstream's."""
    seconds: float = 0.0
    """Of each measurement, at least: of what is slow, too much would be under way at the end, and isn't counted."""


Opener: TypeAlias = Callable[[Path, int], AbstractContextManager[Peer]]
"""A directory of its own and the upstream's port → the peer. Raises `Unavailable` where it can't be had."""


@contextmanager
def tensorzero(home: Path, upstream: int) -> Iterator[Peer]:
    """Without its observability, so without ClickHouse. Its HTTP server runs on its own threads, in Rust."""
    python = python_with("tensorzero", TENSORZERO)
    configuration = home / "tensorzero.toml"
    configuration.write_text(
        f"[gateway]\nobservability.enabled = false\n[models.{INSTANT}]\nrouting = ['up']\n"
        f"[models.{INSTANT}.providers.up]\ntype = 'openai'\nmodel_name = '{INSTANT}'\n"
        f"api_base = 'http://127.0.0.1:{upstream}/v1/'\napi_key_location = 'none'\n"
    )
    log = home / "tensorzero.log"
    command = [*machine.on_one_cpu(), str(python), str(_TENSORZERO_PEER), str(configuration)]
    with machine.child(command, log=log, environment={"RUST_LOG": "error"}) as process:
        said = machine.wait_until_said(log, "ready http", process, _START_S)
        port = int(said.rpartition(":")[2].partition("/")[0])
        model = f"tensorzero::model_name::{INSTANT}"
        yield Peer(port=port, process=process, path="/openai/v1/chat/completions", model=model)


@contextmanager
def portkey(home: Path, upstream: int) -> Iterator[Peer]:
    modules = node_modules_with("@portkey-ai/gateway", PORTKEY)
    port = free_port()
    server = modules / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    command = [*machine.on_one_cpu(), "node", str(server), "--headless", f"--port={port}"]
    with machine.child(command, log=home / "portkey.log", environment={"NODE_ENV": "production"}) as process:
        machine.wait_until_open(port, within=_START_S)
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"}
        yield Peer(port=port, process=process, headers={**headers, "authorization": "Bearer none"})


@contextmanager
def litellm(home: Path, upstream: int) -> Iterator[Peer]:
    """Its proxy without keys or a database."""
    python = python_with("litellm", LITELLM, extra="[proxy]")
    configuration = home / "litellm.yaml"
    configuration.write_text(
        f"model_list:\n  - model_name: {INSTANT}\n    litellm_params:\n      model: openai/{INSTANT}\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
    )
    port = free_port()
    program = str(python.parent / "litellm")
    command = [
        *machine.on_one_cpu(),
        program,
        "--config",
        str(configuration),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = {
        "HOME": str(home),
        # No look-ups on the network at start, and nothing told to anybody.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        # It starts without keys only when told to.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with machine.child(command, log=home / "litellm.log", environment=environment) as process:
        machine.wait_until_open(port, within=_START_S)
        yield Peer(port=port, process=process, seconds=_LITELLM_S)


PEERS: Final[Mapping[str, Opener]] = {"tensorzero": tensorzero, "portkey": portkey, "litellm": litellm}
NOT_MEASURED: Final = (
    "LiteLLM's proxy with keys and budgets on PostgreSQL: its database client isn't generated by this bench"
)


def opened(name: str, home: Path, upstream: int) -> AbstractContextManager[Peer]:
    place = home / name
    place.mkdir()
    return PEERS[name](place, upstream)


def why_missing(name: str, error: Unavailable) -> str:
    return f"{name}, to compare with: {error.message}"
