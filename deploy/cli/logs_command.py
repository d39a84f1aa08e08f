"""`agentos logs <service>`: the end of a service's log, and what is added to it."""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from deploy.catalogue import catalogue, successor
from deploy.cli.io import FINE, UNREACHABLE, Io
from deploy.health import tail_and_size
from ports.errors import InvalidArgument

_POLL_SECONDS: Final = 0.2
_SUPERVISOR: Final = "supervisord"


class Options(Struct, frozen=True, kw_only=True):
    service: str
    follow: bool = False
    lines: int = 50


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "logs",
        help="the log of a service",
        description="The end of a service's log: postgres, stack-a, stack-a-worker, stack-b, admin or supervisord.",
    )
    parser.add_argument("service")
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing what is added, until Ctrl-C")
    parser.add_argument("-n", "--lines", type=int, default=50, help="how many lines to begin with (50)")
    parser.set_defaults(
        run=run,
        options=lambda parsed: Options(service=parsed.service, follow=parsed.follow, lines=parsed.lines),
    )


def run(options: Options, io: Io) -> int:
    node = io.node
    services = catalogue(node, io.config(), io.environ)
    # What stood in for a service in a redeploy that failed is asked for when that is over.
    stood_in = [name for name in (successor(service).name for service in services) if node.log_of(name).exists()]
    names = [*(service.name for service in services), *stood_in, _SUPERVISOR]
    if options.service not in names:
        raise InvalidArgument(f"there is no service {options.service!r}; there are {', '.join(names)}")
    path = node.log_of(options.service)
    if not path.exists():
        io.say(f"agentos: {options.service} has no log yet at {path}; start the node with ./agentos up")
        return UNREACHABLE
    lines, size = tail_and_size(path, max(0, options.lines))
    for line in lines:
        io.out.write(line + "\n")
    io.out.flush()
    if options.follow:
        try:
            for text in added_to(path, size):
                io.out.write(text)
                io.out.flush()
        except KeyboardInterrupt:
            pass
    return FINE


def added_to(path: Path, offset: int) -> Iterator[str]:
    """What is written to the file beyond `offset`, across rotations; never ends."""
    file = path.open(encoding="utf-8", errors="replace")
    file.seek(offset)
    try:
        while True:
            text = file.read()
            if text:
                yield text
                continue
            if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file = path.open(encoding="utf-8", errors="replace")
                continue
            time.sleep(_POLL_SECONDS)
    finally:
        file.close()
