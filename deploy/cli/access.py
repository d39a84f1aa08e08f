"""Tokens and directory access for commands that act in somebody's name."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeVar

import msgspec

from adapters.token_auth.jwt import is_namespace
from deploy import credentials
from deploy.cli.io import Io
from deploy.internal import Directory, open_directory, open_issuer, operator_of
from deploy.principal_names import CHARACTERS, OWN_CHARACTERS, is_name, is_own_name
from deploy.roles import scopes_of
from ports.errors import InvalidArgument, NotFound
from ports.ids import PrincipalId, TenantId, is_tenant_id

AUDIENCES: Final = ("stack-a", "stack-b", "admin")

# Which of the seeded keys stands for a role; the admin's can do whatever people can.
_SEEDED_KEYS: Final = {"service": "app"}

ResultT = TypeVar("ResultT")


def tenant_id(text: str) -> TenantId:
    """Raises `InvalidArgument` when `text` can't name a tenant."""
    if not is_tenant_id(text):
        raise InvalidArgument(f"{text!r} can't name a tenant: write tnt_ and small letters, digits, - or _")
    return TenantId(text)


def principal_id(text: str) -> PrincipalId:
    """Raises `InvalidArgument` when `text` can't name a principal."""
    if not is_name(text):
        raise InvalidArgument(f"{text!r} can't name a principal: write {CHARACTERS}, such as svc_shop or usr_ann")
    return PrincipalId(text)


def own_principal(text: str) -> PrincipalId:
    """As `principal_id`, of those that the node itself speaks for."""
    if not is_own_name(text):
        raise InvalidArgument(
            f"{text!r} can't name a principal of this node: write {OWN_CHARACTERS}, such as svc_shop or usr_ann"
        )
    return PrincipalId(text)


def namespace_of(text: str) -> str:
    """Raises `InvalidArgument` when `text` can't name a namespace."""
    if not is_namespace(text):
        raise InvalidArgument(f"{text!r} can't name a namespace: write 1 to 64 small letters, digits, - or _")
    return text


def known_principal(text: str) -> PrincipalId:
    """As `principal_id`, or the name of one of another tenant that acts here: `tnt_hub/svc_hub`."""
    home, slash, name = text.partition("/")
    if slash:
        return PrincipalId(f"{tenant_id(home)}/{principal_id(name)}")
    return principal_id(text)


def whole(flag: str, number: int, *, least: int, most: int) -> int:
    """`number`; raises `InvalidArgument` with both bounds when it is out of them."""
    if not least <= number <= most:
        raise InvalidArgument(f"{flag} must be {least} to {most}, not {number}")
    return number


@contextmanager
def run_of(tenant: str) -> Iterator[None]:
    """Whoever asks for a run that is not there is told whose runs were looked at: another tenant's is as absent."""
    try:
        yield
    except NotFound as absent:
        raise NotFound(f"{absent.message} of {tenant}; another tenant's: --tenant tnt_<name>") from None


def with_directory(io: Io, act: Callable[[Directory], Awaitable[ResultT]]) -> ResultT:
    """Open the node's directory, act, close it."""

    async def acted() -> ResultT:
        async with open_directory(io.node) as directory:
            return await act(directory)

    return asyncio.run(acted())


def mint(
    io: Io, tenant: str, *, role: str, audience: str, lifetime: timedelta, principal: PrincipalId | None = None
) -> str:
    """A signed token of this node's issuer. The tenant must exist, or every door would refuse it anyway."""
    name = tenant_id(tenant)
    scopes = scopes_of(role)

    async def check(directory: Directory) -> None:
        await directory.tenants.get(operator_of(name), name)

    with_directory(io, check)

    async def minted() -> str:
        async with open_issuer(io.node, io.config()) as issuer:
            operator = operator_of(name)
            bearer = msgspec.structs.replace(
                operator, principal=principal or operator.principal, scopes=scopes, roles=frozenset({role})
            )
            return issuer.mint(bearer, audience=audience, scopes=scopes, lifetime=lifetime)

    return asyncio.run(minted())


def api_token(io: Io, tenant: str | None, *, role: str = "service") -> str:
    """What opens Stack A for a command: a key of the seeded tenant, or a token minted for another one.

    Raises:
        InvalidArgument: nobody said for whom, and no tenant is seeded.
    """
    tokens = credentials.load_tokens(io.node)
    if tokens is not None and tenant in {None, tokens.tenant_id}:
        return tokens.keys[_SEEDED_KEYS.get(role, "tenant_admin")].api_key
    if tenant is None:
        raise InvalidArgument("this node has no seeded tenant; say for whom with --tenant tnt_<name>")
    return mint(io, tenant, role=role, audience="stack-a", lifetime=timedelta(hours=1))
