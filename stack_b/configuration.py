"""What an operator says about the gateway, in one document: the same in a file and in the store of versions.

How it is followed while requests go on: `stack_b.following`. What is wrong with it, all of it: `stack_b.diagnosis`.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from ports.errors import InvalidArgument
from ports.policy import Policy
from stack_b.backends.settings import BackendSettings, check_settings
from stack_b.budget.prices import PriceRow, check_prices
from stack_b.policies.problems import check_policies
from stack_b.routing.rules import Name, RoutingRules, check_rules

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_POLICIES: Final = 32


class Configuration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    # What is left out is not part of the version, so that a member that a release adds changes no version.
    backends: tuple[BackendSettings, ...] = ()
    routing: RoutingRules = RoutingRules()
    prices: tuple[PriceRow, ...] = ()
    """They go before those of `AGENTOS_PRICES_FILE`, by model."""
    policies: Annotated[dict[Name, Policy], Meta(max_length=MAX_POLICIES)] = {}
    """By name; each of them holds for all tenants."""

    @property
    def version(self) -> str:
        """Equal for documents that mean the same."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]


def parse_configuration(text: str | bytes) -> Configuration:
    """Raises `InvalidArgument` with the place in the document."""
    try:
        found = msgspec.json.decode(text, type=Configuration)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"the gateway's configuration is not usable: {error}") from None
    check_settings(found.backends)
    check_rules(found.routing)
    check_prices(found.prices)
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
