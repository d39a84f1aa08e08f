"""The node under test: the catalogue's services as processes of ours, each behind its own way to the database.

Whatever dies is started again at once, as the supervisor would; a service that ends without having been told to, and
while its database was there, is written down.
"""

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import psutil
from msgspec.structs import replace

from deploy import credentials, embedded_postgres
from deploy.catalogue import HttpReady, Service, catalogue, layout_of
from deploy.config import Config
from deploy.internal import open_directory, operator_of
from deploy.node import Node
from deploy.seed import TENANT, ensure_issuer_key, seed_demo
from ports.agent import AgentLimits, AgentSpec
from ports.errors import Unavailable
from ports.ids import AgentId
from ports.tenant import Entitlements
from tests.faults.payments import Disturbed
from tests.faults.proxy import Mode, Proxy
from tests.faults.tools import NAMES, REFERENCES, SINK
from tests.faults.upstream import MODEL, Upstream, base_url
from tests.support.http_server import served
from tests.support.ports import free_ports

AGENT: Final = AgentId("agt_faults")
GATEWAY: Final = "stack-b"
WORKERS: Final = ("worker-1", "worker-2")
DATABASE: Final = "postgres"
WORKER: Final = "deploy.roots.stack_a_worker"
NOTHING: Final[Mapping[str, str]] = {}
_READY_SECONDS: Final = 120.0
"""Only ends what hangs: a busy machine takes its time."""
_RESTART_PAUSE_S: Final = 0.2
_POLL_S: Final = 0.05


@dataclass
class Part:
    """One service process, by whatever process id it has at the moment."""

    service: Service
    log: Path
    proxy: Proxy
    of_life: Callable[[int], Mapping[str, str]]
    """What the environment of its so many-th process has besides."""
    life: int = 0
    """Which process this is; the first one is 1."""
    process: asyncio.subprocess.Process | None = None
    stopped: bool = False
    told_to_end: bool = False
    was_ready: bool = False
    guard: "asyncio.Task[None] | None" = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.alive:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


