"""The egress port over servers on loopback, which the operator has allowed: who may go where, and how much is taken."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from adapters.egress import MAX_CALLS_OF_A_TENANT
from adapters.egress.names import MAX_NAMES_OF_A_TENANT, resolve_by_system
from conformance.people import ACME, GLOBEX
from deploy.roots.tools import egress_of_a_node
from observability.egress import WatchedEgress
from ports.context import EGRESS_NODE, AuthContext
from ports.egress import MAX_BODY_BYTES, MAX_HEAD_BYTES, EgressPort, Fetched
from ports.errors import AgentOSError, InvalidArgument, PermissionDenied, Unavailable
from ports.ids import TenantId
from ports.tenant import Entitlements, check_entitlements
from tests.support.egress import guarded, resolve_to
from tests.support.http_origin import Origin, answer, serving

LONG: Final = timedelta(seconds=20)
SHORT: Final = timedelta(milliseconds=200)
MANY: Final = 120
PAGE: Final = answer(b"hello", content_type="text/plain", x_more="1")

pytestmark = pytest.mark.anyio


async def get(
    port: EgressPort, origin: Origin, *, auth: AuthContext = ACME, host: str = "shop.example", **more: Any
) -> Fetched:
    asked: dict[str, Any] = {"max_bytes": 100, "timeout": LONG, **more}
    return await port.fetch(auth, f"http://{host}:{origin.port}/", **asked)


async def attempt(port: EgressPort, url: str) -> None:
    with suppress(AgentOSError):
        await port.fetch(ACME, url, max_bytes=1, timeout=SHORT)


async def refused(call: Any) -> AgentOSError:
    with pytest.raises(AgentOSError) as refusal:
        await call
    return refusal.value


class TestShares:
    async def test_a_tenant_whose_servers_are_silent_holds_up_nobody_else(self) -> None:
        async with (
            serving({}) as silent,
            serving({"/": PAGE}) as shop,
            guarded(private={("slow.example", silent.port), ("shop.example", shop.port)}) as port,
            anyio.create_task_group() as group,
        ):
            for _ in range(MANY):
                group.start_soon(partial(get, port, silent, host="slow.example"))
            with anyio.fail_after(10):
                while silent.open_connections < MAX_CALLS_OF_A_TENANT:  # noqa: ASYNC110 - a server doesn't tell
                    await anyio.sleep(0.01)
                found = await get(port, shop, auth=GLOBEX)
                waited = await refused(get(port, shop, timeout=SHORT))
            held = silent.open_connections
            group.cancel_scope.cancel()

        assert found.status == 200
        assert held == MAX_CALLS_OF_A_TENANT
        assert (waited.code, "of this tenant" in waited.message) == ("upstream_timeout", True)

    async def test_a_tenant_whose_names_take_long_to_resolve_holds_up_nobody_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also when it gives them up: the system's resolver goes on."""
        answers, asked = threading.Event(), list[str]()

        def resolve(host: str | bytes, *_: object, **__: object) -> list[tuple[Any, ...]]:
            asked.append(host.decode() if isinstance(host, bytes) else host)
            if asked[-1] == "slow.example":
                answers.wait(30)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        try:
            async with (
                serving({"/": PAGE}) as shop,
                guarded(resolve_by_system, private={("slow.example", 80), ("shop.example", shop.port)}) as port,
            ):
                with anyio.fail_after(20):
                    for _ in range(3):
                        async with anyio.create_task_group() as group:
                            for _ in range(MANY):
                                group.start_soon(partial(attempt, port, "http://slow.example/"))
                    found = await get(port, shop, auth=GLOBEX)
        finally:
            answers.set()

        assert found.status == 200
        assert [one for one in asked if one.endswith(".example")] == ["slow.example"] * MAX_NAMES_OF_A_TENANT + [
            "shop.example"
        ]


