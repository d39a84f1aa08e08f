"""The load: clients that create runs, ask again under the same key, follow, leave, come back, and cancel.

They behave as the contract tells clients to: a request that failed is repeated with its key, a broken stream is resumed
after the last event received.
"""

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from typing import Final

import httpx
import msgspec
from msgspec import Struct

from tests.faults.ledger import RECONNECTS, Ledger, Seen
from tests.faults.rig import AGENT
from tests.faults.tools import NAMES

REQUEST_SECONDS: Final = 7.0
"""Longer than the services' own limit: they answer, or they are gone."""
TERMINAL: Final = frozenset({"run.completed", "run.failed", "run.cancelled"})

_RETRY_S: Final = (0.1, 0.5)
_ANSWERED_WITHIN_S: Final = 60.0
_FOLLOW_SECONDS: Final = 6.0
_SILENCE_SECONDS: Final = 4.0
_ACCEPTED: Final = 202
_LEAVE_AFTER: Final = (1, 2, 5, 1_000)
"""So many events."""
_LEAVE_SOON: Final = (0, 1, 1)
"""The same for a reader who shall come back several times even in a short run."""


class Accepted(Struct, frozen=True):
    run_id: str


class Told(Struct, frozen=True):
    """The data of an event, as far as the driver cares."""

    event_id: str
    sequence: int
    type: str


class Clients:
    def __init__(self, base_url: str, token: str, ledger: Ledger, draw: random.Random) -> None:
        self.ledger = ledger
        self._draw = draw
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=REQUEST_SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_connections=200),
        )
        self._over = asyncio.Event()

    async def close(self) -> None:
        await self._http.aclose()

    def stop(self) -> None:
        """No new runs. What is on its way is seen through."""
        self._over.set()

    async def work(self) -> None:
        """One client, until `stop`."""
        while not self._over.is_set():
            key, body = self._new()
            run_id = await self.promised(key, body)
            if run_id is None:
                continue
            if self._draw.random() < 0.2:
                # Somebody who did not hear the answer the first time.
                await self.promised(key, body)
            if self._draw.random() < 0.15:
                await asyncio.sleep(self._draw.uniform(0, 1.5))
                await self.cancel(run_id)
            await self.follow(run_id, seconds=_FOLLOW_SECONDS, reconnects=self._draw.choice([0, RECONNECTS]))

    async def race(self, count: int) -> None:
        """Runs that end at once, each cancelled at about the moment it ends, until so many cancels were heard."""
        while self.ledger.raced < count:
            key = self.key()
            plan = {"marker": key, "turns": [], "seconds": 0}
            run_id = await self.promised(key, msgspec.json.encode({"input": json.dumps(plan)}))
            if run_id is not None:
                await asyncio.sleep(self._draw.uniform(0, 0.12))
                self.ledger.raced += await self.cancel(run_id)

    async def burst(self, count: int) -> None:
        """So many requests at once under one key."""
        key, body = self._new()
        await asyncio.gather(*(self.promised(key, body) for _ in range(count)))

    def key(self) -> str:
        """An idempotency key nobody has used."""
        return f"key-{uuid.UUID(int=self._draw.getrandbits(128)).hex}"

    def _new(self) -> tuple[str, bytes]:
        key = self.key()
        turns = [
            [self._draw.choice(NAMES) for _ in range(self._draw.randint(1, 3))] for _ in range(self._draw.randint(0, 3))
        ]
        plan = {"marker": key, "turns": turns, "seconds": round(self._draw.uniform(0, 0.5), 3)}
        return key, msgspec.json.encode({"input": json.dumps(plan)})

    async def promised(self, key: str, body: bytes) -> str | None:
        """The run that a 202 promised; None when a minute of asking brought none, and so no promise."""
        end = time.monotonic() + _ANSWERED_WITHIN_S
        while time.monotonic() < end:
            try:
                response = await self.create(key, body)
            except httpx.HTTPError as error:
                self.ledger.refuse(type(error).__name__)
            else:
                if response.status_code == _ACCEPTED:
                    run_id = msgspec.json.decode(response.content, type=Accepted).run_id
                    self.ledger.accept(key, run_id)
                    return run_id
                self.ledger.refuse(str(response.status_code))
            await asyncio.sleep(self._draw.uniform(*_RETRY_S))
        return None

    async def create(self, key: str, body: bytes) -> httpx.Response:
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        return await self._http.post(f"/v1/agents/{AGENT}/runs", content=body, headers=headers)

    async def cancel(self, run_id: str) -> bool:
        """Ask once. Whether it was heard."""
        try:
            response = await self._http.post(
                f"/v1/runs/{run_id}:cancel",
                content=b"{}",
                headers={"Idempotency-Key": f"cancel-{run_id}", "Content-Type": "application/json"},
            )
        except httpx.HTTPError as error:
            self.ledger.refuse(type(error).__name__)
            return False
        return response.is_success

    async def status(self, run_id: str) -> str | None:
        try:
            response = await self._http.get(f"/v1/runs/{run_id}")
        except httpx.HTTPError:
            return None
        return str(response.json()["status"]) if response.is_success else None

    async def occupy(self, count: int, *, seconds: float, thinking: bool = False) -> list[str]:
        """Runs with one call of a tool, or `thinking`, of the model, that takes so long: what a worker that stands still
        should have in its hands."""
        long = {"turns": [], "seconds": seconds}
        if not thinking:
            long = {"turns": [["note"]], "seconds": 0.1, "tool_seconds": seconds}
        keys = [self.key() for _ in range(count)]
        asked = [msgspec.json.encode({"input": json.dumps({"marker": key, **long})}) for key in keys]
        runs = [await self.promised(key, body) for key, body in zip(keys, asked, strict=True)]
        return [run_id for run_id in runs if run_id is not None]

    async def new(self) -> httpx.Response:
        """One request for a run that nobody waits for: to see what is answered."""
        return await self.create(*self._new())

    async def follow(self, run_id: str, *, seconds: float, reconnects: int = 0) -> None:
        """Read the run's events to the end or for so long, leaving at random moments and resuming, so often at least."""
        seen: list[Seen] = []
        self.ledger.streams.setdefault(run_id, []).append(seen)
        last = ""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            leave_after = self._draw.choice(_LEAVE_SOON if reconnects > 0 else _LEAVE_AFTER)
            reconnects -= 1
            try:
                async for event_id, told in self._events(run_id, last):
                    if leave_after == 0:
                        break
                    seen.append(Seen(told.sequence, told.event_id, told.type))
                    last = event_id
                    leave_after -= 1
                    if told.type in TERMINAL:
                        return
                    if leave_after <= 0 or time.monotonic() > end:
                        break
            except httpx.HTTPError as error:
                self.ledger.refuse(f"stream: {type(error).__name__}")
            if not self._over.is_set():
                self.ledger.reconnects[run_id] = self.ledger.reconnects.get(run_id, 0) + 1
            await asyncio.sleep(self._draw.uniform(0.02, 0.2))

    async def _events(self, run_id: str, last: str) -> AsyncIterator[tuple[str, Told]]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        timeout = httpx.Timeout(REQUEST_SECONDS, read=_SILENCE_SECONDS)
        async with self._http.stream("GET", f"/v1/runs/{run_id}/events", headers=headers, timeout=timeout) as response:
            if not response.is_success:
                self.ledger.refuse(f"stream: {response.status_code}")
                return
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                if not line:
                    if "data" in fields:
                        yield fields["id"], msgspec.json.decode(fields["data"], type=Told)
                    fields = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
