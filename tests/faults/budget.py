"""R8: budgets under faults: `python -m tests.faults.budget --kills 50 --clients 400 --seed S`.

Real gateways over a real database, killed in the middle of their streams, with clients that hang up. Three tenants, each
with a question of its own: *roomy* must never be refused, *tight*, which gets a little more with each kill and is always at
its limit, must never spend more than it has, and *edge* must get its last token when all is calm again. What is right is
decided by the ledger's balance, read through its port all the time, and by what the provider says it produced for whom.
"""

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from msgspec import Struct

from adapters.postgres import budget, tenant
from adapters.postgres.engine import PostgresConfig
from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from conformance.people import ACME, PLATFORM
from ports.adapter import Given
from ports.budget import Balance, BudgetLedger
from ports.context import AuthContext
from ports.http.edge import Receive, Scope, Send
from ports.ids import TenantId
from ports.tenant import Entitlements, TenantDirectory
from stack_b.limits import Limits
from tests.faults.reconcile import Record, record
from tests.support.http_server import served
from tests.support.node import free_ports
from tests.support.postgres import Clone, cloned, shift_time
from tests.support.real_stacks import ISSUER, ROOT, Process
from tests.support.scripted_upstream import delta, usage

MODEL: Final = "m-1"
GATEWAYS: Final = 2
TENANTS: Final = ("roomy", "tight", "edge")
LIMITS: Final = Limits(request_s=10)
"""Short requests make short leases: how long a reservation outlives the gateway that made it can be waited for."""
RELEASED_WITHIN_S: Final = 60.0
"""Beyond the lease."""
MAX_TOKENS: Final = 200
PROMPT_TOKENS: Final = 10
_PIECE_S: Final = (0.005, 0.03)
_HANGS_UP: Final = 0.2
"""The share of clients that leave in the middle."""
_SETTLING_S: Final = 2.0
"""What ended so shortly before its gateway was killed may not have been settled."""
_MID_STREAM: Final = 3
"""Streams of a gateway that have begun, when it is killed."""
_SAMPLE_S: Final = 0.03
_QUIET_S: Final = 15.0
"""For what a client that hung up has left to be settled: more than the gateway's own bound."""
_STEPS: Final = 0.3
"""The share of calls that are a run's step: those go on when their client hangs up."""
_ROOMS_IN_TIGHT: Final = 20
"""At first, and as many again with each kill."""
_ROOMS_IN_EDGE: Final = 6


