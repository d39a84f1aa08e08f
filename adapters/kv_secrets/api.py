"""One call to a secret manager, and its answer: bounded, never followed, and never quoted."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx
import msgspec

from ports.errors import InvalidArgument, Unavailable

MAX_ANSWER_BYTES: Final = 256 * 1024
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_SEALED: Final = 503
_REDIRECTS: Final = range(300, 400)

Method = Literal["GET", "POST"]


class Refused(Exception):
    """403: the token, or what it may read. Handled by the session."""


class Api:
    def __init__(self, client: httpx.AsyncClient, timeout: timedelta) -> None:
        self._client = client
        self._timeout = timeout.total_seconds()

    async def call(self, method: Method, path: str, *, token: str = "", body: dict[str, str] | None = None) -> Any:
        """The JSON of a 200; None for a 404.

        Raises:
            Refused: 403, and 400 for what only a login says.
            Unavailable: no answer, sealed, or something else than the API.
        """
        headers = {"X-Vault-Token": token} if token else {}
        content = None if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(self._timeout):
                async with self._client.stream(method, f"/v1/{path}", headers=headers, content=content) as response:
                    raw = await _bounded(response)
        except TimeoutError:
            raise Unavailable(f"the secret manager did not answer within {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            # Its text may tell the request, which has the token.
            raise Unavailable(f"the secret manager can't be reached: {type(error).__name__}") from None
        return _judged(response.status_code, raw)


def _judged(status: int, raw: bytes) -> Any:
    match status:
        case 200:
            try:
                return msgspec.json.decode(raw)
            except msgspec.DecodeError:
                raise Unavailable("the secret manager answered something that is not JSON") from None
        case 204:
            return {}
        case 404:
            return None
        case 400 | 401 | 403:
            raise Refused
        case 503:
            raise Unavailable("the secret manager is sealed or in maintenance; unseal it")
        case _ if status in _REDIRECTS:
            raise Unavailable(
                "the secret manager sends elsewhere, as a standby does; name the active one, or its balancer"
            )
        case _:
            raise Unavailable(f"the secret manager answered {status}")


async def _bounded(response: httpx.Response) -> bytes:
    found = bytearray()
    async for chunk in response.aiter_raw():
        found += chunk
        if len(found) > MAX_ANSWER_BYTES:
            raise Unavailable(f"the secret manager answered over {MAX_ANSWER_BYTES} bytes")
    return bytes(found)


def check_url(url: str) -> None:
    """Raise `InvalidArgument` unless `url` is https, or http on this machine, and no more than a server."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in {"http", "https"} or port == 0:
        raise InvalidArgument("the secret manager's url must be https://host[:port]")
    if parts.username or parts.password or parts.query or parts.fragment or parts.path.strip("/"):
        raise InvalidArgument("the secret manager's url has no path, query or credentials; write https://host[:port]")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise InvalidArgument("the secret manager must be reached over https, or be on this machine")


@asynccontextmanager
async def open_api(url: str, *, namespace: str, ca_file: str, timeout: timedelta) -> AsyncIterator[Api]:
    try:
        context = ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context(trust_env=False)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(
            f"the secret manager's ca_file {ca_file!r} can't be used: {type(error).__name__}"
        ) from None
    headers = {"X-Vault-Request": "true", "Accept-Encoding": "identity", "User-Agent": "agentos/1"}
    if namespace:
        headers["X-Vault-Namespace"] = namespace
    async with httpx.AsyncClient(
        base_url=url,
        headers=headers,
        verify=context,
        trust_env=False,
        follow_redirects=False,
        timeout=timeout.total_seconds(),
    ) as client:
        yield Api(client, timeout)