@dataclass
class Rig:
    node: Node
    config: Config
    upstream: Upstream
    sink: Path
    http: httpx.AsyncClient
    parts: dict[str, Part] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    """Services that ended by themselves although nothing was done to them or their database."""
    disturbed_until: float = 0.0
    disturbed: Disturbed = field(default_factory=Disturbed)
    """What was done to the gateway."""
    _database_wanted: bool = True

    # --- asking --------------------------------------------------------------------------------------------------------

    @property
    def stack_a(self) -> str:
        return f"http://127.0.0.1:{self.config.stack_a_port}"

    @property
    def superuser(self) -> str:
        passwords = credentials.database_passwords(self.node)
        return credentials.embedded_url("postgres", passwords.superuser, self.config.postgres_port)

    def token(self) -> str:
        tokens = credentials.load_tokens(self.node)
        assert tokens is not None, "the node is seeded"
        return tokens.keys["app"].api_key

    async def ready(self, name: str) -> bool:
        health = self.parts[name].service.health
        assert isinstance(health, HttpReady)
        try:
            return (await self.http.get(health.url, timeout=2)).status_code == 200
        except httpx.HTTPError:
            return False

    async def until_ready(self, seconds: float = _READY_SECONDS, *, except_for: Collection[str] = ()) -> None:
        """Until every service is. Raises `Unavailable` naming the one that is not."""
        end = time.monotonic() + seconds
        for name, part in self.parts.items():
            if name in except_for:
                continue
            while not await self.ready(name):
                if time.monotonic() > end:
                    tail = part.log.read_text(errors="replace")[-2_000:]
                    raise Unavailable(f"{name} is not ready after {seconds:.0f} s: {tail}")
                await asyncio.sleep(_POLL_S)
            part.was_ready = True

    # --- doing ---------------------------------------------------------------------------------------------------------

    def disturb(self, seconds: float) -> None:
        """For so long, and some time after it, services may end because of what is done to others."""
        self.disturbed_until = max(self.disturbed_until, time.monotonic() + seconds + 10)

    def kill(self, name: str) -> None:
        part = self.parts[name]
        if name == GATEWAY and part.alive:
            self.disturbed.killed.setdefault(part.life, time.time())
        part.told_to_end = True
        part.stopped = False
        part.send(signal.SIGKILL)

    def stop(self, name: str) -> None:
        self.parts[name].stopped = True
        self.parts[name].send(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.parts[name].stopped = False
        self.parts[name].send(signal.SIGCONT)

    @contextmanager
    def broken_line(self, name: str, mode: Mode) -> Iterator[None]:
        """Between a service and its database, for as long as the block runs."""
        proxy = self.parts[name].proxy
        with self.disturbed.cut_off() if name == GATEWAY else nullcontext():
            proxy.become(mode)
            try:
                yield
            finally:
                proxy.become("pass")

    @contextmanager
    def standing_still(self, name: str) -> Iterator[None]:
        """A service, or the database, for as long as the block runs."""
        if name != DATABASE:
            self.stop(name)
            try:
                yield
            finally:
                self.resume(name)
            return
        with self.disturbed.cut_off():
            self._stop_database()
            try:
                yield
            finally:
                self._resume_database()

    def kill_database(self) -> None:
        """The server and every process of it, as when the power goes."""
        with self.disturbed.cut_off():
            self._kill_database()

    def _kill_database(self) -> None:
        for process in self._database_processes():
            with suppress(psutil.Error):
                process.kill()

    def _stop_database(self) -> None:
        for process in self._database_processes():
            with suppress(psutil.Error):
                process.suspend()

    def _resume_database(self) -> None:
        for process in self._database_processes():
            with suppress(psutil.Error):
                process.resume()

    def _database_processes(self) -> list[psutil.Process]:
        main = embedded_postgres.server_process(layout_of(self.node))
        # The server first: it makes no new process while we go through those it has.
        return [] if main is None else [main, *main.children(recursive=True)]

    async def keep_database(self) -> None:
        """The supervisor's part for PostgreSQL."""
        layout, port = layout_of(self.node), self.config.postgres_port
        while self._database_wanted:
            # Also removes what a killed server left.
            embedded_postgres.prepare(layout, superuser_password=credentials.database_passwords(self.node).superuser)
            process = embedded_postgres.start(layout, port)
            await asyncio.to_thread(process.wait)
            self.disturb(0)

    async def keep(self, part: Part) -> None:
        """The supervisor's part for a service."""
        while True:
            part.told_to_end = part.was_ready = False
            part.life += 1
            with part.log.open("ab") as log:
                part.process = await asyncio.create_subprocess_exec(
                    *part.service.command,
                    env={**part.service.environment, **part.of_life(part.life)},
                    cwd=part.service.working_directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            code = await part.process.wait()
            if not part.told_to_end and time.monotonic() > self.disturbed_until:
                self.unexpected.append(f"{part.service.name} ended with {code}")
            await asyncio.sleep(_RESTART_PAUSE_S)

    async def end(self) -> None:
        for part in self.parts.values():
            if part.guard is not None:
                part.guard.cancel()
        for part in self.parts.values():
            part.send(signal.SIGCONT)
            part.send(signal.SIGKILL)
        await asyncio.gather(
            *(part.process.wait() for part in self.parts.values() if part.process is not None), return_exceptions=True
        )
        for part in self.parts.values():
            await part.proxy.close()


@asynccontextmanager
async def rig(
    draw: random.Random, *, worker: str = WORKER, environment: Mapping[str, str] = NOTHING, concurrency: int = 16
) -> AsyncIterator[Rig]:
    """A node of its own, seeded and ready; gone at the end, its processes included.

    `worker` is the module to run as worker, with `environment` besides its own.
    """
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-faults-")))
        upstream = Upstream()
        model_url = await stack.enter_async_context(served(upstream))
        ports = free_ports(6)
        config = Config(
            mode="dev",
            stack_a_port=ports[0], stack_b_port=ports[1], worker_port=ports[2], postgres_port=ports[3],
            worker_concurrency=concurrency,
            tokens_per_day=1_000_000_000,
            backends=_backends(model_url, 0),
        )  # fmt: skip
        node = Node.locate({"AGENTOS_HOME": str(home / "node")})
        node.create()
        sink = home / "calls"
        sink.touch()
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=10))
        made = Rig(node=node, config=config, upstream=upstream, sink=sink, http=http)
        passwords = credentials.database_passwords(node)
        credentials.write_embedded_urls(node, passwords, config.postgres_port)
        credentials.ensure_placeholder_key(node)
        credentials.ensure_record_keys(node)
        ensure_issuer_key(node)
        keeping = asyncio.create_task(made.keep_database())
        stack.push_async_callback(_end_database, made, keeping)
        await _set_up(made, passwords)
        stack.push_async_callback(made.end)
        await _start(made, ports[4], draw, model_url=model_url, module=worker, more=environment)
        await made.until_ready()
        yield made


