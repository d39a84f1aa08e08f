"""What is said to whoever sends no HTTP: the envelope of every other error, by the byte, for no app was reached."""

from collections.abc import Iterable
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ports.errors import InvalidArgument
from ports.http import envelope
from ports.http.trace import trace_from

_STATUS: Final = 400


def refusal(why: str, fields: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A whole response with a correlation id of its own, after which the connection ends. `fields` come first."""
    trace = trace_from(None, None)
    body = envelope.body_of(InvalidArgument(f"this is not HTTP/1.1 as it should be: {why}"), trace.correlation_id)
    correlation_id = trace.correlation_id.encode()
    head = [
        *fields,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-correlation-id", correlation_id),
        (b"x-request-id", correlation_id),
        (b"traceparent", trace.traceparent.encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    return b"%b%b\r\n\r\n%b" % (STATUS_LINE[_STATUS], b"\r\n".join([b"%b: %b" % field for field in head]), body)
