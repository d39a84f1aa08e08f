"""The service catalogue: what runs on a node, in the order in which it can start.

A description, not a mechanism. The process runtime renders it for supervisord; other runtimes read the same list.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from deploy import credentials, embedded_postgres, issuers_file
from deploy.config import Config, dereference, names_in, referred_names
from deploy.gateway_file import environment_of
from deploy.home_files import control_url_file, url_file
from deploy.home_files import environment_of as environment_of_homes
from deploy.home_settings import Home, parse_homes
from deploy.node import Node

# Set for everything a node starts, so that its processes can be told from all others, orphans included.
OWNER_MARK: Final = "AGENTOS_SERVICE_OF"

_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
_EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound


class HttpReady(Struct, frozen=True, kw_only=True, tag="http"):
    url: str


class PostgresReady(Struct, frozen=True, kw_only=True, tag="postgres"):
    port: int


Health: TypeAlias = HttpReady | PostgresReady


class Listening(Struct, frozen=True, kw_only=True):
    """A port a service listens on, and the setting that moves it."""

    field: str
    host: str
    number: int


class Resources(Struct, frozen=True, kw_only=True):
    """What the service is expected to need; runtimes that can enforce it do."""

    memory_mib: int
    cpu_millis: int


class Service(Struct, frozen=True, kw_only=True):
    name: str
    title: str
    command: tuple[str, ...]
    environment: dict[str, str]
    listens: Listening
    health: Health
    depends_on: tuple[str, ...] = ()
    resources: Resources
    os_user: str | None = None
    """Another system user than ours; None for our own."""
    working_directory: str = "/"
    stop_signal: str = "TERM"
    stop_wait_s: int = 25
    """Until it is killed; longer than the grace the services give to open requests."""
    handover: Path | None = None
    """The door (`deploy.handover`) where a successor gets the listening socket; None when it must be stopped first."""


def catalogue(node: Node, config: Config, environ: Mapping[str, str]) -> tuple[Service, ...]:
    """Every service of the node, dependencies first. Reads `environ` for references; starts nothing."""
    services = [] if config.database_url else [_postgres(node, config)]
    database = tuple(service.name for service in services)
    stack_b = _stack_b(node, config, environ, database)
    stack_a = _stack_a(node, config, environ, database)
    worker = _worker(node, config, environ, (*database, stack_b.name))
    admin = _admin(node, config, environ, database)
    of_homes = (_worker_of(home, worker, node) for home in parse_homes(config.homes))
    return (*services, stack_b, stack_a, worker, *of_homes, admin)


def layout_of(node: Node) -> embedded_postgres.Layout:
    return embedded_postgres.Layout(node.home / "postgres")


def base_environment(node: Node, environ: Mapping[str, str]) -> dict[str, str]:
    """What every process of the node gets; nothing else of the caller's environment reaches it."""
    kept = {name: environ[name] for name in _PASSED_ON if environ.get(name)}
    kept.setdefault("PATH", os.defpath)
    return kept | {"HOME": str(node.run_dir), OWNER_MARK: str(node.home)}


def stack_a_url(config: Config) -> str:
    return _url(config.stack_a_host, config.stack_a_port)


def stack_b_url(config: Config) -> str:
    return _url(config.stack_b_host, config.stack_b_port)


def worker_url(config: Config) -> str:
    return _url("127.0.0.1", config.worker_port)


def admin_url(config: Config) -> str:
    return _url(config.admin_host, config.admin_port)


def _postgres(node: Node, config: Config) -> Service:
    return Service(
        name="postgres",
        title="PostgreSQL 18, embedded: the truth",
        command=tuple(embedded_postgres.server_command(layout_of(node), config.postgres_port)),
        environment={},
        listens=Listening(field="postgres_port", host="127.0.0.1", number=config.postgres_port),
        health=PostgresReady(port=config.postgres_port),
        resources=Resources(memory_mib=512, cpu_millis=500),
        os_user=embedded_postgres.os_user(),
        # SIGINT is its fast shutdown: clients are disconnected, nothing is lost.
        stop_signal="INT",
        stop_wait_s=30,
    )


