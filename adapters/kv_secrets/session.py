"""A token that works: from a file, or got with an AppRole; renewed before it ends, and replaced when it is refused.

A renewal happens on the way of a read. It fails softly while the token has time left: what decides is the read.
"""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import anyio.to_thread
import msgspec
from msgspec import Struct

from adapters.kv_secrets.api import Api, Method, Refused
from ports.clock import Clock
from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.secrets import MAX_SECRET_BYTES, usable

_RENEW_AT: Final = 2 / 3
"""Of a token's time."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(slots=True)
class Token:
    value: str
    renewable: bool = False
    got_at: float = 0.0
    lasts_s: float = 0.0
    """0: for ever, as far as is known."""

    def __repr__(self) -> str:
        return "<token>"

    def is_due(self, now: float) -> bool:
        return self.lasts_s > 0 and now - self.got_at >= self.lasts_s * _RENEW_AT

    def is_over(self, now: float) -> bool:
        return self.lasts_s > 0 and now - self.got_at >= self.lasts_s


Fresh: TypeAlias = Callable[[], Awaitable[Token]]
"""A token that was not had before. Raises `Refused` as the server does."""


class Session:
    def __init__(self, api: Api, clock: Clock, fresh: Fresh) -> None:
        self._api = api
        self._clock = clock
        self._fresh = fresh
        self._token: Token | None = None
        self._changing = asyncio.Lock()

    async def call(self, method: Method, path: str) -> Any:
        """As `Api.call`, with a token; once more with another one where it is refused. Raises `Unavailable` after that."""
        token = await self._working()
        try:
            return await self._api.call(method, path, token=token.value)
        except Refused:
            pass
        try:
            token = await self._working(instead_of=token)
            return await self._api.call(method, path, token=token.value)
        except Refused:
            raise refused("the secret manager refuses this node; check its token and policy") from None

    async def _working(self, instead_of: Token | None = None) -> Token:
        async with self._changing:
            token, now = self._token, self._clock.monotonic()
            if token is None or token is instead_of or token.is_over(now):
                self._token = None
                try:
                    self._token = await self._fresh()
                except Refused:
                    raise refused("the secret manager refuses this node's login; check what it logs in with") from None
            elif token.is_due(now) and token.renewable:
                await self._renew(token)
            elif token.is_due(now):
                await self._replace(token)
            assert self._token is not None, "one of the three"
            return self._token

    async def _renew(self, token: Token) -> None:
        try:
            answer = await self._api.call("POST", "auth/token/renew-self", token=token.value, body={})
        except Refused:
            await self._replace(token)
            return
        except Unavailable:
            return
        renewed = token_of(answer, self._clock.monotonic(), token.value)
        # The same time as before and no more is left: its end is near, whatever is renewed.
        if renewed.lasts_s:
            self._token = renewed

    async def _replace(self, token: Token) -> None:
        """`token` goes on where no other can be had now."""
        try:
            self._token = await self._fresh()
        except (Refused, AgentOSError):
            self._token = token


def token_of(answer: Any, now: float, usual: str = "") -> Token:
    auth = answer.get("auth") if isinstance(answer, dict) else None
    value = auth.get("client_token", usual) if isinstance(auth, dict) else None
    if not isinstance(auth, dict) or not isinstance(value, str) or not value:
        raise Unavailable("the secret manager answered a login with something else than a token")
    lasts = auth.get("lease_duration")
    return Token(
        value=value,
        renewable=auth.get("renewable") is True,
        got_at=now,
        lasts_s=float(lasts) if isinstance(lasts, int) and lasts > 0 else 0.0,
    )


def token_session(api: Api, clock: Clock, *, file: str) -> Session:
    async def fresh() -> Token:
        value = await anyio.to_thread.run_sync(_own_file, file)
        now = clock.monotonic()
        try:
            answer = await api.call("GET", "auth/token/lookup-self", token=value)
        except Refused:
            # Tokens that may read their secret and not themselves exist; the read will tell.
            return Token(value=value)
        about = answer.get("data") if isinstance(answer, dict) else None
        lasts = about.get("ttl") if isinstance(about, dict) else None
        return Token(
            value=value,
            renewable=isinstance(about, dict) and about.get("renewable") is True,
            got_at=now,
            lasts_s=float(lasts) if isinstance(lasts, int) and lasts > 0 else 0.0,
        )

    return Session(api, clock, fresh)


class _Role(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role_id: str
    secret_id: str

    def __repr__(self) -> str:
        return "<role>"


def approle_session(api: Api, clock: Clock, *, file: str, mount: str) -> Session:
    async def fresh() -> Token:
        text = await anyio.to_thread.run_sync(_own_file, file)
        try:
            role = msgspec.json.decode(text, type=_Role)
        except msgspec.DecodeError:
            raise InvalidArgument(f"{file!r} must be JSON with role_id and secret_id") from None
        now = clock.monotonic()
        body = {"role_id": role.role_id, "secret_id": role.secret_id}
        return token_of(await api.call("POST", f"auth/{mount}/login", body=body), now)

    return Session(api, clock, fresh)


def _own_file(path: str) -> str:
    """What a file says that nobody but its owner may read. Raises `InvalidArgument`."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC)) as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & _OTHERS:
                raise InvalidArgument(f"{path!r} may be read by others on this machine; chmod 600 it")
            raw = file.read(MAX_SECRET_BYTES)
    except OSError as error:
        raise InvalidArgument(f"{path!r} can't be read: {type(error).__name__}") from None
    return usable(raw.decode("utf-8", errors="replace"), path)


def refused(message: str) -> Unavailable:
    return Unavailable(message, code="upstream_auth_error")
