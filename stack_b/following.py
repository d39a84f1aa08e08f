"""How the gateway follows its configuration while requests go on: the file that is named, else the newest stored version.

One that can't be used is refused whole, and told of: the last one that could be stays in force. It is tried again when a
file that it refers to changes. A stream that has begun goes on under what it began with.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from observability.metrics import Metrics
from ports.clock import Clock
from ports.context import GATEWAY_FOLLOW, AuthContext
from ports.errors import AgentOSError, InvalidArgument, NotFound
from ports.gateway_configuration import GatewayConfigurations, Version
from ports.ids import PrincipalId, TenantId
from stack_b.backends.catalog import Catalog
from stack_b.backends.opened import OpenedBackends
from stack_b.backends.protocol import Backend
from stack_b.backends.reach import Reach
from stack_b.backends.settings import BackendSettings
from stack_b.budget.prices import Prices
from stack_b.configuration import Configuration, parse_configuration, read_configuration
from stack_b.policies.desk import Policies
from stack_b.routing.router import Router

LOOK_EVERY: Final = timedelta(seconds=2)
FILE: Final = "file:"
MOST_STEPS_BACK: Final = 50
"""A gateway that starts looks this many versions back for one that it can use."""

FOLLOWER: Final = AuthContext(
    tenant=TenantId("tnt_system"), principal=PrincipalId("svc_stack_b"), scopes=frozenset({GATEWAY_FOLLOW})
)

Origin: TypeAlias = Literal["file", "store", "none"]
FoundT = TypeVar("FoundT")

logger = logging.getLogger("agentos.gateway")


class Found(Struct, frozen=True, kw_only=True):
    """What a source says now."""

    configuration: Configuration
    version: int = 0
    """Of the store; 0 for what has no number there."""


class Unusable(InvalidArgument):
    """What a source says now, which can't be used. Its number is the store's."""

    def __init__(self, message: str, *, version: int = 0, found: Found | None = None) -> None:
        """`found` is what could be read of it: a file that it refers to may make it usable."""
        super().__init__(message)
        self.version = version
        self.found = found


class Source(Protocol):
    origin: Origin

    async def news(self) -> Found | None:
        """What it says, where that is another thing than the last time this was asked.

        Raises:
            Unusable: it can't be read as a configuration; said once.
            AgentOSError: it can't be asked now.
        """
        ...


@dataclass(slots=True)
class Standing:
    """What is in force, and what was refused since."""

    origin: Origin = "none"
    version: int = 0
    digest: str = ""
    refused: bool = False
    refused_version: int = 0
    reachable: bool = True
    """Whether the source could be asked the last time."""


class FileSource:
    origin: Origin = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[object, ...] | None = None

    async def news(self) -> Found | None:
        # Before it is read: what is written meanwhile is seen the next time.
        mark = _mark((self._path,))
        if mark == self._seen:
            return None
        self._seen = mark
        try:
            return Found(configuration=read_configuration(self._path))
        except InvalidArgument as error:
            raise Unusable(error.message) from None


class StoreSource:
    origin: Origin = "store"

    def __init__(self, store: GatewayConfigurations) -> None:
        self._store = store
        self._seen = 0

    async def news(self) -> Found | None:
        newest = await self._store.current(FOLLOWER, newer_than=self._seen)
        if newest is None:
            return None
        self._seen = newest.version
        return stored(newest)

    async def before(self, version: int) -> Version | None:
        try:
            return await self._store.get(FOLLOWER, version - 1)
        except NotFound:
            return None


def stored(version: Version) -> Found:
    """Raises `Unusable`."""
    try:
        found = parse_configuration(msgspec.json.encode(version.document))
    except InvalidArgument as error:
        raise Unusable(error.message, version=version.version) from None
    return Found(configuration=found, version=version.version)


async def first(
    source: FileSource | StoreSource, usable: Callable[[Found], Awaitable[FoundT]]
) -> tuple[Found, FoundT, Unusable | None]:
    """What a gateway begins with, what `usable` makes of it, and what was refused before that was found.

    A file must be usable. Of the stored versions it is the newest that is, because one that was in force is better than
    no gateway; without any version, a configuration that says nothing.

    Raises:
        InvalidArgument: the file can't be used, or none of the newest versions.
        AgentOSError: the source can't be asked.
    """
    try:
        found = await source.news() or Found(configuration=Configuration())
    except Unusable as error:
        refused = error
    else:
        try:
            return found, await usable(found), None
        except (InvalidArgument, OSError, ValueError) as error:
            if isinstance(source, StoreSource) and not found.version:
                # Nothing is stored: it is the node's own settings that can't be used.
                raise
            refused = Unusable(reason_of(error), version=found.version, found=found)
    if isinstance(source, FileSource):
        raise refused
    version = refused.version
    for _ in range(MOST_STEPS_BACK):
        older = await source.before(version)
        if older is None:
            break
        version = older.version
        try:
            found = stored(older)
            return found, await usable(found), refused
        except (InvalidArgument, OSError, ValueError):
            continue
    raise InvalidArgument(
        f"version {refused.version} of the gateway's configuration can't be used ({refused.message}), and none before it; "
        "store one that can (`agentos gateway apply`), or name a file in AGENTOS_GATEWAY_FILE, which goes before the store"
    )


async def nothing_to_learn(_references: Sequence[str]) -> object:
    """Of a gateway whose backends have no secrets."""
    return None


@dataclass(slots=True, kw_only=True)
class Applied:
    """What a configuration is applied to."""

    catalog: Catalog
    router: Router
    policies: Policies
    opened: OpenedBackends
    prices: Prices
    settings: Callable[[Found], Sequence[BackendSettings]]
    """All backends of the node, those that are not in the configuration included. Raises for what may not be."""
    prices_of: Callable[[Configuration], Prices] = field(default=lambda found: Prices(found.prices))
    """Raises like `settings`."""
    learn: Callable[[Sequence[str]], Awaitable[object]] = nothing_to_learn
    """Reads what references stand for, before backends are opened with it. Equal results mean that nothing changed."""


class Following:
    """Applies each configuration that a source turns into."""

    def __init__(
        self,
        source: Source,
        in_force: Found,
        to: Applied,
        *,
        standing: Standing,
        clock: Clock,
        metrics: Metrics,
        refused: Unusable | None = None,
    ) -> None:
        """`in_force` is what `to` has already; `refused` is what `source` says, where that is another thing."""
        self._source = source
        self._in_force = in_force
        # What the source says. None: nothing that could be read as a configuration.
        self._newest: Found | None = in_force if refused is None else refused.found
        self._to = to
        self.standing = standing
        self._clock = clock
        self._metrics = metrics
        self._refers_to = referred_files(to.settings(in_force))
        self._secrets = referred_secrets(to.settings(in_force))
        # Not of the files as they are now: they may have changed since they were read.
        self._mark: tuple[object, ...] | None = None
        standing.origin = source.origin
        self._tell()
        if refused is not None:
            self._refuse(refused.message, refused.version)

    async def follow(self) -> None:
        """For ever; runs as a task of the composition root."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            try:
                await self.look()
            except Exception:
                # A bug in one look must not be the last look: nobody would notice that nothing is followed any more.
                logger.exception("gateway.following_failed")

    async def look(self) -> None:
        """Apply what the source says if that, or a file or secret it refers to, changed since the last look."""
        try:
            news = await self._source.news()
        except Unusable as error:
            self._newest = None
            self._refuse(error.message, error.version)
            return
        except AgentOSError as error:
            self._unreachable(error.code)
            return
        self.standing.reachable = True
        if news is None and self._mark == await self._marked():
            return
        if news is not None:
            self._newest = news
        taken = self._newest is not None and await self._take(self._newest)
        if not taken and news is None:
            # What is in force may refer to what changed.
            await self._take(self._in_force)

    async def _take(self, found: Found) -> bool:
        """Whether it could be."""
        to = self._to
        try:
            settings = to.settings(found)
            await self._watch(settings)
            prices = to.prices_of(found.configuration)
            # Last: from here on nothing is refused any more.
            backends = to.opened.use(settings)
        except (InvalidArgument, OSError, ValueError) as error:
            # The last two: certificates that can't be read, and what else no check of ours has thought of.
            self._refuse(reason_of(error), found.version)
            return False
        await self._apply(found, settings, backends, prices)
        return True

    async def _watch(self, settings: Sequence[BackendSettings]) -> None:
        """Look at the files and secrets of these, and at those of what is in force and of what the source says."""
        both = (self._in_force, self._newest or self._in_force)
        files = (
            *referred_files(settings),
            *(file for one in both for file in referred_files(one.configuration.backends)),
        )
        self._refers_to = tuple(dict.fromkeys(files))
        theirs = (
            *referred_secrets(settings),
            *(key for one in both for key in referred_secrets(one.configuration.backends)),
        )
        self._secrets = tuple(dict.fromkeys(theirs))
        self._mark = await self._marked()

    async def _marked(self) -> tuple[object, ...]:
        """Another one when a file or a secret changes."""
        files = _mark(self._refers_to)
        return files, await self._to.learn(self._secrets)

    async def _apply(
        self, found: Found, settings: Sequence[BackendSettings], backends: Sequence[Backend], prices: Prices
    ) -> None:
        before, self._in_force = self._in_force, found
        cleared = self.standing.refused and found is self._newest
        if cleared:
            self.standing.refused = False
        if backends != self._to.catalog.backends or before != found:
            # First, because no rule waits for a backend that is slow to say what it serves.
            self._to.policies.follow(found.configuration.policies)
            await self._to.catalog.follow(backends)
            self._to.router.follow(found.configuration.routing, reaches=reaches_of(settings))
            self._to.prices.follow(prices)
        elif not cleared:
            return
        self._tell()
        logger.info(
            "gateway.configured",
            extra={"version": self.standing.version, "digest": self.standing.digest, "count": len(backends)},
        )

    def _refuse(self, reason: str, version: int) -> None:
        self.standing.refused, self.standing.refused_version = True, version
        self._tell()
        logger.error(
            "gateway.configuration_refused",
            extra={"reason": reason, "version": version or self.standing.version, "digest": self.standing.digest},
        )

    def _unreachable(self, code: str) -> None:
        if self.standing.reachable:
            logger.warning("gateway.configuration_unreachable", extra={"code": code})
        self.standing.reachable = False

    def _tell(self) -> None:
        standing = self.standing
        standing.version, standing.digest = self._in_force.version, self._in_force.configuration.version
        self._metrics.gateway_configuration(version=standing.version, refused=standing.refused)


def reason_of(error: Exception) -> str:
    return error.message if isinstance(error, InvalidArgument) else type(error).__name__


def reaches_of(settings: Sequence[BackendSettings]) -> dict[str, Reach]:
    """By backend, of those that declare one."""
    return {one.name: one.reach for one in settings if one.reach != Reach()}


def referred_files(settings: Sequence[BackendSettings]) -> tuple[Path, ...]:
    """Where the secrets and certificates of these backends lie."""
    keys = (one.api_key.removeprefix(FILE) for one in settings if one.api_key.startswith(FILE))
    return tuple(Path(name) for name in (*keys, *(one.ca_file for one in settings if one.ca_file)))


def referred_secrets(settings: Sequence[BackendSettings]) -> tuple[str, ...]:
    return tuple(one.api_key for one in settings if one.api_key)


def _mark(paths: Sequence[Path]) -> tuple[object, ...]:
    """Another one when a file changes."""
    return tuple(_state(one) for one in paths)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
