"""A client of Stack A's public API, as an integrator would write it: create runs, follow and read them, change
their course."""

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
from msgspec import Struct

from deploy.plain_http import NOBODY_TRUSTED
from ports.errors import AgentOSError, Unavailable, from_code
from ports.run_state import MAX_PAGE

TERMINAL: Final = frozenset({"run.completed", "run.failed", "run.cancelled"})

_ANSWER_SECONDS: Final = 10.0
# Two of the server's keep-alives, with some slack: then the connection is dead.
_SILENCE_SECONDS: Final = 35.0
_RECONNECTS: Final = 8
_PAUSE_SECONDS: Final = 0.5
_FIRST_ERROR: Final = 400


class SseEvent(Struct, frozen=True, kw_only=True):
    id: str
    type: str
    data: dict[str, Any]
    """The whole event as the server sent it; what is particular to the type is under `data` in it."""

    @property
    def body(self) -> dict[str, Any]:
        body = self.data.get("data")
        return body if isinstance(body, dict) else {}


class Accepted(Struct, frozen=True, kw_only=True):
    run_id: str
    status: str
    events_url: str
    correlation_id: str = ""


class RunsClient:
    """One tenant's view of the API. Use as a context manager."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(_ANSWER_SECONDS)
        # Our own node: a proxy of the environment has no business here.
        self._http = httpx.Client(
            base_url=base_url,
            headers=headers,
            timeout=timeout,
            trust_env=False,
            verify=NOBODY_TRUSTED,
            transport=transport,
        )
        self._pause = pause

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **parameters: str) -> httpx.Response:
        """The plain answer, whatever its status."""
        return self._send("GET", path, params=parameters)

    def post(self, path: str, body: object, *, idempotency_key: str = "") -> httpx.Response:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._send("POST", path, json=body, headers=headers)

    def create_run(
        self, agent: str, run_input: object, *, idempotency_key: str = "", priority: int | None = None
    ) -> Accepted:
        key = idempotency_key or f"cli-{uuid.uuid4().hex}"
        body = {"input": run_input} | ({} if priority is None else {"priority": priority})
        response = self.post(f"/v1/agents/{agent}/runs", body, idempotency_key=key)
        return msgspec.convert(_good(response), Accepted)

    def run(self, run_id: str) -> dict[str, Any]:
        return _good(self.get(f"/v1/runs/{run_id}"))

    def cancel(self, run_id: str, *, reason: str = "") -> dict[str, Any]:
        return self._verb(run_id, "cancel", {"reason": reason} if reason else {})

    def list_runs(self, *, limit: int, status: str = "", agent: str = "", parent: str = "") -> list[dict[str, Any]]:
        """The newest runs, at most `limit`."""
        where = {"status": status, "agent_id": agent, "parent_run_id": parent}
        chosen = {name: value for name, value in where.items() if value}
        items: list[dict[str, Any]] = _good(self.get("/v1/runs", limit=str(limit), **chosen))["items"]
        return items

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The whole journal, in order."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = _good(self.get(f"/v1/runs/{run_id}/steps", limit=str(MAX_PAGE), **cursor))
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            cursor = {"cursor": page["next_cursor"]}

    def retry(self, run_id: str) -> Accepted:
        return msgspec.convert(self._verb(run_id, "retry", {}), Accepted)

    def fork(self, run_id: str, *, from_step: int) -> Accepted:
        return msgspec.convert(self._verb(run_id, "fork", {"from_step": from_step}), Accepted)

    def resolve(self, run_id: str, decision: Mapping[str, object]) -> dict[str, Any]:
        """`decision` is the body of the request: `step`, `decision`, and what belongs to it."""
        return self._verb(run_id, "resolve", decision)

    def _verb(self, run_id: str, verb: str, body: object) -> dict[str, Any]:
        return _good(self.post(f"/v1/runs/{run_id}:{verb}", body, idempotency_key=f"cli-{verb}-{uuid.uuid4().hex}"))

    def follow(self, events_url: str, *, after: str = "", seconds: float = math.inf) -> Iterator[SseEvent]:
        """Every event after the one with id `after`, live, until the terminal one. Reconnects by itself.

        Raises:
            AgentOSError: the server refused, or stayed away for longer than a few attempts.
            TimeoutError: after `seconds` in all, which keep-alives are no reason to wait beyond. Seen when the server
                says something, or has been silent for too long.
        """
        attempts, by = 0, time.monotonic() + seconds
        while True:
            try:
                for event in self.stream(events_url, after=after, by=by):
                    after, attempts = event.id, 0
                    yield event
                    if event.type in TERMINAL:
                        return
                    # An ended stream without a terminal event: the server is going away; come back.
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            else:
                reason = "the stream ended before the run did"
            _check_time(by)
            attempts += 1
            if attempts > _RECONNECTS:
                raise Unavailable(f"the event stream {events_url} is gone: {reason}; see ./agentos status")
            self._pause(_PAUSE_SECONDS * attempts)

    def stream(self, events_url: str, *, after: str = "", by: float = math.inf) -> Iterator[SseEvent]:
        """One connection to the event stream, until the server ends it, or it is later than `by` (monotonic)."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(_ANSWER_SECONDS, read=_SILENCE_SECONDS)
        with self._http.stream("GET", events_url, headers=headers, timeout=timeout) as response:
            if response.status_code >= _FIRST_ERROR:
                response.read()
                _good(response)
            yield from parse_events(_in_time(response.iter_lines(), by))

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise Unavailable(
                f"{self._http.base_url} does not answer ({str(error) or type(error).__name__}); see ./agentos status"
            ) from error


def _in_time(lines: Iterable[str], by: float) -> Iterator[str]:
    for line in lines:
        _check_time(by)
        yield line


def _check_time(by: float) -> None:
    if time.monotonic() > by:
        raise TimeoutError


def parse_events(lines: Iterable[str]) -> Iterator[SseEvent]:
    """Events out of the lines of a stream; comments and fields we do not know are skipped."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                data = msgspec.json.decode(fields["data"], type=dict[str, Any])
                yield SseEvent(id=fields.get("id", ""), type=fields.get("event", "message"), data=data)
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


def _good(response: httpx.Response) -> dict[str, Any]:
    """The body of a successful answer.

    Raises:
        AgentOSError: the one the server describes, with its own words.
    """
    try:
        body = msgspec.json.decode(response.content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = {}
    if response.status_code < _FIRST_ERROR:
        return body
    raise error_of(response.status_code, body)


def error_of(status: int, body: dict[str, Any]) -> AgentOSError:
    error = body.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return Unavailable(f"the server answered {status} without saying why; see ./agentos logs stack-a")
    return from_code(error["code"], str(error.get("message", "")))
