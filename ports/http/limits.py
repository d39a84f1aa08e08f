"""What every listener bounds, whatever it serves; `COMMON` is how the OpenAPI documents say so."""

from typing import Final

from ports.http.strict_json import MAX_DEPTH, MAX_VALUES

MAX_HEADER_BYTES: Final = 32 * 1024
"""Of a request's line and fields together."""
SENDER_WINDOW_S: Final = 30.0
SENDER_WINDOW_BYTES: Final = 30 * 1024
"""What a sender whose request isn't complete must send in each window; a slower one is cut off."""

COMMON: Final = {
    "max_header_bytes": MAX_HEADER_BYTES,
    "min_request_bytes_per_s": int(SENDER_WINDOW_BYTES / SENDER_WINDOW_S),
    "max_json_depth": MAX_DEPTH,
    "max_json_values": MAX_VALUES,
}
