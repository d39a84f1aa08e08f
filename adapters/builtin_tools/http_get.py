"""GET of a public URL, for its text. The response is data of unknown origin: bounded, decoded, never followed.

Where the call may go, and how, is the egress port's business.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.message import Message
from typing import Final

import msgspec

from adapters.builtin_tools.tool import Arguments, Tool, failed, object_schema
from ports.context import AuthContext
from ports.egress import EgressPort, Fetched
from ports.errors import Unavailable
from ports.messages import Json
from ports.tool import MAX_OUTPUT_BYTES, ToolCall, ToolSpec

MAX_BODY_BYTES: Final = 128 * 1024
TIMEOUT: Final = timedelta(seconds=15)

# Room for the other members of the output.
_MAX_TEXT_BYTES: Final = MAX_OUTPUT_BYTES - 16 * 1024
_MAX_LOCATION_CHARS: Final = 2_048
_HEADERS: Final = {"User-Agent": "agentos-http-get/1", "Accept": "application/json, text/*;q=0.9"}

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


def http_get(egress: EgressPort) -> Tool:
    async def act(auth: AuthContext, arguments: Arguments, _call: ToolCall) -> Json:
        with _translated():
            answer = await egress.fetch(
                auth, arguments["url"], max_bytes=MAX_BODY_BYTES, timeout=TIMEOUT, headers=_HEADERS
            )
        return _told(answer)

    return Tool(spec=SPEC, act=act)


def _told(answer: Fetched) -> dict[str, Json]:
    content_type = answer.header("content-type").partition(";")[0].strip().lower()
    head: dict[str, Json] = {"status": answer.status, "content_type": content_type[:100]}
    if location := answer.header("location"):
        head["location"] = _clean(location)[:_MAX_LOCATION_CHARS]
    if answer.body and not is_textual(content_type):
        raise failed("the answer is not text or JSON; this tool reads text only")
    text, cut = fitting(_clean(decoded(answer.body, charset_of(answer))), max_bytes=_MAX_TEXT_BYTES)
    return {**head, "text": text, "truncated": answer.truncated or cut}


def charset_of(answer: Fetched) -> str | None:
    message = Message()
    message["content-type"] = answer.header("content-type")
    return message.get_content_charset()


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


# By the reason of `upstream_error`; whatever else went wrong is `tool_failed`.
_TLS: Final = "tls"


@contextmanager
def _translated() -> Iterator[None]:
    """The port's errors in the words of a tool. What was denied stays `egress_denied`."""
    try:
        yield
    except Unavailable as error:
        if error.code == "upstream_timeout":
            raise Unavailable(error.message, code="tool_timeout") from error
        if error.code != "upstream_error":
            # Whether it may be fetched could not be asked.
            raise
        if error.details.get("reason") == _TLS:
            raise Unavailable(error.message, code="tool_tls_error") from error
        raise failed(error.message) from error
