"""Is a service ready? Asked from outside, the way its users would."""

import time
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from msgspec import Struct

from deploy import embedded_postgres, plain_http
from deploy.catalogue import PostgresReady, Service

PROBE_SECONDS: Final = 3.0
_TAIL_BYTES: Final = 64 * 1024
_OK: Final = 200


class Health(Struct, frozen=True, kw_only=True):
    service: str
    ok: bool
    detail: str
    ms: float


def probe(service: Service) -> Health:
    """One question with a bounded wait."""
    began = time.perf_counter()
    if isinstance(service.health, PostgresReady):
        ok = embedded_postgres.is_ready(service.health.port)
        detail = "accepts connections" if ok else f"no answer on 127.0.0.1:{service.health.port}"
    else:
        ok, detail = _ask(service.health.url)
    return Health(service=service.name, ok=ok, detail=detail, ms=_ms(began))


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; none when there is no log."""
    try:
        return tail_and_size(path, lines)[0]
    except OSError:
        return []


def tail_and_size(path: Path, lines: int) -> tuple[list[str], int]:
    """The last lines, and the offset in the file up to which they reach."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        found = file.read(size - file.tell()).decode(errors="replace").splitlines()
    return found[-lines:] if lines else [], size


def _ask(url: str) -> tuple[bool, str]:
    try:
        response = plain_http.get(url, timeout=PROBE_SECONDS)
    except httpx.ConnectError:
        return False, f"nothing listens at {url}"
    except httpx.TimeoutException:
        return False, f"{url} did not answer within {PROBE_SECONDS:.0f} s"
    except httpx.HTTPError as error:
        return False, f"{url}: {error}"
    if response.status_code == _OK:
        return True, "ready"
    return False, f"{url} answered {response.status_code}{_said(response)}"


def _said(response: httpx.Response) -> str:
    """What a service that is not ready names as its reason: the dependencies that fail, or its error."""
    try:
        body = msgspec.json.decode(response.content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    dependencies = body.get("dependencies")
    if isinstance(dependencies, dict):
        return "".join(f"; {name}: {state}" for name, state in dependencies.items() if state != "ok")
    error = body.get("error")
    return f": {error['message']}" if isinstance(error, dict) and "message" in error else ""


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1_000, 1)
