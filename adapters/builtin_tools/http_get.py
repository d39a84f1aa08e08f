"""GET of a public URL, for its text. The response is data of unknown origin: bounded, decoded, never followed.

Goes through the transport instead of a client, because a client keeps cookies from one tenant's call to the next, and
may follow redirects or find a proxy in the environment.
"""

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Final

import httpx
import msgspec

from adapters.builtin_tools.egress import Destination, Guard, denied
from adapters.builtin_tools.tool import Arguments, Tool, failed, object_schema
from ports.context import AuthContext
from ports.errors import Unavailable
from ports.messages import Json
from ports.tool import MAX_OUTPUT_BYTES, ToolCall, ToolSpec

MAX_BODY_BYTES: Final = 128 * 1024
TIMEOUT: Final = timedelta(seconds=15)

# Room for the other members of the output.
_MAX_TEXT_BYTES: Final = MAX_OUTPUT_BYTES - 16 * 1024
_MAX_LOCATION_CHARS: Final = 2_048
_MAX_TRIED: Final = 4
_CONNECT_SECONDS: Final = 5.0

_TEXTUAL: Final = frozenset({"application/json", "application/xml", "application/xhtml+xml", "application/javascript"})

# PostgreSQL's jsonb has no NUL, and no reader of a page needs the other control characters.
_CONTROL: Final = {code: "\ufffd" for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n\r"}

SPEC: Final = ToolSpec(
    name="http_get",
    description=(
        "Fetches a public web page or API by HTTP GET and returns its status and text. Only http and https URLs of the "
        "public internet, only text and JSON; redirects are not followed, their target is returned as `location`. "
        "Long texts are cut, which `truncated` tells."
    ),
    input_schema=object_schema(
        {"url": {"type": "string", "minLength": 1, "maxLength": 4_096, "description": "absolute http(s) URL"}},
        required=("url",),
    ),
    effect="idempotent",
    timeout=TIMEOUT,
)


@asynccontextmanager
async def open_http_get(guard: Guard, *, ca_file: str | None = None) -> AsyncIterator[Tool]:
    """The tool, for as long as the block runs. `ca_file` replaces the public certificate authorities."""
    context = ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context(trust_env=False)
    # No connection is kept: the pool knows addresses, not names, and would lend one host's TLS session to another.
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=0)
    async with httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits) as transport:

        async def act(_auth: AuthContext, arguments: Arguments, _call: ToolCall) -> Json:
            destination = await guard.admit(arguments["url"])
            with _translated():
                return await _get(transport, destination)

        yield Tool(spec=SPEC, act=act)


async def _get(transport: httpx.AsyncBaseTransport, destination: Destination) -> dict[str, Json]:
    response = await _first_answer(transport, destination)
    try:
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        head: dict[str, Json] = {"status": response.status_code, "content_type": content_type[:100]}
        if "location" in response.headers:
            head["location"] = _clean(response.headers["location"])[:_MAX_LOCATION_CHARS]
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise failed("the server answered compressed although asked not to")
        body, truncated = await _body(response)
        if body and not is_textual(content_type):
            raise failed("the answer is not text or JSON; this tool reads text only")
        text, cut = fitting(_clean(decoded(body, response.charset_encoding)), max_bytes=_MAX_TEXT_BYTES)
        return {**head, "text": text, "truncated": truncated or cut}
    finally:
        await response.aclose()


async def _first_answer(transport: httpx.AsyncBaseTransport, destination: Destination) -> httpx.Response:
    """The response of the first address that takes the connection; the others are as good, all were checked."""
    url = destination.url
    tried = destination.addresses[:_MAX_TRIED]
    for address in tried:
        request = httpx.Request(
            "GET",
            httpx.URL(scheme=url.scheme, host=address, port=url.port, raw_path=url.target.encode("ascii")),
            headers=_headers(url.authority),
            extensions={
                # The name for TLS, its verification included; the socket goes to the address.
                "sni_hostname": url.host,
                "timeout": {"connect": _CONNECT_SECONDS, "read": None, "write": None, "pool": None},
            },
        )
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if address == tried[-1] or _concerns_tls(error):
                raise
    raise denied("the host has no address")


def _headers(authority: str) -> Mapping[str, str]:
    return {
        "Host": authority,
        "User-Agent": "agentos-http-get/1",
        "Accept": "application/json, text/*;q=0.9",
        # A few compressed bytes can become gigabytes; plain ones can be counted as they come.
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


async def _body(response: httpx.Response) -> tuple[bytes, bool]:
    """At most `MAX_BODY_BYTES` of the body, and whether there was more."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return bytes(body[:MAX_BODY_BYTES]), True
    return bytes(body), False


def is_textual(content_type: str) -> bool:
    return content_type.startswith("text/") or content_type in _TEXTUAL or content_type.endswith(("+json", "+xml"))


def decoded(body: bytes, charset: str | None) -> str:
    """`body` as text; what the charset can't explain becomes U+FFFD. An unknown charset is read as UTF-8."""
    try:
        text = body.decode(charset or "utf-8", errors="replace")
    except (LookupError, ValueError):  # not a codec, or not one from bytes to text
        text = body.decode("utf-8", errors="replace")
    # Some codecs yield lone surrogates, which are not text.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def fitting(text: str, *, max_bytes: int) -> tuple[str, bool]:
    """The longest simple prefix whose JSON takes at most `max_bytes`, and whether that is less than all."""
    whole = text
    while (size := len(msgspec.json.encode(text))) > max_bytes:
        text = text[: min(len(text) - 1, len(text) * max_bytes // size)]
    return text, text is not whole


def _clean(text: str) -> str:
    return text.translate(_CONTROL)


def _concerns_tls(error: BaseException | None) -> bool:
    """Whether an error of the TLS layer is what `error` goes back to."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _translated() -> Iterator[None]:
    """httpx's errors as ours, at the one door."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise Unavailable("the server did not answer in time", code="tool_timeout") from error
    except (httpx.TransportError, httpx.InvalidURL, httpx.StreamError) as error:
        if _concerns_tls(error):
            raise Unavailable("the server's certificate could not be verified", code="tool_tls_error") from error
        raise failed("the server could not be reached, or broke the connection") from error
