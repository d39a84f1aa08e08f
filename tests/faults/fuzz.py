"""R16 of the gateway: no input is answered with 5xx, and none is kept: `python -m tests.faults.fuzz --inputs 20000`.

A real gateway over PostgreSQL gets seeded inputs over sockets, each on a connection of its own: mutations of valid requests
of every surface, broken bytes, headers and framing; one in five of them while its backends answer in ways that none should.
What those make of an answer (`upstream_…`) is told apart: it is no error of an input. One record is printed.
"""

import argparse
import asyncio
import json
import random
import re
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec
import psutil

from adapters.postgres import tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from conformance.people import ACME, PLATFORM
from ports.adapter import Given
from ports.tenant import Entitlements
from tests.faults.fuzz_inputs import MODELS, SECRET, Input, drawn
from tests.faults.fuzz_upstream import Upstream, listening
from tests.faults.reconcile import Record, record
from tests.support.ports import free_ports
from tests.support.postgres import cloned
from tests.support.real_stacks import ISSUER, ROOT, Process

CLIENTS: Final = 8
PATIENCE_S: Final = 30.0
"""For one input, its answer included. Longer than the gateway itself waits for anything here but the rest of a body."""
QUIET_S: Final = 1.0
"""Without a byte, after which the client says that it has no more to say."""
WARM_SHARE: Final = 0.1
"""Of the inputs, how many come before the memory is measured for the first time."""
BAD_SHARE: Final = 0.2
SPOILED: Final = 0.4
MAX_GROWTH_MB: Final = 50.0
_MOST: Final = 64 * 1024 * 1024
_FIRST_ERROR: Final = 500
_UPSTREAM: Final = re.compile(rb'"code": ?"(upstream_error|upstream_timeout|upstream_auth_error)"')
_INTERNAL: Final = re.compile(rb'"code": ?"internal"')
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@dataclass
class Seen:
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    """Inputs that were answered with 5xx, or with an error of ours in a stream."""
    of_upstreams: int = 0
    valid_answered: int = 0
    """With 200, or with the error of a backend that was told to be bad."""
    unanswered: int = 0
    """The connection was closed without a word, as HTTP that is none deserves."""
    hung: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Answers that say they are JSON, and are not, or errors without a code."""
    surprising: list[str] = field(default_factory=list)
    """Valid requests that were refused."""
    leaks: int = 0


@dataclass
class Rig:
    gateway: Process
    port: int
    token: str
    upstream: Upstream

    def memory_mb(self) -> float:
        return sum(one.memory_info().rss for one in self._processes()) / 1e6

    def _processes(self) -> list[psutil.Process]:
        mine = psutil.Process(self.gateway.pid)
        return [mine, *mine.children(recursive=True)]


@asynccontextmanager
async def opened(draw: random.Random) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-fuzz-")))
        database = await stack.enter_async_context(cloned())
        upstream = Upstream(draw)
        url = await stack.enter_async_context(listening(upstream))
        given, config = Given(clock=SystemClock()), PostgresConfig(dsn=database.control)
        key, public, dsn = home / "issuer.pem", home / "jwks.json", home / "dsn"
        public.write_text(json.dumps(issuer.jwks(issuer.generate_key(key))))
        dsn.write_text(database.app)
        (home / "backend.key").write_text(SECRET)
        backends = [
            {
                "name": f"up-{number}", "base_url": url, "api_key": f"file:{home / 'backend.key'}", "timeout_s": 15,
                "models": [{"id": f"m-{number}"}, {"id": f"embed-{number}", "chat": False, "embed": True}],
            }
            for number in range(MODELS)
        ]  # fmt: skip
        [port] = free_ports(1)
        gateway = Process(
            "deploy.roots.stack_b",
            {
                "AGENTOS_MODE": "prod",
                "AGENTOS_DATABASE_URL_FILE": str(dsn),
                "AGENTOS_ISSUER": ISSUER,
                "AGENTOS_JWKS_FILE": str(public),
                "AGENTOS_BACKENDS": json.dumps(backends),
                "AGENTOS_STACK_B_PORT": str(port),
                "PYTHONPATH": str(ROOT),
            },
            home / "gateway.log",
            port=port,
        )
        stack.push_async_callback(gateway.end)
        await gateway.start()
        tenants = await stack.enter_async_context(tenant.SPEC.open(config, given))
        minting = await stack.enter_async_context(
            issuer.SPEC.open(issuer.IssuerConfig(private_key_file=str(key), issuer=ISSUER), given)
        )
        entitled = Entitlements(models=("*",), tokens_per_day=10**12, pii={"email": "reversible"})
        await tenants.create(PLATFORM, ACME.tenant, name="acme", entitlements=entitled)
        token = minting.mint(ACME, audience="stack-b", scopes=frozenset({"models:invoke"}), lifetime=timedelta(hours=1))
        yield Rig(gateway, port, token, upstream)


async def drive(inputs: int, seed: int) -> Record:
    draw, upstreams = random.Random(seed), random.Random(seed + 1)  # noqa: S311 - choices that can be repeated
    seen = Seen()
    async with opened(upstreams) as rig:
        warm = int(inputs * WARM_SHARE)
        bad = int(inputs * BAD_SHARE)
        await _sent(rig, seen, draw, warm)
        before = rig.memory_mb()
        await _sent(rig, seen, draw, inputs - warm - bad)
        rig.upstream.spoiled = SPOILED
        await _sent(rig, seen, draw, bad, bad_upstream=True)
        rig.upstream.spoiled = 0.0
        after = rig.memory_mb()
        alive = await _status(rig, b"GET /healthz HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n")
    return record(
        "R16",
        {
            "5xx": len(seen.errors),
            "growth_mb": round(after - before, 1),
            "hung": len(seen.hung),
            "unreadable": len(seen.unreadable),
            "leaks": seen.leaks,
            "dead": int(alive != 200),
            # The gateway's own requests, as its backend reads them.
            "misread_upstream": len(rig.upstream.misread),
            # What a run must have met to prove anything.
            "few_valid_answered": int(seen.valid_answered < 0.9 * seen.kinds["valid"]),
            "none_of_upstreams": int(not seen.of_upstreams),
        },
        limits={"growth_mb": MAX_GROWTH_MB},
        seed=seed,
        inputs=inputs,
        memory_mb=round(after, 1),
        asked_upstream=rig.upstream.asked,
        of_upstreams=seen.of_upstreams,
        unanswered=seen.unanswered,
        statuses=", ".join(f"{status}={count}" for status, count in sorted(seen.statuses.items())),
        kinds=", ".join(f"{kind}={count}" for kind, count in sorted(seen.kinds.items())),
        examples=[
            *seen.errors[:5],
            *seen.hung[:3],
            *seen.unreadable[:3],
            *rig.upstream.misread[:3],
            *seen.surprising[:3],
        ],
    )


async def _sent(rig: Rig, seen: Seen, draw: random.Random, inputs: int, *, bad_upstream: bool = False) -> None:
    waiting: asyncio.Queue[Input | None] = asyncio.Queue(maxsize=CLIENTS)

    async def client() -> None:
        while (one := await waiting.get()) is not None:
            await _one(rig, seen, one, bad_upstream=bad_upstream)

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
        for _ in range(inputs):
            # What a bad backend says has to be heard by somebody.
            await waiting.put(drawn(draw, rig.token, valid_share=0.7 if bad_upstream else 0.25))
        for _ in range(CLIENTS):
            await waiting.put(None)


async def _one(rig: Rig, seen: Seen, one: Input, *, bad_upstream: bool) -> None:
    seen.kinds[one.kind] += 1
    example = f"{one.kind}: {one.raw.replace(rig.token.encode(), b'TOKEN')[:600]!r}"
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await _exchange(rig.port, one.raw)
    except TimeoutError:
        seen.hung.append(example)
        return
    status = _STATUS.match(answer)
    seen.statuses[status[1].decode() if status else "none"] += 1
    seen.leaks += SECRET.encode() in answer
    if status is None:
        seen.unanswered += 1
        return
    failed = int(status[1]) >= _FIRST_ERROR
    if one.kind == "valid" and (status[1] == b"200" or (bad_upstream and _UPSTREAM.search(answer))):
        seen.valid_answered += 1
    elif one.kind == "valid":
        seen.surprising.append(f"{answer[-300:]!r} <- {example}")
    if bad_upstream and _UPSTREAM.search(answer):
        seen.of_upstreams += 1
    elif failed or _INTERNAL.search(answer) or _UPSTREAM.search(answer):
        seen.errors.append(f"{answer[:300]!r} <- {example}")
    elif not _readable(answer):
        seen.unreadable.append(f"{answer[:300]!r} <- {example}")


def _readable(answer: bytes) -> bool:
    """Whether a whole JSON answer is one, and an error has its code."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lowered = head.lower()
    if b"content-type: application/json" not in lowered or b"transfer-encoding" in lowered or not body:
        return True
    length = re.search(rb"content-length: (\d+)", lowered)
    try:
        found = json.loads(body[: int(length[1])] if length else body)
    except ValueError:
        return False
    return int(answer.split(b" ", 2)[1]) < 400 or bool(found["error"]["code"] and found["error"]["correlation_id"])


async def _exchange(port: int, raw: bytes) -> bytes:
    """All that is answered until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        try:
            writer.write(raw)
            await writer.drain()
        except ConnectionError:
            # Answered, or given up, before it was read.
            pass
        answer = bytearray()
        while len(answer) < _MOST and (piece := await _piece(reader, writer)):
            answer += piece
        return bytes(answer)
    finally:
        writer.close()


async def _piece(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """More of an answer; nothing at its end."""
    try:
        try:
            async with asyncio.timeout(QUIET_S):
                return await reader.read(1 << 16)
        except TimeoutError:
            # It waits for the rest of a body, or for another request: neither will come.
            writer.write_eof()
            return await reader.read(1 << 16)
    except (OSError, RuntimeError):
        return b""


async def _status(rig: Rig, raw: bytes) -> int:
    async with asyncio.timeout(PATIENCE_S):
        answer = await _exchange(rig.port, raw)
    status = _STATUS.match(answer)
    return int(status[1]) if status else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the same choices; drawn when not given")
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    found = asyncio.run(drive(given.inputs, seed))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