class Upstream:
    """A provider that streams as many tokens as it likes, up to what it may, and knows what it produced for whom."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.produced: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = json.loads(raw)
        of = body["messages"][0]["content"]
        count = self._draw.randint(1, body["max_tokens"])
        pause = self._draw.uniform(*_PIECE_S)
        pieces = 10
        self.produced[of] += PROMPT_TOKENS
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            for piece in range(pieces):
                tokens = count * (piece + 1) // pieces - count * piece // pieces
                self.produced[of] += tokens
                await _say(send, delta(content="word " * tokens))
                await asyncio.wait({gone}, timeout=pause)
                if gone.done():
                    return
            await _say(send, delta("stop"))
            await _say(send, {**delta(), "choices": [], "usage": usage(PROMPT_TOKENS, count)})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            gone.cancel()


async def _say(send: Send, chunk: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": f"data: {json.dumps(chunk)}\n\n".encode(), "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Seen(Struct):
    """What the clients of one tenant met."""

    answered: int = 0
    hung_up: int = 0
    refused: int = 0
    cut: int = 0
    """Requests whose gateway was killed under them."""
    cut_settling: int = 0
    """The same of those that had just ended. Each of both may leave a reservation behind."""
    odd: list[str] = []


class Rig:
    """The gateways, and a way to the ledger past them."""

    def __init__(
        self,
        database: Clone,
        ledger: BudgetLedger,
        tenants: TenantDirectory,
        upstream: Upstream,
        gateways: list[Process],
    ) -> None:
        self.database = database
        self.ledger = ledger
        self.tenants = tenants
        self.upstream = upstream
        self.gateways = gateways
        self.begun = [0] * len(gateways)
        """Streams of each gateway that are under way."""
        self.ended: list[deque[tuple[float, str]]] = [deque() for _ in gateways]
        """When streams of each gateway ended, and whose."""
        self.tokens: dict[str, str] = {}
        self.limits: dict[str, int] = {}
        self.over = 0
        """How far anybody was beyond the limit, at most."""
        self.peaks: dict[str, int] = dict.fromkeys(TENANTS, 0)
        self.samples = 0

    async def entitle(self, of: str, limit: int) -> None:
        self.limits[of] = limit
        entitled = Entitlements(models=("*",), tokens_per_day=limit)
        await self.tenants.set_entitlements(PLATFORM, person(of).tenant, entitled)

    async def balance(self, of: str) -> Balance:
        return await self.ledger.balance(person(of), limit=self.limits[of])

    async def watch(self) -> None:
        """Look all the time how much is spent or held."""
        while True:
            for of in TENANTS:
                balance = await self.balance(of)
                taken = balance.settled + balance.held
                self.peaks[of] = max(self.peaks[of], taken)
                # A limit only grows, and here before anywhere else: what is asked for now is at least what held then.
                self.over = max(self.over, taken - self.limits[of])
            self.samples += 1
            await asyncio.sleep(_SAMPLE_S)


def person(of: str) -> AuthContext:
    return msgspec.structs.replace(ACME, tenant=TenantId(f"tnt_{of}"))


def request(of: str) -> dict[str, Any]:
    """The same for everybody but the name, which is as long: so that each reserves as much."""
    return {
        "model": MODEL,
        "stream": True,
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": of.ljust(5, "_")}],
    }


class Clients:
    def __init__(self, rig: Rig, draw: random.Random, http: httpx.AsyncClient) -> None:
        self._rig = rig
        self._draw = draw
        self._http = http
        self.over = asyncio.Event()
        self.seen = {of: Seen() for of in TENANTS}

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
        seen.odd.append("a stream ended without its end")
        return False

    async def _refused(self, of: str, response: httpx.Response) -> bool:
        code = json.loads(await response.aread())["error"]["code"]
        if code in {"budget_exceeded", "budget_in_flight", "request_exceeds_budget"}:
            self.seen[of].refused += 1
        else:
            self.seen[of].odd.append(f"{response.status_code} {code}")
        return False


async def drive(kills: int, clients: int, seed: int, say: Callable[[str], None], *, patient: bool) -> Record:
    """`patient` waits for leases to end; else the database's clock is moved on."""
    draw = random.Random(seed)  # noqa: S311 - a seed to repeat, not a secret
    every_time_anew = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        _rig(draw) as rig,
        httpx.AsyncClient(timeout=LIMITS.request_s + 5, trust_env=False, limits=every_time_anew) as http,
    ):
        each = await _amount(rig, http)
        await rig.entitle("tight", _ROOMS_IN_TIGHT * each)
        await rig.entitle("edge", _ROOMS_IN_EDGE * each + each // 2)
        asking = Clients(rig, draw, http)
        watching = asyncio.create_task(rig.watch())
        say(f"{clients} clients, {each} tokens reserved by each request; {kills} kills")
        load = [asyncio.create_task(asking.work(("roomy", "tight")[number % 2])) for number in range(clients)]
        began = time.monotonic()
        for _ in range(kills):
            for of in await _kill(rig, draw):
                asking.seen[of].cut_settling += 1
            await rig.entitle("tight", rig.limits["tight"] + _ROOMS_IN_TIGHT * each)
        asking.over.set()
        await asyncio.gather(*load)
        took = time.monotonic() - began
        say("the load is over")
        left = await _left_behind(rig, asking, each)
        released_after = await _released(rig, patient=patient)
        say("all is calm; once more without a kill, and to the last token")
        await _hang_up(rig, asking, clients)
        wrongly_refused = await _to_the_edge(rig, asking, each)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        return await _reconciled(
            rig, asking, each, left=left, released_after=released_after, wrongly_refused=wrongly_refused,
            kills=kills, clients=clients, seed=seed, seconds=round(took, 1),
        )  # fmt: skip


async def _amount(rig: Rig, http: httpx.AsyncClient) -> int:
    """What one request reserves: read from the ledger while it is under way."""
    async with http.stream(
        "POST",
        f"{rig.gateways[0].url}/v1/chat/completions",
        json=request("roomy"),
        headers={"Authorization": f"Bearer {rig.tokens['roomy']}"},
    ) as response:
        assert response.status_code == httpx.codes.OK, await response.aread()
        held = (await rig.balance("roomy")).held
        async for _ in response.aiter_lines():
            pass
    assert held > MAX_TOKENS, "a request holds its prompt and its answer"
    return held


async def _kill(rig: Rig, draw: random.Random) -> list[str]:
    """Kill a gateway in the middle of several streams, and start it again. Says whose streams had just ended."""
    place = draw.randrange(GATEWAYS)
    async with asyncio.timeout(30):
        while rig.begun[place] < _MID_STREAM:  # noqa: ASYNC110 - a number that goes up and down
            await asyncio.sleep(0.01)
    await asyncio.sleep(draw.uniform(0, 0.3))
    await rig.gateways[place].kill()
    just_ended = [of for at, of in rig.ended[place] if at > time.monotonic() - _SETTLING_S]
    rig.ended[place].clear()
    await rig.gateways[place].start()
    return just_ended


async def _left_behind(rig: Rig, asking: Clients, each: int) -> float:
    """Reservations, in requests, that are not those of killed gateways; once what is still being settled is settled."""
    end = time.monotonic() + _QUIET_S
    while True:
        lost = {of: asking.seen[of].cut + asking.seen[of].cut_settling for of in TENANTS}
        beyond = [(await rig.balance(of)).held / each - lost[of] for of in TENANTS]
        if max(beyond) <= 0 or time.monotonic() > end:
            return sum(max(0.0, one) for one in beyond)
        await asyncio.sleep(_SAMPLE_S)


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
        await asyncio.sleep(_SAMPLE_S)


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
    odd = [f"{of}: {what}" for of in TENANTS for what in seen[of].odd]
    lease = LIMITS.lease.total_seconds()
    return record(
        "R8",
        {
            "overshoot": rig.over,
            "overshoot_at_the_provider": sum(max(0, produced[of] - rig.limits[of]) for of in TENANTS),
            "left_behind_by_the_living": left,
            "leaked_reservations": sum(balance.held for balance in balances.values()) / each,
            "released_after_s": round(released_after, 1),
            "false_reject": seen["roomy"].refused + wrongly_refused,
            "odd": len(odd),
            # What a run must have met to prove anything.
            "kills_without_effect": int(bool(figures["kills"]) and not seen["roomy"].cut + seen["tight"].cut),
            "tight_never_refused": int(not seen["tight"].refused),
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
                "cut": seen[of].cut,
                "cut_settling": seen[of].cut_settling,
            }.items()
        },
        examples=odd[:5],
    )


