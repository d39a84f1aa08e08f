"""Structured logs: one JSON object per line on stderr, with the fields of `names.LOG_FIELDS` and no others.

A record is an event with fields: `logger.info("run.finished", extra={**who(auth), "steps": n})`. Text is what leaks, so
there is none: a message that has not the form of an event, a field that is not on the list and a value that is not a
scalar are dropped, and `dropped` says how many. Of an exception its type and the places it passed are written; its
text only for our own errors, which never quote what they were given. Of a library's record its pattern, unfilled.
"""

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from observability.names import LOG_FIELDS
from ports.context import AuthContext
from ports.errors import AgentOSError

OURS: Final = "agentos"

_MAX_VALUE_CHARS: Final = 256
_MAX_FRAMES: Final = 30
_EVENT: Final = re.compile(r"[a-z][a-z0-9_]{0,31}\.[a-z][a-z0-9_]{0,31}")

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}

# What must not be seen even where a field may be: keys, signed tokens, and whatever follows "Bearer".
_SECRET: Final = re.compile(
    r"aos_[a-z0-9]{1,16}_[0-9a-f]{32}_[0-9a-f]{8,}|eyJ[\w-]{8,}\.[\w-]+|\bsk-[\w-]{16,}|bearer\s+\S+|://[^\s/@]{1,256}@",
    re.IGNORECASE,
)


def configure(service: str, level: str = "INFO") -> None:
    """Send this process's logs to stderr as JSON. Replaces what was configured before.

    Libraries are heard from WARNING on; their access logs quote what clients send. Run uvicorn with `log_config=None`.
    """
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    for earlier in tuple(root.handlers):
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(level)


def logger(area: str) -> logging.Logger:
    """The logger of one area of ours, such as `worker`."""
    return logging.getLogger(f"{OURS}.{area}")


def who(auth: AuthContext) -> dict[str, str]:
    """The fields that say on whose behalf, and within which request."""
    return {
        "tenant_id": auth.tenant,
        "namespace": auth.namespace,
        "principal": auth.principal,
        "correlation_id": auth.trace.correlation_id,
        "traceparent": auth.trace.traceparent,
    }


class JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name == OURS or record.name.startswith(OURS + ".")
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": event_of(record.msg) if ours else "library.log",
        }
        fields, dropped = allowed(record.__dict__)
        # A library's extras are as unknown as its text.
        line |= {name: value for name, value in fields.items() if name not in line} if ours else {}
        if ours and dropped:
            line["dropped"] = dropped
        if not ours and record.args and isinstance(record.msg, str):
            line["pattern"] = clean(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line |= described(error)
        return msgspec.json.encode(line).decode()


def event_of(message: object) -> str:
    """The message, if it has the form of an event. By form and not by list: a name forgotten there is still a name."""
    return message if isinstance(message, str) and _EVENT.fullmatch(message) else "log.unnamed"


def allowed(members: Mapping[str, object]) -> tuple[Mapping[str, object], int]:
    """The members of a record that may be written, and how many extra ones were not."""
    extras = {name: value for name, value in members.items() if name not in _STANDARD}
    fields = {
        name: clean(value) if isinstance(value, str) else value
        for name, value in extras.items()
        if name in LOG_FIELDS and isinstance(value, str | int | float | None)
    }
    return fields, len(extras) - len(fields)


def clean(text: str) -> str:
    """`text` short enough for a log, on one line, and with anything that looks like a secret taken out."""
    return "".join(
        char if char.isprintable() else "\ufffd" for char in _SECRET.sub("[secret]", text[:_MAX_VALUE_CHARS])
    )


def described(error: BaseException) -> dict[str, object]:
    """An exception without what it quotes: types, places, and the words of our own errors."""
    causes: list[str] = []
    cause = error.__cause__
    while cause is not None and len(causes) < _MAX_FRAMES:
        causes.append(type(cause).__name__)
        cause = cause.__cause__
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    fields: dict[str, object] = {
        "error_type": type(error).__name__,
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if causes:
        fields["causes"] = causes
    if isinstance(error, AgentOSError):
        fields |= {"code": error.code, "error": clean(error.message)}
    return fields


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # generic for the checker only
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the library's name
        """Say that a record was lost; the library would print its arguments."""
        self.stream.write(f'{{"level":"error","event":"telemetry.failed","logger":"{record.name[:64]}"}}\n')