class TestAnswers:
    async def test_status_headers_and_body_come_as_they_are(self) -> None:
        async with serving({"/": PAGE}) as origin, guarded(private={("shop.example", origin.port)}) as port:
            found = await get(port, origin)

        assert (found.status, found.body, found.truncated) == (200, b"hello", False)
        assert (found.header("content-type"), found.header("x-more"), found.header("absent")) == ("text/plain", "1", "")

    async def test_a_body_is_kept_up_to_the_limit(self) -> None:
        async with serving({"/": PAGE}) as origin, guarded(private={("shop.example", origin.port)}) as port:
            cut, whole = await get(port, origin, max_bytes=4), await get(port, origin, max_bytes=5)

        assert (cut.body, cut.truncated) == (b"hell", True)
        assert (whole.body, whole.truncated) == (b"hello", False)

    @pytest.mark.parametrize(("size", "reason"), [(MAX_HEAD_BYTES + 1_000, "answer"), (300_000, "connect")])
    async def test_a_head_over_the_limit_is_refused_read_or_not(self, size: int, reason: str) -> None:
        many = {f"x_{n}": "y" * 1_000 for n in range(size // 1_000)}
        async with (
            serving({"/": answer(b"", **many)}) as origin,
            guarded(private={("shop.example", origin.port)}) as port,
        ):
            refusal = await refused(get(port, origin))

        assert (refusal.code, refusal.details["reason"]) == ("upstream_error", reason)

    async def test_a_server_that_drips_its_answer_is_left_in_time(self) -> None:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not reader.at_eof():
                writer.write(b".")
                with anyio.move_on_after(0.02):
                    await reader.read(1)
            writer.close()

        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        try:
            number = server.sockets[0].getsockname()[1]
            with anyio.fail_after(10):
                async with guarded(private={("shop.example", number)}) as port:
                    refusal = await refused(
                        port.fetch(ACME, f"http://shop.example:{number}/", max_bytes=MAX_BODY_BYTES, timeout=SHORT)
                    )
        finally:
            server.close()

        assert refusal.code == "upstream_timeout"

    async def test_a_silent_server_and_a_silent_resolver_are_left_in_time(self) -> None:
        async def never(_host: str, _port: int) -> tuple[str, ...]:
            await asyncio.Event().wait()
            return ()

        with anyio.fail_after(10):
            async with serving({}) as origin, guarded(private={("shop.example", origin.port)}) as port:
                silent = await refused(get(port, origin, timeout=SHORT))
            async with guarded(never) as port:
                unresolved = await refused(port.fetch(ACME, "http://example.com/", max_bytes=1, timeout=SHORT))

        assert (silent.code, unresolved.code) == ("upstream_timeout", "upstream_timeout")

    async def test_what_is_posted_arrives_with_its_headers(self) -> None:
        async with serving({"/": PAGE}) as origin, guarded(private={("shop.example", origin.port)}) as port:
            await get(port, origin, method="POST", body=b"{}", headers={"Content-Type": "application/json"})

        assert origin.requests[0].startswith("POST / HTTP/1.1\r\n")
        assert "content-length: 2\r\n" in origin.requests[0].lower()
        assert "content-type: application/json\r\n" in origin.requests[0].lower()

    @pytest.mark.parametrize(
        "headers",
        [{"Host": "evil"}, {"x": "a\r\nHost: evil"}, {"x\r\ny": "1"}, {"Cookie": "a=b"}, {"Transfer-Encoding": "chunked"},
         {"Content-Length": "0"}, {"": "x"}, {"x": "ä"}],
    )  # fmt: skip
    async def test_a_header_that_frames_or_names_the_host_is_not_the_callers(self, headers: dict[str, str]) -> None:
        async with serving({"/": PAGE}) as origin, guarded(private={("shop.example", origin.port)}) as port:
            refusal = await refused(get(port, origin, headers=headers))

        assert isinstance(refusal, InvalidArgument)
        assert origin.requests == []

    @pytest.mark.parametrize(
        "more", [{"max_bytes": MAX_BODY_BYTES + 1}, {"max_bytes": -1}, {"timeout": timedelta(hours=1)}]
    )
    async def test_no_caller_may_ask_for_more_than_the_ports_limits(self, more: dict[str, Any]) -> None:
        async with serving({"/": PAGE}) as origin, guarded(private={("shop.example", origin.port)}) as port:
            assert isinstance(await refused(get(port, origin, **more)), InvalidArgument)

        assert origin.requests == []


class TestTenants:
    async def test_a_tenant_reaches_what_it_is_entitled_to_and_its_neighbour_does_not(self) -> None:
        asked: list[str] = []

        async def resolve(host: str, _port: int) -> tuple[str, ...]:
            asked.append(host)
            return ("127.0.0.1",)

        hosts = {ACME.tenant: ("*.shop.example",), GLOBEX.tenant: ()}
        async with serving({"/": PAGE}) as origin:
            lifted = {(host, origin.port) for host in ("api.shop.example", "shop.example")}
            async with guarded(resolve, private=lifted, hosts=hosts) as port:
                assert (await get(port, origin, host="api.shop.example")).status == 200
                denials = [
                    await refused(get(port, origin, auth=auth, host=host))
                    for auth, host in ((ACME, "shop.example"), (GLOBEX, "api.shop.example"))
                ]

        assert [(one.code, one.details["rule"]) for one in denials] == [("egress_denied", "tenant")] * 2
        # Not even the question who that is goes out.
        assert asked == ["api.shop.example"]

    async def test_a_tenant_that_there_is_not_reaches_nobody(self) -> None:
        stranger = replace(ACME, tenant=TenantId("tnt_nobody"))
        async with guarded(resolve_to("93.184.216.34")) as port:
            denial = await refused(port.check(stranger, "http://example.com/"))

        assert denial.details["rule"] == "tenant"

    async def test_the_node_itself_is_under_no_tenants_list_and_under_every_other_rule(self) -> None:
        node = AuthContext(tenant=TenantId("tnt_system"), principal=ACME.principal, scopes=frozenset({EGRESS_NODE}))
        async with guarded(resolve_to("93.184.216.34")) as port:
            await port.check(node, "https://example.com/.well-known/openid-configuration")
        async with guarded(resolve_to("10.0.0.1")) as port:
            denial = await refused(port.check(node, "https://example.com/"))

        assert denial.details["rule"] == "address"

    async def test_who_is_entitled_is_asked_anew_for_each_call(self) -> None:
        hosts = {ACME.tenant: ("shop.example",)}
        async with (
            serving({"/": PAGE}) as origin,
            guarded(private={("shop.example", origin.port)}, hosts=hosts) as port,
        ):
            await get(port, origin)
            port._tenants.hosts[ACME.tenant] = ()  # type: ignore[attr-defined]
            denial = await refused(get(port, origin))

        assert denial.details["rule"] == "tenant"

    @pytest.mark.parametrize(
        "pattern", ["http://a.b", "a.b:80", "*.", "*", "a..b", "A.b", "*.*.b", "a.b/", "-a.b", "a b"]
    )
    def test_a_pattern_that_names_no_host_can_not_be_an_entitlement(self, pattern: str) -> None:
        if pattern == "*":
            return check_entitlements(Entitlements(egress_hosts=(pattern,)))
        with pytest.raises(InvalidArgument, match="egress_hosts"):
            check_entitlements(Entitlements(egress_hosts=(pattern,)))
        return None


class TestDenials:
    @pytest.mark.parametrize("act", ["fetch", "check"])
    async def test_a_denial_is_counted_and_logged_without_where_to(
        self, caplog: pytest.LogCaptureFixture, act: str
    ) -> None:
        counted: list[str] = []
        async with guarded(resolve_to("127.0.0.1")) as inner:
            port = WatchedEgress(inner, counted.append)
            calls: dict[str, Callable[[], Any]] = {
                "fetch": lambda: port.fetch(ACME, "http://secret.example.com/", max_bytes=1, timeout=LONG),
                "check": lambda: port.check(ACME, "http://secret.example.com/"),
            }
            with caplog.at_level(logging.WARNING, logger="agentos.egress"), pytest.raises(PermissionDenied):
                await calls[act]()

        [record] = caplog.records
        assert (record.msg, record.__dict__["reason"], record.__dict__["tenant_id"]) == (
            "egress.denied", "address", ACME.tenant,
        )  # fmt: skip
        assert "secret.example.com" not in str(record.__dict__)
        assert counted == ["address"]

    async def test_what_is_no_denial_is_not_told(self) -> None:
        counted: list[str] = []
        async with serving({}) as gone:
            pass
        async with guarded(private={("shop.example", gone.port)}) as inner:
            with pytest.raises(Unavailable):
                await get(WatchedEgress(inner, counted.append), gone)

        assert counted == []


def test_the_operators_settings_are_read_once_and_told_where_they_are_wrong() -> None:
    choice = egress_of_a_node('{"allow_private": ["wiki.example:8443"], "ports": [443]}')

    assert (choice.adapter, choice.config["ports"]) == ("guarded", (443,))
    for text in ("[]", '{"allow": []}', '{"allow_private": ["wiki"]}', '{"ports": [0]}', "{"):
        with pytest.raises(InvalidArgument, match="AGENTOS_EGRESS"):
            egress_of_a_node(text)
