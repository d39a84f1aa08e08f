"""The file of trusted issuers (`AGENTOS_ISSUERS_FILE`), looked at before a service reads it."""

from pathlib import Path

from adapters.token_auth.trust import read_trusted
from deploy.config import Config
from ports.errors import InvalidArgument


def problems(config: Config) -> list[str]:
    """What would keep tokens of other issuers from being taken, with the place; empty when all is well."""
    file = config.issuers_file
    if not file:
        return []
    if not Path(file).is_absolute():
        # The services' working directory is another one than that of whoever wrote it.
        return [f"AGENTOS_ISSUERS_FILE must be an absolute path, not {file!r}"]
    try:
        read_trusted(Path(file).read_bytes(), own=config.issuer)
    except OSError as error:
        return [f"AGENTOS_ISSUERS_FILE: {file!r} can't be read: {error.strerror}"]
    except InvalidArgument as error:
        return [f"AGENTOS_ISSUERS_FILE: {file}: {error.message}"]
    return []


def environment_of(config: Config) -> dict[str, str]:
    """What a service that takes tokens is started with."""
    issuers = {"AGENTOS_ISSUERS_FILE": config.issuers_file} if config.issuers_file else {}
    return {**issuers, **({"AGENTOS_EGRESS": config.egress} if issuers and config.egress else {})}