def _stack_b(node: Node, config: Config, environ: Mapping[str, str], database: tuple[str, ...]) -> Service:
    own = {
        "AGENTOS_STACK_B_HOST": config.stack_b_host,
        "AGENTOS_STACK_B_PORT": str(config.stack_b_port),
        "AGENTOS_BACKENDS": config.backends,
        "AGENTOS_GATEWAY_LIMITS": config.gateway_limits,
        "AGENTOS_PLACEHOLDER_KEY_FILE": str(node.secret(credentials.PLACEHOLDER_KEY)),
        "AGENTOS_RECORD_KEYS": f"file:{node.secret(credentials.RECORD_KEYS)}",
        "OPENAI_API_KEY": dereference(config.openai_api_key, environ),
        "OPENAI_BASE_URL": dereference(config.openai_base_url, environ),
    }
    own |= _prices(config)
    # Keys of further backends are looked up by name inside the service, so it needs those names, and only it.
    own |= {name: environ[name] for name in referred_names(config.backends) if name in environ}
    own |= (
        environment_of(config, environ) | _stored_secrets(node, config, environ) | issuers_file.environment_of(config)
    )
    own |= {name: environ[name] for name in names_in(config.gateway_env) if name in environ}
    # Where secrets are, and what the gateway gets them with: as files, so that nothing here is one.
    own |= {"AGENTOS_SECRETS": config.secrets} if config.secrets else {}
    return _python_service(
        node,
        config,
        environ,
        name="stack-b",
        title="Stack B: the model gateway",
        module="deploy.roots.stack_b",
        own={name: value for name, value in own.items() if value},
        listens=Listening(field="stack_b_port", host=config.stack_b_host, number=config.stack_b_port),
        url=stack_b_url(config),
        depends_on=database,
        memory_mib=256,
        # 20 s for open requests, 15 s for model calls whose client has left, the rest for what they settle.
        stop_wait_s=45,
        handover=_door(node, "stack-b"),
    )


def _stack_a(node: Node, config: Config, environ: Mapping[str, str], database: tuple[str, ...]) -> Service:
    return _python_service(
        node,
        config,
        environ,
        name="stack-a",
        title="Stack A: the public API",
        module="deploy.roots.stack_a",
        own={
            "AGENTOS_STACK_A_HOST": config.stack_a_host,
            "AGENTOS_STACK_A_PORT": str(config.stack_a_port),
            "AGENTOS_MAX_QUEUE_DEPTH": str(config.max_queue_depth),
            "AGENTOS_SLOW_DATABASE_MS": str(config.slow_database_ms),
            "AGENTOS_STACK_B_URL": stack_b_url(config),
            **issuers_file.environment_of(config),
            **environment_of_homes(node, config),
        },
        listens=Listening(field="stack_a_port", host=config.stack_a_host, number=config.stack_a_port),
        url=stack_a_url(config),
        depends_on=database,
        memory_mib=256,
        handover=_door(node, "stack-a"),
    )


def _worker(node: Node, config: Config, environ: Mapping[str, str], depends_on: tuple[str, ...]) -> Service:
    return _python_service(
        node,
        config,
        environ,
        name="stack-a-worker",
        title="Stack A: the worker that executes runs",
        module="deploy.roots.stack_a_worker",
        own={
            "AGENTOS_WORKER_HOST": "127.0.0.1",
            "AGENTOS_WORKER_PORT": str(config.worker_port),
            "AGENTOS_WORKER_CONCURRENCY": str(config.worker_concurrency),
            "AGENTOS_QUEUE_ACK": config.queue_ack,
            "AGENTOS_RETENTION_DAYS": str(config.retention_days),
            "AGENTOS_STACK_B_URL": stack_b_url(config),
            **_tools(config),
            **({"AGENTOS_EGRESS": config.egress} if config.egress else {}),
            # The worker signs the tokens it calls Stack B with, on behalf of each run's requester; nobody else may sign.
            "AGENTOS_ISSUER_KEY_FILE": str(node.secret(credentials.ISSUER_KEY)),
        },
        listens=Listening(field="worker_port", host="127.0.0.1", number=config.worker_port),
        url=worker_url(config),
        depends_on=depends_on,
        memory_mib=384,
        # 20 s for open requests and 5 s for their ends, 15 s for the runs in hand, the rest for handing them back. Killed
        # before that, they wait for the worker's lease to lapse.
        stop_wait_s=50,
    )


def _worker_of(home: Home, worker: Service, node: Node) -> Service:
    """The worker of a home: as the node's, over another database."""
    own = {
        "AGENTOS_WORKER_PORT": str(home.worker_port),
        "AGENTOS_DATABASE_URL_FILE": str(node.secret(url_file(home.name))),
    }
    return msgspec.structs.replace(
        worker,
        name=f"{worker.name}-{home.name}",
        title=f"{worker.title}, of the home {home.name}",
        environment=worker.environment | own,
        listens=Listening(field="homes", host="127.0.0.1", number=home.worker_port),
        health=HttpReady(url=f"{_url('127.0.0.1', home.worker_port)}/readyz"),
    )


