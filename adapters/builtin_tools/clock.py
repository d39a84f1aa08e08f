"""The time, by the node's clock, in a zone of the caller's choice."""

from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from adapters.builtin_tools.tool import Arguments, Tool, bad_arguments, object_schema
from ports.clock import Clock
from ports.context import AuthContext
from ports.messages import Json
from ports.tool import ToolCall, ToolSpec

SPEC: Final = ToolSpec(
    name="clock",
    description=(
        "Tells the current date, time and weekday, in UTC or in the given IANA time zone such as 'Europe/Berlin' or "
        "'America/New_York'."
    ),
    input_schema=object_schema(
        {"timezone": {"type": "string", "minLength": 1, "maxLength": 64, "description": "IANA name; default UTC"}}
    ),
    effect="pure",
)


def clock_tool(clock: Clock) -> Tool:
    async def act(_auth: AuthContext, arguments: Arguments, _call: ToolCall) -> Json:
        return tell(clock.now(), arguments.get("timezone", "UTC"))

    return Tool(spec=SPEC, act=act)


def tell(now: datetime, zone: str) -> dict[str, Json]:
    """`now` as the wall clock of `zone` shows it. Raises `InvalidArgument` for an unknown zone."""
    try:
        local = now.astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # what ZoneInfo raises for odd keys and directories
        raise bad_arguments("timezone is not a known IANA name; for example 'Europe/Berlin'") from error
    return {
        "timezone": zone,
        "local": local.isoformat(timespec="seconds"),
        "utc": now.isoformat(timespec="seconds"),
        "weekday": _WEEKDAYS[local.weekday()],
        "unix_seconds": int(now.timestamp()),
    }


# Not `strftime`: its names follow the locale of the process.
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
