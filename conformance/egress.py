"""What the one way out must show. Clauses: `ports.egress`.

The servers are the kit's own, on loopback; what a name resolves to, what the operator lifted and what a tenant is entitled
to is said to the harness.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from conformance.clauses import clause
from conformance.contract import Contract
from conformance.harness import EgressHarness
from conformance.people import ACME, GLOBEX
from ports.context import EGRESS_NODE, AuthContext
from ports.egress import MAX_HEAD_BYTES, EgressPort, Fetched
from ports.errors import AgentOSError
from ports.ids import TenantId

LONG: Final = timedelta(seconds=20)
SHORT: Final = timedelta(milliseconds=300)
NAME: Final = "shop.example.com"
PUBLIC: Final = "93.184.216.34"
NODE: Final = AuthContext(tenant=TenantId("tnt_system"), principal=ACME.principal, scopes=frozenset({EGRESS_NODE}))

AMBIGUOUS: Final = (
    "http://user@{host}/", "http://{host}\\@evil.com/", "http://2130706433/", "http://0x7f.1/", "http://127.1/", "ftp://{host}/",
    "file:///etc/passwd", "http://{host}:22/", "http://{host}./", "http://①②⑦.0.0.1/", "http:///{host}/", "{host}", "",
    "http://{host}/\r\nX: y", "http://localhost/", "http://printer.local/",
)  # fmt: skip

NOT_PUBLIC: Final = (
    ("127.0.0.1",), (PUBLIC, "127.0.0.1"), ("10.0.0.1",), ("169.254.169.254",), ("168.63.129.16",), ("224.0.0.1",),
    ("::1",), ("::ffff:127.0.0.1",), ("64:ff9b::7f00:1",), ("2002:7f00:1::",), ("::127.0.0.1",), ("fe80::1%1",),
    ("garbage",),
)  # fmt: skip


class Origin:
    """A server that answers what it is told, or nothing, and remembers what it was asked."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.heads: list[str] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def origin(answer: bytes | None) -> AsyncIterator[Origin]:
    made = Origin(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def page(body: bytes = b"hello", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def fetch(
    port: EgressPort,
    at: Origin,
    *,
    auth: AuthContext = ACME,
    host: str = NAME,
    max_bytes: int = 100,
    timeout: timedelta = LONG,
) -> Fetched:
    return await port.fetch(auth, f"http://{host}:{at.port}/", max_bytes=max_bytes, timeout=timeout)


async def refusal_of(call: Any) -> AgentOSError:
    with anyio.fail_after(10), pytest.raises(AgentOSError) as refusal:
        await call
    return refusal.value


async def denied(port: EgressPort, url: str, auth: AuthContext = ACME) -> None:
    """Whether it is registered or called."""
    for register in (True, False):
        refusal = await refusal_of(
            port.check(auth, url) if register else port.fetch(auth, url, max_bytes=1, timeout=LONG)
        )
        assert (refusal.code, "rule" in refusal.details) == ("egress_denied", True), url


@pytest.mark.anyio
class EgressContract(Contract):
    @clause("EGR-1")
    @pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Internal Server Error"])
    async def test_an_answer_comes_as_it_was_given(self, harness: EgressHarness, status: str) -> None:
        async with origin(page(b"hello", status, "X-More: 1")) as at:
            harness.lift(NAME, at.port)
            found = await fetch(await harness.open(), at)

        assert (found.status, found.header("x-more"), found.body) == (int(status[:3]), "1", b"hello")

    @clause("EGR-2")
    @pytest.mark.parametrize("form", AMBIGUOUS)
    async def test_a_url_that_can_be_read_in_two_ways_is_denied(self, harness: EgressHarness, form: str) -> None:
        harness.resolves(PUBLIC)

        await denied(await harness.open(), form.replace("{host}", NAME))

        assert harness.reached() == []

    @clause("EGR-3")
    @pytest.mark.parametrize("addresses", NOT_PUBLIC)
    async def test_a_host_with_an_address_that_is_not_public_is_denied(
        self, harness: EgressHarness, addresses: tuple[str, ...]
    ) -> None:
        harness.resolves(*addresses)

        await denied(await harness.open(), f"http://{NAME}/")

        assert harness.reached() == []

    @clause("EGR-3")
    async def test_what_the_operator_lifted_is_that_host_and_port_and_no_other(self, harness: EgressHarness) -> None:
        async with origin(page()) as at, origin(page()) as other:
            harness.lift(NAME, at.port)
            port = await harness.open()
            assert (await fetch(port, at)).status == 200

            for url in (
                f"http://{NAME}:{other.port}/",
                f"http://www.{NAME}:{at.port}/",
                f"http://127.0.0.1:{at.port}/",
            ):
                await denied(port, url)

        assert (at.connections, other.connections) == (1, 0)

    @clause("EGR-4")
    async def test_a_name_is_resolved_once_and_reached_where_that_led(self, harness: EgressHarness) -> None:
        async with origin(page()) as at:
            harness.lift(NAME, at.port)
            harness.resolves("127.0.0.1", then=("127.9.9.9",))
            found = await fetch(await harness.open(), at)

        assert found.status == 200
        assert harness.asked() == [NAME]
        assert harness.reached() == ["127.0.0.1"]
        assert f"host: {NAME}:{at.port}\r\n" in at.heads[0].lower()

    @clause("EGR-5")
    async def test_a_redirect_is_told_and_not_followed(self, harness: EgressHarness) -> None:
        async with (
            origin(page()) as beyond,
            origin(page(b"", "302 Found", f"Location: http://127.0.0.1:{beyond.port}/")) as at,
        ):
            harness.lift(NAME, at.port)
            harness.lift("127.0.0.1", beyond.port)
            found = await fetch(await harness.open(), at)

        assert (found.status, beyond.connections) == (302, 0)

    @clause("EGR-5")
    async def test_neither_a_proxy_nor_a_cookie_is_used(
        self, harness: EgressHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with origin(page()) as proxy, origin(page(b"", "200 OK", "Set-Cookie: a=b; Path=/")) as at:
            for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
            harness.lift(NAME, at.port)
            port = await harness.open()
            for _ in range(2):
                await fetch(port, at)

        assert proxy.connections == 0
        assert [head for head in at.heads if "cookie" in head.lower()] == []

    @clause("EGR-6")
    async def test_a_tenant_reaches_what_it_is_entitled_to(self, harness: EgressHarness) -> None:
        async with origin(page()) as at:
            for host in (NAME, "www.example.org"):
                harness.lift(host, at.port)
            harness.entitle(ACME.tenant, "*.example.com")
            harness.entitle(GLOBEX.tenant, "www.example.org")
            port = await harness.open()

            assert (await fetch(port, at)).status == 200
            assert (await fetch(port, at, auth=GLOBEX, host="www.example.org")).status == 200
            for auth, host in (
                (ACME, "www.example.org"),
                (GLOBEX, NAME),
                (replace(ACME, tenant=TenantId("tnt_none")), NAME),
            ):
                await denied(port, f"http://{host}:{at.port}/", auth)
            assert (await fetch(port, at, auth=NODE)).status == 200

        assert at.connections == 3

    @clause("EGR-7")
    async def test_a_body_is_cut_at_the_limit_and_says_so(self, harness: EgressHarness) -> None:
        async with origin(page(b"hello")) as at:
            harness.lift(NAME, at.port)
            port = await harness.open()
            cut, whole = await fetch(port, at, max_bytes=4), await fetch(port, at, max_bytes=5)

        assert ((cut.body, cut.truncated), (whole.body, whole.truncated)) == ((b"hell", True), (b"hello", False))

    @clause("EGR-7")
    @pytest.mark.parametrize(
        "answer",
        [page(b"x", "200 OK", *(f"X-{n}: {'y' * 1_000}" for n in range(MAX_HEAD_BYTES // 1_000 + 1))),
         page(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"), b"", b"SSH-2.0-x\r\n\r\n"],
        ids=["a head too large", "compressed", "nothing", "another protocol"],
    )  # fmt: skip
    async def test_what_is_no_plain_answer_fails(self, harness: EgressHarness, answer: bytes) -> None:
        async with origin(answer) as at:
            harness.lift(NAME, at.port)
            refusal = await refusal_of(fetch(await harness.open(), at))

        assert refusal.code == "upstream_error"

    @clause("EGR-7")
    async def test_nobody_there_fails(self, harness: EgressHarness) -> None:
        async with origin(b"") as gone:
            pass
        harness.lift(NAME, gone.port)

        refusal = await refusal_of(fetch(await harness.open(), gone))

        assert refusal.code == "upstream_error"

    @clause("EGR-8")
    async def test_a_host_that_says_nothing_is_left_in_time(self, harness: EgressHarness) -> None:
        async with origin(None) as at:
            harness.lift(NAME, at.port)
            refusal = await refusal_of(fetch(await harness.open(), at, timeout=SHORT))

        assert refusal.code == "upstream_timeout"

    @clause("EGR-9")
    async def test_a_check_lets_through_and_connects_to_nobody(self, harness: EgressHarness) -> None:
        async with origin(page()) as at:
            harness.lift(NAME, at.port)
            await (await harness.open()).check(ACME, f"http://{NAME}:{at.port}/")

        assert (at.connections, harness.reached()) == (0, [])
