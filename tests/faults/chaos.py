"""What goes wrong, when: drawn from the seed."""

import asyncio
import random
import time
from contextlib import AbstractContextManager
from typing import Final

from msgspec import Struct

from tests.faults.proxy import Mode
from tests.faults.rig import DATABASE, Rig

_NETWORK: Final[tuple[Mode, ...]] = ("cut", "delay", "half_open", "drip")
_KINDS: Final = ("kill", "kill", "kill", "stop", "network", "network")


class Fault(Struct, frozen=True, kw_only=True):
    at_s: float
    kind: str
    part: str
    seconds: float = 0.0


class Chaos:
    def __init__(self, rig: Rig, draw: random.Random) -> None:
        self._rig = rig
        self._draw = draw
        self._began = time.monotonic()
        self.done: list[Fault] = []

    async def reign(self, until: float, *, gap: tuple[float, float]) -> None:
        """One fault after the other until `until` on the monotonic clock."""
        parts = [*self._rig.parts, DATABASE]
        while True:
            pause, left = self._draw.uniform(*gap), until - time.monotonic()
            # The last pause ends with the reign: what comes after it has its time.
            await asyncio.sleep(max(0.0, min(pause, left)))
            if pause >= left:
                return
            part = self._draw.choice(parts)
            # Of the database's own lines there is none to cut.
            kind = self._draw.choice([one for one in _KINDS if one != "network" or part != DATABASE])
            seconds = min(self._draw.uniform(0.5, 4.0), max(0.1, until - time.monotonic()))
            if kind == "kill":
                self.kill(part)
            elif kind == "stop":
                await self.stop(part, seconds)
            else:
                await self.break_line(part, self._draw.choice(_NETWORK), seconds)

    def kill(self, part: str) -> None:
        self._note("kill", part)
        if part == DATABASE:
            self._rig.disturb(0)
            self._rig.kill_database()
        else:
            self._rig.kill(part)

    async def stop(self, part: str, seconds: float) -> None:
        self._note("stop", part, seconds)
        await self._for(seconds, self._rig.standing_still(part))

    async def break_line(self, part: str, mode: Mode, seconds: float) -> None:
        self._note(mode, part, seconds)
        await self._for(seconds, self._rig.broken_line(part, mode))

    async def _for(self, seconds: float, fault: AbstractContextManager[None]) -> None:
        self._rig.disturb(seconds)
        with fault:
            await asyncio.sleep(seconds)

    def _note(self, kind: str, part: str, seconds: float = 0.0) -> None:
        at = time.monotonic() - self._began
        self.done.append(Fault(at_s=round(at, 1), kind=kind, part=part, seconds=round(seconds, 1)))