async def _set_up(made: Rig, passwords: credentials.DatabasePasswords) -> None:
    owner = credentials.embedded_url("ao_owner", passwords.owner, made.config.postgres_port)
    admin = credentials.embedded_url("postgres", passwords.superuser, made.config.postgres_port, "postgres")
    await until_database(admin)
    await asyncio.to_thread(embedded_postgres.set_up_database, admin, owner, passwords.roles())
    async with open_directory(made.node) as directory:
        await seed_demo(made.node, directory, made.config)
        entitled = Entitlements(
            tokens_per_day=made.config.tokens_per_day, runs_per_minute=100_000, max_active_runs=1_000
        )
        await directory.tenants.set_entitlements(operator_of(TENANT), TENANT, entitled)
        spec = AgentSpec(id=AGENT, model=MODEL, tools=NAMES, limits=AgentLimits(deadline_s=900))
        await directory.agents.publish(operator_of(TENANT), spec)


async def until_database(dsn: str) -> None:
    end = time.monotonic() + _READY_SECONDS
    while True:
        try:
            connection = await asyncpg.connect(dsn, timeout=2)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(_POLL_S)
        else:
            await connection.close()
            return


def _backends(model_url: str, life: int) -> str:
    """Of this process of the gateway."""
    return json.dumps([{"name": "scripted", "base_url": base_url(model_url, life), "models": [{"id": MODEL}]}])


async def _start(
    made: Rig, second_worker_port: int, draw: random.Random, *, model_url: str, module: str, more: Mapping[str, str]
) -> None:
    def of_life(name: str, life: int) -> Mapping[str, str]:
        return {"AGENTOS_BACKENDS": _backends(model_url, life)} if name == GATEWAY else NOTHING

    listed = {service.name: service for service in catalogue(made.node, made.config, os.environ)}
    listed_worker = listed["stack-a-worker"]
    assert WORKER in listed_worker.command
    worker = replace(listed_worker, command=tuple(module if word == WORKER else word for word in listed_worker.command))
    tools = {"tool": {"adapter": "inproc", "config": {"tools": REFERENCES}}}
    watched = {"AGENTOS_ADAPTERS": json.dumps(tools), SINK: str(made.sink), **more}
    second = {"AGENTOS_WORKER_PORT": str(second_worker_port)}
    services = {
        GATEWAY: listed[GATEWAY],
        "stack-a": listed["stack-a"],
        "worker-1": replace(worker, environment=worker.environment | watched),
        "worker-2": replace(
            worker,
            environment=worker.environment | watched | second,
            health=HttpReady(url=f"http://127.0.0.1:{second_worker_port}/readyz"),
        ),
    }
    direct = made.node.secret(credentials.APP_URL).read_text()
    for name, service in services.items():
        proxy = Proxy(lambda: made.config.postgres_port, draw)
        url = made.node.secret(f"{credentials.APP_URL}_{name}")
        url.touch(mode=0o600)
        url.write_text(direct.replace(f":{made.config.postgres_port}/", f":{proxy.start()}/"))
        environment = service.environment | {"AGENTOS_DATABASE_URL_FILE": str(url)}
        part = Part(
            service=replace(service, name=name, environment=environment),
            log=made.node.log_of(name),
            proxy=proxy,
            of_life=partial(of_life, name),
        )
        made.parts[name] = part
        part.guard = asyncio.create_task(made.keep(part))


async def _end_database(made: Rig, keeping: "asyncio.Task[None]") -> None:
    made._database_wanted = False
    made._resume_database()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await asyncio.to_thread(embedded_postgres.destroy, layout_of(made.node))
