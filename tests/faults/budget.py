"""R8: budgets under faults: `python -m tests.faults.budget --kills 50 --clients 400 --seed S`.

Real gateways over a real database, killed in the middle of their streams, with clients that hang up. Four tenants, each
with a question of its own: *roomy* must never be refused, *tight*, which gets a little more with each kill and is always at
its limit, must never spend more than it has, *edge* must get its last token when all is calm again. Of *snug* all clients
ask at once, with room for each one's prompt and first slice, and one of the gateways is killed. What is right is
decided by the ledger's balance, read through its port all the time, and by what the provider says it produced for whom.
"""

import argparse
import asyncio
import json
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Final

import httpx
import msgspec
from msgspec import Struct

from tests.faults.budget_rig import GATEWAYS, LIMITS, MAX_TOKENS, SAMPLE_S, SLICE, TENANTS, Rig, opened, request
from tests.faults.reconcile import Record, record, told
from tests.support.postgres import shift_time

RELEASED_WITHIN_S: Final = 60.0
"""Beyond the lease."""
_HANGS_UP: Final = 0.2
"""The share of clients that leave in the middle."""
_SETTLING_S: Final = 2.0
"""What ended so shortly before its gateway was killed may not have been settled."""
_MID_STREAM: Final = 3
"""Streams of a gateway that have begun, when it is killed."""
_QUIET_S: Final = 15.0
"""For what a client that hung up has left to be settled: more than the gateway's own bound."""
_STEPS: Final = 0.3
"""The share of calls that are a run's step: those go on when their client hangs up."""
_ROOMS_IN_TIGHT: Final = 20
"""At first, and as many again with each kill."""
_ROOMS_IN_EDGE: Final = 6
_IDLE_SHARE: Final = 8
"""Beyond what *snug*'s requests need, one part in so many: two gateways may hold a 32nd each for requests to come."""


class Seen(Struct, kw_only=True):
    """What the clients of one tenant met."""

    answered: int = 0
    hung_up: int = 0
    refused: int = 0
    limited: int = 0
    """Answers that the budget ended."""
    cut: int = 0
    """Requests whose gateway was killed under them."""
    cut_settling: int = 0
    """The same of those that had just ended."""
    held_at_kills: int = 0
    """What was held whenever a gateway was killed, which is at least what that left behind."""
    others: Counter[str]
    """Refusals that have nothing to do with budgets, and streams that broke: a machine that is loaded has some."""


class Clients:
    def __init__(self, rig: Rig, draw: random.Random, http: httpx.AsyncClient) -> None:
        self._rig = rig
        self._draw = draw
        self._http = http
        self.over = asyncio.Event()
        self.seen = {of: Seen(others=Counter()) for of in TENANTS}

    async def work(self, of: str) -> None:
        """One client, until told that it is over."""
        while not self.over.is_set():
            if not await self.ask(of, hangs_up=self._draw.random() < _HANGS_UP):
                with suppress(TimeoutError):
                    # A refusal or a gateway that is gone: not at once again.
                    await asyncio.wait_for(self.over.wait(), self._draw.uniform(0.05, 0.3))

    async def ask(self, of: str, *, hangs_up: bool = False) -> bool:
        """Whether it was answered, as far as it was wanted."""
        place, seen = self._draw.randrange(GATEWAYS), self.seen[of]
        gateway, began = self._rig.gateways[place], False
        headers = {"Authorization": f"Bearer {self._rig.tokens[of]}"}
        if self._draw.random() < _STEPS:
            headers["X-Step-Key"] = f"run_{self._draw.randbytes(16).hex()}:1"
        try:
            async with self._http.stream(
                "POST", f"{gateway.url}/v1/chat/completions", json=request(of), headers=headers
            ) as response:
                if response.status_code != httpx.codes.OK:
                    return await self._refused(of, response)
                began = True
                self._rig.begun[place] += 1
                async for line in response.aiter_lines():
                    if hangs_up and self._draw.random() < 0.3:
                        seen.hung_up += 1
                        return True
                    seen.limited += '"limited_by"' in line
                    if line == "data: [DONE]":
                        seen.answered += 1
                        return True
        except httpx.ConnectError:
            return False
        except httpx.TransportError:
            # Sent, and perhaps begun: nobody will settle it.
            seen.cut += 1
            return False
        finally:
            self._rig.begun[place] -= began
            self._rig.ended[place].append((time.monotonic(), of))
        seen.others["a stream without its end"] += 1
        return False

    async def _refused(self, of: str, response: httpx.Response) -> bool:
        code = json.loads(await response.aread())["error"]["code"]
        if code in {"budget_exceeded", "budget_in_flight", "request_exceeds_budget"}:
            self.seen[of].refused += 1
        else:
            self.seen[of].others[f"{response.status_code} {code}"] += 1
        return False