@asynccontextmanager
async def _rig(draw: random.Random) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentos-budget-")))
        database = await stack.enter_async_context(cloned())
        upstream = Upstream(draw)
        url = await stack.enter_async_context(served(upstream))
        given, config = Given(clock=SystemClock()), PostgresConfig(dsn=database.app)
        ledger = await stack.enter_async_context(budget.SPEC.open(config, given))
        key, public, dsn = home / "issuer.pem", home / "jwks.json", home / "dsn"
        public.write_text(json.dumps(issuer.jwks(issuer.generate_key(key))))
        dsn.write_text(database.app)
        variables = {
            "AGENTOS_MODE": "prod",
            "AGENTOS_DATABASE_URL_FILE": str(dsn),
            "AGENTOS_ISSUER": ISSUER,
            "AGENTOS_JWKS_FILE": str(public),
            "AGENTOS_BACKENDS": json.dumps([{"name": "up", "base_url": f"{url}/v1", "models": [{"id": MODEL}]}]),
            "AGENTOS_GATEWAY_LIMITS": msgspec.json.encode(LIMITS).decode(),
            "PYTHONPATH": str(ROOT),
        }
        gateways = [
            Process(
                "deploy.roots.stack_b",
                {**variables, "AGENTOS_STACK_B_PORT": str(port)},
                home / f"gateway-{place}.log",
                port=port,
            )
            for place, port in enumerate(free_ports(GATEWAYS))
        ]
        for gateway in gateways:
            stack.push_async_callback(gateway.end)
            await gateway.start()
        tenants = await stack.enter_async_context(tenant.SPEC.open(config, given))
        rig = Rig(database, ledger, tenants, upstream, gateways)
        minting = await stack.enter_async_context(
            issuer.SPEC.open(issuer.IssuerConfig(private_key_file=str(key), issuer=ISSUER), given)
        )
        for of in TENANTS:
            rig.limits[of] = 10**12
            entitled = Entitlements(models=("*",), tokens_per_day=rig.limits[of])
            await tenants.create(PLATFORM, person(of).tenant, name=of, entitlements=entitled)
            rig.tokens[of] = minting.mint(
                person(of), audience="stack-b", scopes=frozenset({"models:invoke"}), lifetime=timedelta(hours=1)
            )
        yield rig


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
    found = asyncio.run(drive(given.kills, given.clients, seed, _say_aloud, patient=not given.short))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0 if found.ok else 1


def _say_aloud(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
