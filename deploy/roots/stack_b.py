"""Composition root of Stack B, the model gateway: `python -m deploy.roots.stack_b`."""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from adapters.system_clock import SystemClock
from deploy.roots.environment import Environment, resolve
from deploy.roots.gateway_secrets import DIRECTORY, check_stored
from deploy.roots.secret_references import References, secrets_of_a_node
from deploy.roots.server import run, serve
from deploy.roots.tokens import verifier_of_a_node
from deploy.roots.wiring import Choice, choices_from, open_ports
from observability.instrument import instrument
from observability.logs import configure
from observability.metrics import Metrics
from observability.secrets import WatchedReads
from ports.clock import Clock
from ports.errors import InvalidArgument
from ports.http.edge import App
from stack_b.app import open_app
from stack_b.backends.catalog import Catalog
from stack_b.backends.known_secrets import KnownSecrets
from stack_b.backends.opened import OpenedBackends
from stack_b.backends.protocol import Backend
from stack_b.backends.settings import BackendSettings, check_settings, discovered, merged, parse_settings
from stack_b.budget.prices import Prices, overlaid, parse_rows
from stack_b.configuration import Configuration
from stack_b.deps import NEEDS, StackBDeps
from stack_b.following import (
    FOLLOWER,
    Applied,
    FileSource,
    Following,
    Found,
    Standing,
    StoreSource,
    first,
    reaches_of,
    referred_secrets,
)
from stack_b.limits import parse_limits
from stack_b.policies.desk import Policies
from stack_b.redaction.rules import new_key
from stack_b.routing.router import Router
from stack_b.vault import Vault, new_vault, parse_keys

AUDIENCE = "stack-b"
STORED = ("tenant", "budget", "reply_journal", "request_log", "gateway_configuration")


def defaults(env: Environment) -> dict[str, Choice]:
    """The adapters of a node, unless `AGENTOS_ADAPTERS` says otherwise."""
    database = {"dsn": env.secret_file("DATABASE_URL_FILE")}
    return {
        **{port: Choice(adapter="postgres", config=database) for port in STORED},
        **verifier_of_a_node(env, AUDIENCE),
        "pii": Choice(adapter="regex"),
        # Underneath detectors that add to it; opened only for those.
        "pii_patterns": Choice(adapter="regex"),
        # Loads what it needs when a backend of such a kind is configured.
        "provider": Choice(adapter="litellm"),
        "secrets": secrets_of_a_node(env.text("SECRETS"), env.variables.get(DIRECTORY, "")),
    }


def backends(env: Environment, configuration: Configuration) -> tuple[BackendSettings, ...]:
    """Those of the configuration, of `AGENTOS_BACKENDS`, those found, and the demo backend outside of `prod`.

    Raises:
        InvalidArgument: two of the first have the same name.
    """
    explicit = (*configuration.backends, *parse_settings(env.text("BACKENDS")))
    check_settings(explicit)
    return merged(explicit, discovered(env.variables), demo=env.mode() != "prod")


def prices(env: Environment, configuration: Configuration) -> Prices:
    """Those of the configuration; of models without any there, those of the file that `AGENTOS_PRICES_FILE` names."""
    path = env.text("PRICES_FILE")
    try:
        rows = parse_rows(Path(path).read_text(encoding="utf-8") if path else "")
        return Prices(overlaid(configuration.prices, rows))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"AGENTOS_PRICES_FILE: {path!r} can't be read: {error}") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"AGENTOS_PRICES_FILE: {error.message}") from None


def placeholder_key(env: Environment) -> bytes:
    """The node's; without a file one of this process, whose placeholders no other one shares."""
    return env.secret_file("PLACEHOLDER_KEY_FILE").encode() if env.text("PLACEHOLDER_KEY_FILE") else new_key()


def vault(env: Environment) -> Vault:
    """The keys that `AGENTOS_RECORD_KEYS` refers to; without, one of this process, which no other one can open."""
    reference = env.text("RECORD_KEYS")
    if not reference:
        return new_vault()
    try:
        return parse_keys(resolve(reference, env.variables))
    except InvalidArgument as error:
        raise InvalidArgument(f"AGENTOS_RECORD_KEYS: {error.message}") from None


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` as a task of its own for as long as the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def create(env: Environment, choices: Mapping[str, Choice], *, clock: Clock) -> AsyncIterator[App]:
    """The gateway over the chosen adapters, for as long as the block runs."""
    metrics = Metrics()

    def watched(name: str, port: Any) -> Any:  # any port, see `instrument`
        return instrument(name, port, metrics.port_call)

    async with AsyncExitStack() as stack:
        needs = {**NEEDS, "provider": None, "gateway_configuration": None, "secrets": None}
        ports = await stack.enter_async_context(open_ports(choices, needs, clock=clock, wrap=watched))
        caps = parse_limits(env.text("GATEWAY_LIMITS"))
        reads = References(env.variables, ports.pop("secrets"), FOLLOWER)
        known = KnownSecrets(WatchedReads(reads.read, FOLLOWER, metrics.secret_read).read)
        opened = await stack.enter_async_context(
            OpenedBackends(
                clock,
                secret=known,
                demo=env.mode() != "prod",
                lingering=caps.deadline,
                provider=ports.pop("provider"),
            )
        )
        store, path = ports.pop("gateway_configuration"), env.path("GATEWAY_FILE")
        source = StoreSource(store) if path is None else FileSource(path)

        def settings(found: Found) -> tuple[BackendSettings, ...]:
            if found.version:
                check_stored(found.configuration, env.variables)
            return backends(env, found.configuration)

        async def usable(found: Found) -> tuple[tuple[Backend, ...], Prices]:
            costs, chosen = prices(env, found.configuration), settings(found)
            await known.learn(referred_secrets(chosen))
            return opened.use(chosen), costs

        found, (served, costs), refused = await first(source, usable)
        catalog = Catalog(served, clock)
        router = Router(catalog, found.configuration.routing, clock, reaches=reaches_of(settings(found)))
        policies = Policies(found.configuration.policies)
        standing = Standing()
        following = Following(
            source,
            found,
            Applied(
                catalog=catalog,
                router=router,
                policies=policies,
                opened=opened,
                prices=costs,
                settings=settings,
                prices_of=lambda configuration: prices(env, configuration),
                learn=known.learn,
            ),
            standing=standing,
            clock=clock,
            metrics=metrics,
            refused=refused,
        )
        await stack.enter_async_context(running(following.follow()))
        deps = StackBDeps(
            clock=clock,
            metrics=metrics,
            catalog=catalog,
            router=router,
            policies=policies,
            limits=caps,
            share=env.number("REPLICAS", 1, least=1, most=1_000),
            prices=costs,
            standing=standing,
            # A ledger in this process is as quick as a chunk of it.
            budget_in_chunks=choices["budget"].adapter != "inproc",
            placeholder_key=placeholder_key(env),
            vault=vault(env),
            **ports,
        )
        yield await stack.enter_async_context(open_app(deps))


async def main(variables: Mapping[str, str]) -> None:
    env = Environment(variables)
    configure("stack-b", env.text("LOG_LEVEL", "INFO"))
    choices = choices_from(env.text("ADAPTERS"), defaults(env))
    async with create(env, choices, clock=SystemClock()) as app:
        host, port = env.text("STACK_B_HOST", "127.0.0.1"), env.number("STACK_B_PORT", 8081, least=1, most=65_535)
        await serve(app, host=host, port=port, handover=env.path("HANDOVER"))


if __name__ == "__main__":
    run(main(os.environ))
