"""The gateway's file (`AGENTOS_GATEWAY_FILE`), looked at before the gateway reads it."""

from collections.abc import Mapping
from pathlib import Path

from deploy.config import Config, names_in, referred_names
from deploy.node import Node
from deploy.roots.gateway_secrets import DIRECTORY, NAMES, check_reference
from deploy.roots.provided import check_provided
from deploy.roots.secret_references import check_secret
from ports.errors import InvalidArgument
from stack_b.backends.settings import check_settings, parse_settings
from stack_b.configuration import Configuration, read_configuration
from stack_b.diagnosis import NodeFacts
from stack_b.limits import parse_limits


def configuration(config: Config) -> Configuration:
    """What the file says; nothing where there is none. Raises `InvalidArgument`."""
    if not config.gateway_file:
        return Configuration()
    path = Path(config.gateway_file)
    if not path.is_absolute():
        # The gateway's working directory is another one than that of whoever wrote it.
        raise InvalidArgument(f"AGENTOS_GATEWAY_FILE must be an absolute path, not {config.gateway_file!r}")
    return read_configuration(path)


def checked(found: Configuration, config: Config, environ: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` for what the gateway would refuse with this node's other settings."""
    check_settings((*found.backends, *parse_settings(config.backends)))
    for backend in found.backends:
        if backend.kind == "demo" and config.mode == "prod":
            raise InvalidArgument(f"backend {backend.name!r} is the demo backend, which prod does not serve; remove it")
        if backend.api_key:
            try:
                check_secret(backend.api_key, environ)
            except InvalidArgument as error:
                raise InvalidArgument(f"the api_key of backend {backend.name!r}: {error.message}") from None
        check_provided(backend)


def file_facts(config: Config, environ: Mapping[str, str]) -> NodeFacts:
    """What a file must get along with: it may refer to whatever this shell and this machine have."""
    return NodeFacts(
        beside=parse_settings(config.backends),
        prod=config.mode == "prod",
        check_secret=lambda reference: _found(reference, environ),
        check_backend=check_provided,
    )


def store_facts(config: Config, node: Node, environ: Mapping[str, str]) -> NodeFacts:
    """What a stored version must get along with, as the admin API sees it."""
    names = ",".join(name for name in names_in(config.gateway_env) if environ.get(name))
    known = {DIRECTORY: str(node.gateway_secrets), NAMES: names}
    return NodeFacts(
        beside=parse_settings(config.backends),
        prod=config.mode == "prod",
        check_secret=lambda reference: check_reference(reference, known),
        check_backend=check_provided,
    )


def origin(config: Config) -> str:
    """Where the gateway's configuration comes from, and what that means for the other place."""
    if config.gateway_file:
        return f"the file {config.gateway_file} (AGENTOS_GATEWAY_FILE); it goes before what is stored, and is followed"
    return "the store: its newest version (./agentos gateway show); a file in AGENTOS_GATEWAY_FILE would go before it"


def _found(reference: str, environ: Mapping[str, str]) -> None:
    check_secret(reference, environ)


def problems(config: Config, environ: Mapping[str, str]) -> list[str]:
    """What would keep the gateway from starting; empty when all is well."""
    found: list[str] = []
    try:
        parse_limits(config.gateway_limits)
    except InvalidArgument as error:
        found.append(error.message)
    try:
        checked(configuration(config), config, environ)
    except InvalidArgument as error:
        found.append(f"AGENTOS_GATEWAY_FILE: {error.message}")
    return found


def environment_of(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Where the file is, and the variables it refers to: the gateway needs them, and only it."""
    if not config.gateway_file:
        return {}
    try:
        text = Path(config.gateway_file).read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = {name: environ[name] for name in referred_names(text) if name in environ}
    return {"AGENTOS_GATEWAY_FILE": config.gateway_file, **names}