async def drive(kills: int, clients: int, seed: int, say: Callable[[str], None], *, patient: bool) -> Record:
    """`patient` waits for leases to end; else the database's clock is moved on."""
    draw = random.Random(seed)  # noqa: S311 - a seed to repeat, not a secret
    every_time_anew = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        opened(draw) as rig,
        httpx.AsyncClient(timeout=LIMITS.request_s + 5, trust_env=False, limits=every_time_anew) as http,
    ):
        each = await _amount(rig, http)
        await rig.entitle("tight", _ROOMS_IN_TIGHT * each)
        await rig.entitle("edge", _ROOMS_IN_EDGE * each + each // 2)
        asking = Clients(rig, draw, http)
        say(f"{clients} clients, {each} tokens reserved by each request; {kills} kills")
        async with AsyncExitStack() as stack:
            watching = asyncio.create_task(rig.watch())
            stack.push_async_callback(_end, [watching])
            load = [asyncio.create_task(asking.work(("roomy", "tight")[number % 2])) for number in range(clients)]
            stack.push_async_callback(_end, load)
            began = time.monotonic()
            for _ in range(kills):
                for of in await _kill(rig, draw, asking):
                    asking.seen[of].cut_settling += 1
                await rig.entitle("tight", rig.limits["tight"] + _ROOMS_IN_TIGHT * each)
            asking.over.set()
            await asyncio.gather(*load)
            took = time.monotonic() - began
            say("the load is over; one wave with room for each one's prompt and slice")
            await _wave(rig, draw, asking, clients, each)
            left = await _left_behind(rig, asking, each)
            released_after = await _released(rig, patient=patient)
            say("all is calm; once more without a kill, and to the last token")
            await _hang_up(rig, asking, clients)
            wrongly_refused = await _to_the_edge(rig, asking, each)
            assert not watching.done(), "it has looked all the time"
        return await _reconciled(
            rig, asking, each, left=left, released_after=released_after, wrongly_refused=wrongly_refused,
            kills=kills, clients=clients, seed=seed, seconds=round(took, 1),
        )  # fmt: skip


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _amount(rig: Rig, http: httpx.AsyncClient) -> int:
    """What one request reserves, as the gateway's own check says."""
    response = await http.post(
        f"{rig.gateways[0].url}/v1/policy/check",
        json=request("roomy"),
        headers={"Authorization": f"Bearer {rig.tokens['roomy']}"},
    )
    assert response.status_code == httpx.codes.OK, response.text
    held = int(response.json()["budget"]["would_hold"])
    assert SLICE < held < MAX_TOKENS, "a request holds its prompt and a slice of its answer"
    return held


async def _kill(rig: Rig, draw: random.Random, asking: Clients) -> list[str]:
    """Kill a gateway in the middle of several streams, and start it again. Says whose streams had just ended."""
    place = draw.randrange(GATEWAYS)
    async with asyncio.timeout(30):
        while rig.begun[place] < _MID_STREAM:  # noqa: ASYNC110 - a number that goes up and down
            await asyncio.sleep(0.01)
    await asyncio.sleep(draw.uniform(0, 0.3))
    await rig.gateways[place].kill()
    for of in TENANTS:
        asking.seen[of].held_at_kills += (await rig.balance(of)).held
    just_ended = [of for at, of in rig.ended[place] if at > time.monotonic() - _SETTLING_S]
    rig.ended[place].clear()
    await rig.gateways[place].start()
    return just_ended


async def _wave(rig: Rig, draw: random.Random, asking: Clients, clients: int, each: int) -> None:
    """All of *snug*'s clients at once, and a gateway killed under them: nobody is refused, for all of them have room."""
    room = clients * each + clients * each // _IDLE_SHARE
    assert room < clients * MAX_TOKENS, "held in full, it would not do"
    await rig.entitle("snug", room)
    wave = [asyncio.create_task(asking.ask("snug")) for _ in range(clients)]
    await _kill(rig, draw, asking)
    await asyncio.gather(*wave)


async def _left_behind(rig: Rig, asking: Clients, each: int) -> float:
    """Reservations, in requests, that can't be those of killed gateways; once what is still being settled is settled."""
    end = time.monotonic() + _QUIET_S
    while True:
        beyond = [((await rig.balance(of)).held - asking.seen[of].held_at_kills) / each for of in TENANTS]
        if max(beyond) <= 0 or time.monotonic() > end:
            return sum(max(0.0, one) for one in beyond)
        await asyncio.sleep(SAMPLE_S)


async def _released(rig: Rig, *, patient: bool) -> float:
    """Seconds until nothing is held for anybody; the bound when something is."""
    bound = LIMITS.lease.total_seconds() + RELEASED_WITHIN_S
    began = time.monotonic()
    if not patient:
        await shift_time(rig.database, timedelta(seconds=bound))
    while sum([(await rig.balance(of)).held for of in TENANTS]):
        if (passed := time.monotonic() - began) > bound:
            return passed
        await asyncio.sleep(0.5)
        if not patient:
            return bound + 1
    return time.monotonic() - began


async def _hang_up(rig: Rig, asking: Clients, count: int) -> None:
    """Clients that leave a gateway which lives: what they leave behind is nobody's but its own to settle."""
    await asyncio.gather(*(asking.ask("roomy", hangs_up=True) for _ in range(count)))
    end = time.monotonic() + _QUIET_S
    while (await rig.balance("roomy")).held and time.monotonic() < end:  # noqa: ASYNC110 - other processes settle
        await asyncio.sleep(SAMPLE_S)


async def _to_the_edge(rig: Rig, asking: Clients, each: int) -> int:
    """One request after the other until there is no room for another: how many were refused that had room."""
    wrongly = 0
    while True:
        free = (await rig.balance("edge")).free
        answered = await asking.ask("edge")
        if answered:
            continue
        if free < each or wrongly == _ROOMS_IN_EDGE:
            return wrongly
        wrongly += 1


async def _reconciled(
    rig: Rig, asking: Clients, each: int, *, left: float, released_after: float, wrongly_refused: int, **figures: float
) -> Record:
    balances = {of: await rig.balance(of) for of in TENANTS}
    produced = {of: rig.upstream.produced[of.ljust(5, "_")] for of in TENANTS}
    seen = asking.seen
    lease = LIMITS.lease.total_seconds()
    return record(
        "R8",
        {
            "overshoot": rig.over,
            "overshoot_at_the_provider": sum(max(0, produced[of] - rig.limits[of]) for of in TENANTS),
            "left_behind_by_the_living": left,
            "leaked_reservations": sum(balance.held for balance in balances.values()) / each,
            "released_after_s": round(released_after, 1),
            "false_reject": seen["roomy"].refused + wrongly_refused + seen["snug"].refused,
            # What a run must have met to prove anything.
            "kills_without_effect": int(bool(figures["kills"]) and not seen["roomy"].cut + seen["tight"].cut),
            # Before it is refused a request waits for room, and may find it; to the last token there is none.
            "never_refused": int(not seen["tight"].refused + seen["edge"].refused),
            "nobody_ended_by_a_budget": int(not seen["tight"].limited),
            "wrongly_ended": seen["roomy"].limited + seen["snug"].limited,
            "snug_not_answered": int(not seen["snug"].answered),
        },
        limits={"released_after_s": lease + RELEASED_WITHIN_S},
        lease_s=lease,
        **figures,
        reserved_by_each=each,
        samples=rig.samples,
        **{
            f"{of}_{name}": value
            for of in TENANTS
            for name, value in {
                "limit": rig.limits[of],
                "peak": rig.peaks[of],
                "settled": balances[of].settled,
                "produced": produced[of],
                "answered": seen[of].answered,
                "hung_up": seen[of].hung_up,
                "refused": seen[of].refused,
                "limited": seen[of].limited,
                "cut": seen[of].cut,
                "cut_settling": seen[of].cut_settling,
            }.items()
        },
        others=[f"{of} {what}: {times}" for of in TENANTS for what, times in seen[of].others.items()],
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.budget", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="gateways killed in the middle of streams (%(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the same choices; drawn when not given")
    parser.add_argument(
        "--short", action="store_true", help="move the database's clock on instead of waiting for leases"
    )
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    _say_aloud(f"seed {seed}")
    found = asyncio.run(drive(given.kills, given.clients, seed, _say_aloud, patient=not given.short))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    sys.stdout.flush()
    _say_aloud(told(found))
    return 0 if found.ok else 1


def _say_aloud(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