def _admin(node: Node, config: Config, environ: Mapping[str, str], depends_on: tuple[str, ...]) -> Service:
    own = {
        "AGENTOS_ADMIN_HOST": config.admin_host,
        "AGENTOS_ADMIN_PORT": str(config.admin_port),
        # Administration has a role of its own in the database.
        "AGENTOS_DATABASE_URL_FILE": str(node.secret(credentials.CONTROL_URL)),
        "AGENTOS_EXPORTS_DIR": str(node.exports),
        # What a configuration must get along with, and what goes before it; no secret.
        "AGENTOS_BACKENDS": config.backends,
        "AGENTOS_GATEWAY_FILE": config.gateway_file,
        # It signs the heads of the audit, and holds no other secret.
        "AGENTOS_AUDIT_KEY_FILE": str(node.secret(credentials.AUDIT_KEY)),
        "AGENTOS_AUDIT_DIR": str(node.audit),
        "AGENTOS_AUDIT_COPY": config.audit_copy,
        **_stored_secrets(node, config, environ),
        **issuers_file.environment_of(config),
        **environment_of_homes(node, config, file=control_url_file),
    }
    return _python_service(
        node,
        config,
        environ,
        name="admin",
        title="The admin API",
        module="deploy.roots.admin",
        own={name: value for name, value in own.items() if value},
        listens=Listening(field="admin_port", host=config.admin_host, number=config.admin_port),
        url=admin_url(config),
        depends_on=depends_on,
        memory_mib=192,
        handover=_door(node, "admin"),
    )


def _stored_secrets(node: Node, config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """What a stored configuration of the gateway may refer to: files of one directory, and these variables by name."""
    names = [name for name in names_in(config.gateway_env) if environ.get(name)]
    return {"AGENTOS_GATEWAY_SECRETS_DIR": str(node.gateway_secrets), "AGENTOS_GATEWAY_ENV": ",".join(names)}


def _python_service(
    node: Node,
    config: Config,
    environ: Mapping[str, str],
    *,
    name: str,
    title: str,
    module: str,
    own: dict[str, str],
    listens: Listening,
    url: str,
    depends_on: tuple[str, ...],
    memory_mib: int,
    stop_wait_s: int = 25,
    handover: Path | None = None,
) -> Service:
    environment = base_environment(node, environ) | {
        "PYTHONPATH": str(node.code),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "AGENTOS_MODE": config.mode,
        "AGENTOS_LOG_LEVEL": config.log_level.upper(),
        "AGENTOS_REPLICAS": str(config.replicas),
        "AGENTOS_ISSUER": config.issuer,
        "AGENTOS_JWKS_FILE": str(node.secret(credentials.JWKS)),
        "AGENTOS_DATABASE_URL_FILE": str(node.secret(credentials.APP_URL)),
    }
    if handover is not None:
        environment["AGENTOS_HANDOVER"] = str(handover)
    return Service(
        name=name,
        title=title,
        command=(sys.executable, "-m", module),
        environment=environment | own,
        listens=listens,
        health=HttpReady(url=f"{url}/readyz"),
        depends_on=depends_on,
        resources=Resources(memory_mib=memory_mib, cpu_millis=500),
        working_directory=str(node.code),
        stop_wait_s=stop_wait_s,
        handover=handover,
    )


def _prices(config: Config) -> dict[str, str]:
    """With the file's digest, so that a change of it restarts the gateway."""
    if not config.prices_file:
        return {}
    path = Path(config.prices_file)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return {"AGENTOS_PRICES_FILE": config.prices_file, "AGENTOS_PRICES_SHA256": digest}


def _tools(config: Config) -> dict[str, str]:
    """Where the worker finds the commands; by their digest a changed file makes it another service, which `up` restarts."""
    if not config.tools_file:
        return {}
    path = Path(config.tools_file)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return {"AGENTOS_TOOLS_FILE": config.tools_file, "AGENTOS_TOOLS_SHA256": digest}


def successor(service: Service) -> Service:
    """The same service once more, to stand in for it while it is restarted."""
    return msgspec.structs.replace(service, name=f"{service.name}-next")


def _door(node: Node, service: str) -> Path:
    # Beside the supervisor's socket, where paths are short enough for one.
    return node.supervisor_socket.with_name(f"{service}.sock")


def environment_file(node: Node, service: str) -> Path:
    return node.run_dir / f"{service}.env.json"


def environment_json(service: Service) -> str:
    return msgspec.json.encode(service.environment, order="deterministic").decode()


def _url(host: str, port: int) -> str:
    reachable = _EVERY_ADDRESS.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
