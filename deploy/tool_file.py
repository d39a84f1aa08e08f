"""The file of declared commands (`AGENTOS_TOOLS_FILE`), looked at before a service reads it."""

import os
from collections.abc import Mapping
from pathlib import Path

from adapters.process_tools.declared import read_tools
from deploy.config import Config
from deploy.seed import TOOLS
from ports.errors import InvalidArgument


def offered(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the tools that agents may use. Raises `InvalidArgument` for a file that a worker would refuse."""
    return (*TOOLS, *_declared(config, environ))


def problems(config: Config, environ: Mapping[str, str]) -> list[str]:
    """What would keep the worker from starting, with the place in the file; empty when all is well."""
    try:
        _declared(config, environ)
    except InvalidArgument as error:
        return [error.message]
    return []


def _declared(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    if not config.tools_file:
        return ()
    if not Path(config.tools_file).is_absolute():
        # The worker's working directory is another one than that of whoever wrote it.
        raise InvalidArgument(f"AGENTOS_TOOLS_FILE must be an absolute path, not {config.tools_file!r}")
    try:
        tools = read_tools(Path(config.tools_file), search=environ.get("PATH", os.defpath))
    except InvalidArgument as error:
        raise InvalidArgument(f"AGENTOS_TOOLS_FILE: {error.message}") from None
    if taken := sorted({tool.name for tool in tools} & set(TOOLS)):
        raise InvalidArgument(
            f"AGENTOS_TOOLS_FILE: {config.tools_file}: {', '.join(taken)} is the name of a built-in tool; choose another"
        )
    return tuple(tool.name for tool in tools)
