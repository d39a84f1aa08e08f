"""What an operator says about the gateway in one file, and how it is followed while requests go on.

The file is read again whenever it changes. One that can't be used is refused whole, and told of: the last one that could be
stays in force. A stream that has begun goes on under what it began with.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from ports.clock import Clock
from ports.errors import InvalidArgument
from ports.policy import Policy
from stack_b.backends.catalog import Catalog
from stack_b.backends.opened import OpenedBackends
from stack_b.backends.reach import Reach
from stack_b.backends.settings import BackendSettings, check_settings
from stack_b.policies.desk import Policies
from stack_b.policies.problems import check_policies
from stack_b.routing.router import Router
from stack_b.routing.rules import Name, RoutingRules, check_rules

LOOK_EVERY: Final = timedelta(seconds=2)
MAX_FILE_BYTES: Final = 1024 * 1024
FILE: Final = "file:"
MAX_POLICIES: Final = 32

logger = logging.getLogger("agentos.gateway")


class Configuration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    backends: tuple[BackendSettings, ...] = ()
    routing: RoutingRules = RoutingRules()
    policies: Annotated[dict[Name, Policy], Meta(max_length=MAX_POLICIES)] = {}
    """By name; each of them holds for all tenants."""

    @property
    def version(self) -> str:
        """Equal for files that mean the same."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]


def parse_configuration(text: str | bytes) -> Configuration:
    """Raises `InvalidArgument` with the place in the document."""
    try:
        found = msgspec.json.decode(text, type=Configuration)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"the gateway's configuration is not usable: {error}") from None
    check_settings(found.backends)
    check_rules(found.routing)
    check_policies(found.policies)
    return found


def read_configuration(path: Path) -> Configuration:
    """Raises `InvalidArgument` for a file that is not there, too large, or not usable."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}; it should hold the gateway's configuration") from None
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{path} is over {MAX_FILE_BYTES:,} bytes; a gateway's configuration is small")
    try:
        return parse_configuration(raw)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}") from None


class Following:
    """Applies a configuration, then each one that its file turns into."""

    def __init__(
        self,
        path: Path,
        found: Configuration,
        *,
        catalog: Catalog,
        router: Router,
        policies: Policies,
        opened: OpenedBackends,
        settings: Callable[[Configuration], Sequence[BackendSettings]],
        clock: Clock,
    ) -> None:
        """`found` is what was read from `path` and is in force. `settings` gives all backends of the node, those that are
        not in the file included."""
        self._path = path
        self._catalog = catalog
        self._router = router
        self._policies = policies
        self._opened = opened
        self._settings = settings
        self._clock = clock
        # Not of the file as it is now: it may have changed since it was read.
        self._seen: tuple[object, ...] | None = None
        self.version = found.version
        self._refers_to = referred_files(settings(found))

    async def follow(self) -> None:
        """For ever; runs as a task of the composition root."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Apply the file if it, or a file it refers to, changed since the last look."""
        mark = _mark(self._path, self._refers_to)
        if mark == self._seen:
            return
        self._seen = mark
        try:
            found = read_configuration(self._path)
            settings = self._settings(found)
            self._refers_to = referred_files(settings)
            self._seen = _mark(self._path, self._refers_to)
            backends = self._opened.use(settings)
        except (InvalidArgument, OSError, ValueError) as error:
            # The last two: certificates that can't be read, and what else no check of ours has thought of.
            reason = error.message if isinstance(error, InvalidArgument) else type(error).__name__
            logger.error("gateway.configuration_refused", extra={"reason": reason, "version": self.version})  # noqa: TRY400 - the reason says it
            return
        before, self.version = self.version, found.version
        if backends == self._catalog.backends and before == found.version:
            return
        # First, because no rule waits for a backend that is slow to say what it serves.
        self._policies.follow(found.policies)
        await self._catalog.follow(backends)
        self._router.follow(found.routing, reaches=reaches_of(settings))
        logger.info("gateway.configured", extra={"version": found.version, "count": len(backends)})


def reaches_of(settings: Sequence[BackendSettings]) -> dict[str, Reach]:
    """By backend, of those that declare one."""
    return {one.name: one.reach for one in settings if one.reach != Reach()}


def referred_files(settings: Sequence[BackendSettings]) -> tuple[Path, ...]:
    """Where the secrets and certificates of these backends lie."""
    keys = (one.api_key.removeprefix(FILE) for one in settings if one.api_key.startswith(FILE))
    return tuple(Path(name) for name in (*keys, *(one.ca_file for one in settings if one.ca_file)))


def _mark(path: Path, others: Sequence[Path]) -> tuple[object, ...]:
    """Another one when a file changes."""
    return tuple(_state(one) for one in (path, *others))


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
