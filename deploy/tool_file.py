"""The file of declared commands (`AGENTOS_TOOLS_FILE`), looked at before a service reads it."""

import os
from collections.abc import Mapping
from pathlib import Path

from adapters.process_tools.declared import read_tools
from deploy.config import Config
from deploy.roots.tools import egress_of_a_node
from deploy.seed import TOOLS
from ports.errors import InvalidArgument


def offered(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the tools that agents may use. Raises `InvalidArgument` for a file that a worker would refuse."""
    return (*TOOLS, *_declared(config, environ))


def problems(config: Config, environ: Mapping[str, str]) -> list[str]:
    """What would keep the worker from starting, with the place; empty when all is well."""
    found: list[str] = []
    for check in (lambda: _declared(config, environ), lambda: egress_of_a_node(config.egress)):
        try:
            check()
        except InvalidArgument as error:
            found.append(error.message)
    return found


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
