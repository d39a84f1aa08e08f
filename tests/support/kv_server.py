"""A secret manager with the documented KV version 2 API, on a real socket: as much of it as a reader of secrets meets.

Secrets with versions, deleted and destroyed ones, namespaces, tokens with what they may read, leases and renewal, AppRole,
and a seal. Every answer has the status and the shape that the API's documentation gives it.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, Any]]
FORBIDDEN: Final[Answer] = (403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]})
ABSENT: Final[Answer] = (404, {"errors": []})


@dataclass
class Version:
    data: dict[str, Any]
    deletion_time: str = ""
    destroyed: bool = False


@dataclass
class Lease:
    below: str = ""
    """What paths it may read begin with."""
    ttl: int = 0
    renewable: bool = False


@dataclass(kw_only=True)
class KvServer:
    mount: str = "secret"
    secrets: dict[tuple[str, str], list[Version]] = field(default_factory=dict)
    """By namespace and path."""
    tokens: dict[str, Lease] = field(default_factory=dict)
    roles: dict[str, tuple[str, Lease]] = field(default_factory=dict)
    """Secret id and what its tokens are, by role id."""
    sealed: bool = False
    silent: bool = False
    replaced: tuple[int, bytes] | None = None
    """What it answers instead of anything."""
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and token of each request."""
    url: str = ""
    logins: int = 0

    def put(self, path: str, data: dict[str, Any], *, namespace: str = "") -> int:
        versions = self.secrets.setdefault((namespace, path), [])
        versions.append(Version(data))
        return len(versions)

    def delete(self, path: str, *, namespace: str = "") -> None:
        """The newest version, as `kv delete` does."""
        self.secrets[namespace, path][-1].deletion_time = "2026-01-01T00:00:00.000000000Z"

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(target)
        path, token = parts.path.removeprefix("/v1/"), headers.get("x-vault-token", "")
        self.seen.append((method, path, token))
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if headers.get("x-vault-request") != "true":
            return FORBIDDEN
        if method == "POST" and path.startswith("auth/") and path.endswith("/login"):
            return self._login(json.loads(body))
        lease = self.tokens.get(token)
        if lease is None:
            return FORBIDDEN
        if (method, path) == ("GET", "auth/token/lookup-self"):
            return 200, {"data": {"ttl": lease.ttl, "renewable": lease.renewable, "id": token}}
        if (method, path) == ("POST", "auth/token/renew-self"):
            if not lease.renewable:
                return 400, {"errors": ["lease is not renewable"]}
            return 200, {"auth": {"client_token": token, "lease_duration": lease.ttl, "renewable": True}}
        before = f"{self.mount}/data/"
        if method == "GET" and path.startswith(before):
            found = path.removeprefix(before)
            if not found.startswith(lease.below):
                return FORBIDDEN
            return self._read(headers.get("x-vault-namespace", ""), found, parse_qs(parts.query))
        return ABSENT

    def _login(self, body: dict[str, Any]) -> Answer:
        role = self.roles.get(str(body.get("role_id")))
        if role is None or role[0] != body.get("secret_id"):
            return 400, {"errors": ["invalid role or secret ID"]}
        self.logins += 1
        token = f"hvs.got-{self.logins}"
        self.tokens[token] = role[1]
        auth = {"client_token": token, "lease_duration": role[1].ttl, "renewable": role[1].renewable}
        return 200, {"auth": auth}

    def _read(self, namespace: str, path: str, query: dict[str, list[str]]) -> Answer:
        versions = self.secrets.get((namespace, path), [])
        number = int(query.get("version", ["0"])[0]) or len(versions)
        if not 0 < number <= len(versions):
            return ABSENT
        one = versions[number - 1]
        gone = bool(one.deletion_time) or one.destroyed
        about = {"version": number, "deletion_time": one.deletion_time, "destroyed": one.destroyed,
                 "created_time": "2026-01-01T00:00:00Z", "custom_metadata": None}  # fmt: skip
        return (404 if gone else 200), {"data": {"data": None if gone else one.data, "metadata": about}}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if self.silent:
                    await reader.read()
                    return
                status, raw = self.replaced or self._raw(*self.answer(method, target, headers, body))
                phrase = "Answer"
                writer.write(
                    f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nLocation: {self.url}/elsewhere\r\n"
                    f"Content-Length: {len(raw)}\r\n\r\n".encode()
                    + raw
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _raw(self, status: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return status, json.dumps({"request_id": "r", "lease_id": "", **body}).encode()


@asynccontextmanager
async def kv_serving(server: KvServer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[KvServer]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    try:
        yield server
    finally:
        listening.close()
