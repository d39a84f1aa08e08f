"""`http_get` against servers on loopback, which the operator has allowed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest

from adapters.builtin_tools.http_get import MAX_BODY_BYTES, decoded, fitting, http_get, is_textual
from adapters.builtin_tools.port import BuiltinTools
from conformance.people import ACME
from ports.errors import AgentOSError, Unavailable
from ports.messages import Json
from ports.tool import ToolCall
from tests.support.egress import guarded, resolve_to
from tests.support.http_origin import Origin, answer, serving
from tests.support.pki import new_authority

LONG = timedelta(seconds=20)


@asynccontextmanager
async def tool_for(origin: Origin, host: str = "shop.example", *, ca_file: str = "") -> AsyncIterator[BuiltinTools]:
    with anyio.fail_after(30):
        async with guarded(private={(host, origin.port)}, ca_file=ca_file) as egress:
            yield BuiltinTools([http_get(egress)])


async def get(tools: BuiltinTools, url: str, *, timeout: timedelta = LONG) -> Json:
    return (
        await tools.invoke(ACME, ToolCall(name="http_get", arguments={"url": url}, key="run_0:1"), timeout=timeout)
    ).output


async def refusal_of(tools: BuiltinTools, url: str) -> AgentOSError:
    with pytest.raises(AgentOSError) as refusal:
        await get(tools, url)
    return refusal.value


@pytest.mark.anyio
class TestHttpGet:
    async def test_a_page_comes_back_with_status_type_and_text(self) -> None:
        page = answer("Grüße".encode(), content_type="text/plain; charset=utf-8")
        async with serving({"/p?q=1": page}) as origin, tool_for(origin) as tools:
            output = await get(tools, f"http://shop.example:{origin.port}/p?q=1#top")

        assert output == {"status": 200, "content_type": "text/plain", "text": "Grüße", "truncated": False}

    async def test_the_request_names_the_host_and_tells_nothing_of_the_caller(self) -> None:
        async with serving({"/": answer(b"{}", content_type="application/json")}) as origin, tool_for(origin) as tools:
            await get(tools, f"http://shop.example:{origin.port}/")

        [request] = origin.requests
        assert f"Host: shop.example:{origin.port}\r\n" in request
        for secret in ("tnt_acme", "usr_ann", "corr-acme", "cookie", "authorization"):
            assert secret not in request.lower()

    async def test_cookies_of_one_call_are_not_sent_by_the_next(self) -> None:
        page = answer(b"x", content_type="text/plain", set_cookie="session=1; Path=/")
        async with serving({"/": page}) as origin, tool_for(origin) as tools:
            for _ in range(2):
                await get(tools, f"http://shop.example:{origin.port}/")

        assert len(origin.requests) == 2
        assert all("cookie" not in request.lower() for request in origin.requests)

    async def test_a_redirect_is_told_and_not_followed(self) -> None:
        moved = answer(b"", status="302 Found", location="http://127.0.0.1/admin")
        async with serving({"/": moved}) as origin, tool_for(origin) as tools:
            output = await get(tools, f"http://shop.example:{origin.port}/")

        assert (output["status"], output["location"]) == (302, "http://127.0.0.1/admin")
        assert len(origin.requests) == 1

    async def test_an_error_status_is_data(self) -> None:
        async with (
            serving({"/": answer(b"gone", status="404 Not Found", content_type="text/html")}) as origin,
            tool_for(origin) as tools,
        ):
            output = await get(tools, f"http://shop.example:{origin.port}/")

        assert (output["status"], output["text"]) == (404, "gone")

    async def test_a_long_page_is_cut_and_says_so(self) -> None:
        page = answer(b"a" * (MAX_BODY_BYTES + 1), content_type="text/plain")
        async with serving({"/": page}) as origin, tool_for(origin) as tools:
            output = await get(tools, f"http://shop.example:{origin.port}/")

        assert output["truncated"] is True
        assert len(output["text"]) == MAX_BODY_BYTES

    async def test_text_that_grows_by_escaping_still_fits_the_output(self) -> None:
        page = answer(b'"\x00' * (MAX_BODY_BYTES // 2), content_type="text/plain")
        async with serving({"/": page}) as origin, tool_for(origin) as tools:
            output = await get(tools, f"http://shop.example:{origin.port}/")

        assert output["truncated"] is True
        assert "\x00" not in output["text"]

    @pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "", "application/zip"])
    async def test_what_is_not_text_is_refused(self, content_type: str) -> None:
        async with serving({"/": answer(b"\x89PNG", content_type=content_type)}) as origin, tool_for(origin) as tools:
            refusal = await refusal_of(tools, f"http://shop.example:{origin.port}/")

        assert refusal.code == "tool_failed"

    async def test_a_compressed_answer_is_refused_unopened(self) -> None:
        bomb = answer(b"\x1f\x8b", content_type="text/plain", content_encoding="gzip")
        async with serving({"/": bomb}) as origin, tool_for(origin) as tools:
            refusal = await refusal_of(tools, f"http://shop.example:{origin.port}/")

        assert refusal.code == "tool_failed"

    @pytest.mark.parametrize(
        "garbage", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", answer(b"x" * 50, content_type="text/plain")[:-20]]
    )
    async def test_a_server_that_breaks_off_or_speaks_another_language_fails(self, garbage: bytes) -> None:
        async with serving({"/": garbage}) as origin, tool_for(origin) as tools:
            refusal = await refusal_of(tools, f"http://shop.example:{origin.port}/")

        assert refusal.code == "tool_failed"

    async def test_a_port_where_nobody_listens_fails(self) -> None:
        async with serving({}) as gone:
            pass

        async with tool_for(gone) as tools:
            assert (await refusal_of(tools, f"http://shop.example:{gone.port}/")).code == "tool_failed"

    async def test_a_server_that_never_answers_is_given_up_and_left(self) -> None:
        async with serving({}) as origin, tool_for(origin) as tools:
            with pytest.raises(Unavailable) as timeout:
                await get(tools, f"http://shop.example:{origin.port}/", timeout=timedelta(milliseconds=100))
            while origin.open_connections:
                await anyio.lowlevel.checkpoint()

        assert timeout.value.code == "tool_timeout"

    async def test_another_address_is_tried_when_the_first_refuses(self) -> None:
        async with serving({"/": answer(b"x", content_type="text/plain")}) as origin:
            both = resolve_to("127.0.0.2", "127.0.0.1")
            async with guarded(both, private={("shop.example", origin.port)}) as egress:
                output = await get(BuiltinTools([http_get(egress)]), f"http://shop.example:{origin.port}/")

        assert output["text"] == "x"


@pytest.mark.anyio
class TestHttpGetOverTls:
    async def test_the_certificate_is_checked_against_the_name_while_the_socket_goes_to_the_address(
        self, tmp_path: Path
    ) -> None:
        authority = new_authority(tmp_path)
        page = answer(b"secret garden", content_type="text/plain")
        async with (
            serving({"/": page}, tls=authority.server("shop.example")) as origin,
            tool_for(origin, ca_file=authority.file) as tools,
        ):
            output = await get(tools, f"https://shop.example:{origin.port}/")

        assert output["text"] == "secret garden"

    async def test_a_certificate_for_another_name_is_refused(self, tmp_path: Path) -> None:
        authority = new_authority(tmp_path)
        async with (
            serving({"/": answer(b"x")}, tls=authority.server("other.example")) as origin,
            tool_for(origin, ca_file=authority.file) as tools,
        ):
            refusal = await refusal_of(tools, f"https://shop.example:{origin.port}/")

        assert refusal.code == "tool_tls_error"
        assert origin.requests == []

    async def test_a_certificate_of_an_unknown_authority_is_refused(self, tmp_path: Path) -> None:
        authority = new_authority(tmp_path)
        async with (
            serving({"/": answer(b"x")}, tls=authority.server("shop.example")) as origin,
            tool_for(origin) as tools,
        ):
            refusal = await refusal_of(tools, f"https://shop.example:{origin.port}/")

        assert refusal.code == "tool_tls_error"
        assert origin.requests == []


@pytest.mark.parametrize(
    ("content_type", "textual"),
    [("text/html", True), ("application/json", True), ("application/ld+json", True), ("image/svg+xml", True),
     ("application/pdf", False), ("", False)],
)  # fmt: skip
def test_text_and_json_are_textual(content_type: str, textual: bool) -> None:
    assert is_textual(content_type) is textual


@pytest.mark.parametrize("charset", [None, "utf-8", "no-such-charset", "hex", "utf-7", "idna", "\x00"])
def test_decoding_never_fails_and_never_yields_half_a_surrogate_pair(charset: str | None) -> None:
    for body in (b"abc", b"\xff\xfe\xed\xa0\x80", b"+2AA-", b""):
        decoded(body, charset).encode("utf-8")


def test_a_prefix_that_fits_is_found_for_any_text() -> None:
    for text in ("a" * 1_000, '"' * 1_000, "\u2028" * 1_000, "\U0001f600" * 1_000, "ab" + "\x01" * 998):
        cut, truncated = fitting(text, max_bytes=500)

        assert truncated
        assert text.startswith(cut)
        assert 0 < len(msgspec.json.encode(cut)) <= 500
