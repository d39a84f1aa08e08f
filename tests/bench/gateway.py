"""What Stack B costs on the way to a model: `python -m tests.bench.gateway`.

The gateway is production's, in its own process, with everything on: API keys, entitlements, budgets in PostgreSQL, policy,
PII. Behind it is an upstream that answers at once. The references, measured in the same rounds with the same load, are that
upstream without anything before it, nginx as a plain reverse proxy where this machine has it, and, for whole answers, other
gateways as they are shipped. Each gateway has one processor, the same for all where there are several.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil
from msgspec import Struct
from rich.console import Console

from adapters.system_clock import SystemClock
from adapters.token_auth import issuer
from deploy.internal import Directory, operator_of
from deploy.roots.wiring import Choice, open_ports
from deploy.seed import issue
from ports.errors import Unavailable
from ports.ids import PrincipalId, TenantId
from ports.tenant import Entitlements
from tests.bench import gateway_peers, machine, tools
from tests.bench.figures import ratio
from tests.bench.harness import (
    Figures,
    Line,
    Part,
    at_least_one,
    conditions,
    interleaved,
    record_of,
    report,
)
from tests.bench.http_load import Plan, Sample
from tests.bench.upstream import IN_CHUNKS, INSTANT, PACED, TOKEN, TOKENS
from tests.support.ports import free_port
from tests.support.postgres import Server

REQUEST_BYTES: Final = 1_024
_PATH: Final = "/v1/chat/completions"
_TENANT: Final = TenantId("tnt_bench")
_PROSE: Final = "The quick brown fox jumps over the lazy dog while the rain in the plain stays mainly where it was. "
_NUMBER: Final = "0000000"
"""What is another number in each request of the texts that nobody has seen."""
_PERSONAL: Final = (
    f"Ann{_NUMBER} of ann.{_NUMBER}@example.org pays with 4111 1111 1111 1111 or from DE89 3704 0044 0532 0130 00, "
    "her number is +1 415 555 0132, and her machine is 192.0.2.17. "
)
_UNSEEN: Final = {
    "new": (f"Order {_NUMBER}. {_PROSE}", "harmless text, another each time"),
    "personal": (_PERSONAL, "text full of personal data, another each time"),
}
"""Texts that are looked through with each request, where the others are remembered."""
_STREAMS: Final = {"chunks": IN_CHUNKS, "burst": INSTANT}
"""How the upstream writes a stream that is there at once: each chunk in a write of its own, or all in one."""
_TITLES: Final = {
    "direct": "upstream, asked directly",
    "nginx": "through nginx",
    "passthrough": "as bytes, through Stack B's server",
    "gateway": "through Stack B",
    "tensorzero": "through TensorZero",
    "portkey": "through Portkey",
    "litellm": "through LiteLLM's proxy",
}
_PEERS: Final = tuple(gateway_peers.PEERS)
_HALF: Final = ("direct", "nginx", "gateway", "tensorzero")
"""Those that are asked half as often as the gateway can answer. What nginx adds is the machine's."""
_PLACES: Final = {"beside": "the rest beside it", "apart": "the rest apart"}
"""Where the load, the upstream and the database are: on the gateway's processor as well, or not."""
_PEER_WARM_UP_SECONDS: Final = 8


class Options(Struct, frozen=True, kw_only=True):
    rounds: int = 3
    at_once: tuple[int, ...] = (1, 16, 64)
    """Whole answers; streams as many as are asked for at most."""
    seconds: float = 2.0
    """Of each measurement of whole answers."""
    stream_seconds: float = 1.0
    """Of each measurement of streams."""
    half_seconds: float = 4.0
    """Of each measurement at half load, which a stall of the machine is then a smaller part of."""
    settling_seconds: float = 1.0
    """Before each of those: the load of a pause's end, with what the gateway has to ask for anew, is not half a load."""
    warm_up_seconds: int = 1
    """Of each target, before the first round."""
    peers: tuple[str, ...] = _PEERS
    only: Literal["", "streams"] = ""
    json: str | None = None


SMOKE: Final = Options(
    rounds=1,
    at_once=(1, 16),
    seconds=0.2,
    stream_seconds=0.2,
    warm_up_seconds=0,
    peers=(),
    half_seconds=0.2,
    settling_seconds=0.1,
)


class Target(Struct, frozen=True, kw_only=True):
    """Something to ask, and the process whose CPU time is looked at."""

    name: str
    port: int
    process: psutil.Process
    path: str = _PATH
    headers: dict[str, str] = {}
    instant: str = INSTANT
    """As it calls the model that answers at once."""
    streams: bool = True
    wholes: bool = True
    seconds: float = 0.0
    """Of each measurement of whole answers, at least."""


class GatewayBench:
    def __init__(self, targets: Sequence[Target], server: Server, key: str, home: Path, options: Options) -> None:
        self._targets = targets
        self._server = server
        self._key = key
        self._home = home
        self._options = options
        self._gateway, self._upstream = (
            next(target for target in targets if target.name == name) for name in ("gateway", "direct")
        )
        self._rss_before = self._rss()

    def parts(self) -> list[tuple[str, Part]]:
        wholes = [
            (f"{target.name}, {connections} at once", self._whole_part(target, connections))
            for connections in self._options.at_once
            for target in self._targets
            if target.wholes and self._options.only != "streams"
        ]
        streams = [(f"{target.name}, streams", self._stream_part(target)) for target in self._targets if target.streams]
        unseen = [
            (f"gateway, {title}", self._unseen_part(name))
            for name, (_, title) in _UNSEEN.items()
            if self._options.only != "streams"
        ]
        half = [
            (f"{target.name}, half load, {_PLACES[place]}", self._half_part(target, place))
            for place in _places()
            for target in self._targets
            if target.name in _HALF and self._options.only != "streams"
        ]
        return [*wholes, *unseen, *half, *streams, ("start", self._start), ("memory and ratios", self.rest)]

    def warm_up(self) -> None:
        """So that no round pays for what is done once per process or connection."""
        if seconds := self._options.warm_up_seconds:
            for target in self._targets:
                # Another gateway's first answers may take seconds.
                taken = max(seconds, _PEER_WARM_UP_SECONDS) if target.name in _PEERS else seconds
                tools.load(self._plan(target, connections=self._options.at_once[-1], seconds=taken), self._home)

    def rest(self, found: Mapping[str, float]) -> Figures:
        most = self._options.at_once[-1]
        figures = {
            "gateway_rss_start_mib": self._rss_before,
            "gateway_rss_mib": self._rss(),
        }
        for place in _places():
            figures[f"added_first_ms_{place}"] = found[f"gateway_first_ms_{place}"] - found[f"direct_first_ms_{place}"]
        for form in _STREAMS:
            relayed, ours = (found[f"{name}_{form}_tokens_per_s"] for name in ("passthrough", "gateway"))
            figures[f"{form}_ratio"] = ratio(ours, relayed)
            relayed, ours = (found[f"{name}_{form}_token_cpu_us"] for name in ("passthrough", "gateway"))
            figures[f"{form}_cpu_ratio"] = ratio(relayed, ours)
        if self._options.only == "streams":
            return figures
        figures[f"rps_ratio_{most}"] = ratio(found[f"gateway_rps_{most}"], found[f"direct_rps_{most}"])
        for place, name in itertools.product(_places(), _HALF[1:]):
            if (p99 := found.get(f"{name}_p99_ms_{place}")) is not None:
                figures[f"{name}_added_p99_ms_{place}"] = p99 - found[f"direct_p99_ms_{place}"]
        figures["added_p50_ms_1"] = found["gateway_p50_ms_1"] - found["direct_p50_ms_1"]
        for target, connections in itertools.product(self._targets, self._options.at_once[1:]):
            if target.name in _PEERS:
                ours, theirs = found[f"gateway_rps_{connections}"], found[f"{target.name}_rps_{connections}"]
                figures[f"{target.name}_ratio_{connections}"] = ratio(ours, theirs)
        if "nginx_cpu_us_1" in found:
            figures["nginx_cpu_ratio"] = ratio(found[f"gateway_cpu_us_{most}"], found[f"nginx_cpu_us_{most}"])
        return figures

    def _whole_part(self, target: Target, connections: int) -> Part:
        def part(_: Mapping[str, float]) -> Figures:
            seconds = max(self._options.seconds, target.seconds)
            plan = self._plan(target, connections=connections, seconds=seconds)
            before, database, writes = self._spent(target)
            sample = tools.load(plan, self._home)
            after, database_after, writes_after = self._spent(target)
            name = f"{target.name}_{{}}_{connections}"
            figures = {
                name.format("rps"): ratio(sample.requests, sample.seconds),
                name.format("p50_ms"): sample.p50_ms,
                name.format("p99_ms"): sample.p99_ms,
                name.format("cpu_us"): ratio(1e6 * (after - before), sample.requests),
            }
            if target is self._gateway:
                figures[name.format("db_cpu_us")] = ratio(1e6 * (database_after - database), sample.requests)
                figures[name.format("writes")] = ratio(writes_after - writes, sample.requests)
            return figures

        return part

    def _unseen_part(self, name: str) -> Part:
        """Through Stack B, at the first number of requests at once that is more than one."""

        def part(_: Mapping[str, float]) -> Figures:
            text, connections = _UNSEEN[name][0], self._options.at_once[1]
            plan = self._plan(self._gateway, connections=connections, seconds=self._options.seconds)
            plan = msgspec.structs.replace(plan, body=request_body(INSTANT, text=text), numbered=_NUMBER)
            before = machine.cpu_seconds(self._gateway.process)
            sample = tools.load(plan, self._home)
            spent = machine.cpu_seconds(self._gateway.process) - before
            return {
                f"{name}_rps": ratio(sample.requests, sample.seconds),
                f"{name}_p50_ms": sample.p50_ms,
                f"{name}_cpu_us": ratio(1e6 * spent, sample.requests),
            }

        return part

    def _half_part(self, target: Target, place: str) -> Part:
        def part(found: Mapping[str, float]) -> Figures:
            most = self._options.at_once[-1]
            plan = self._plan(target, connections=most, seconds=self._options.half_seconds)
            rate, settling = found[f"gateway_rps_{most}"] / 2, self._options.settling_seconds
            sample = self._loaded(msgspec.structs.replace(plan, rate=rate, settling=settling), place)
            return {f"{target.name}_p50_ms_{place}": sample.p50_ms, f"{target.name}_p99_ms_{place}": sample.p99_ms}

        return part

    def _loaded(self, plan: Plan, place: str) -> Sample:
        if place == "beside":
            return tools.load(plan, self._home)
        with machine.world_apart(self._upstream.process, machine.main_process(self._server)) as by:
            return tools.load(plan, self._home, by=by)

    def _start(self, _: Mapping[str, float]) -> Figures:
        """Another gateway, from its command to its readiness."""
        port, upstream = free_port(), self._upstream.port
        home = self._home / f"gateway-{port}"
        home.mkdir()
        began = time.perf_counter()
        with stack_b(self._server, home, port=port, upstream=upstream):
            machine.wait_until_ready(port)
            return {"gateway_ready_s": time.perf_counter() - began}

    def _stream_part(self, target: Target) -> Part:
        def part(_: Mapping[str, float]) -> Figures:
            seconds = self._options.stream_seconds
            plan, figures = self._plan(target, connections=1, seconds=seconds, stream=PACED), dict[str, float]()
            for place in _places():
                paced = self._loaded(plan, place)
                figures[f"{target.name}_first_ms_{place}"] = paced.first_p50_ms
                figures[f"{target.name}_stream_ms_{place}"] = paced.p50_ms
            for form, model in _STREAMS.items():
                figures |= self._at_once(target, f"{target.name}_{form}", model)
            return figures

        return part

    def _at_once(self, target: Target, name: str, model: str) -> Figures:
        """As many streams of `model` as are asked for at most. Beside the target's figures, what the others were busy."""
        plan = self._plan(
            target, connections=self._options.at_once[-1], seconds=self._options.stream_seconds, stream=model
        )
        before, upstream = machine.cpu_seconds(target.process), machine.cpu_seconds(self._upstream.process)
        streams = tools.load(plan, self._home)
        spent = machine.cpu_seconds(target.process) - before
        upstream = machine.cpu_seconds(self._upstream.process) - upstream
        return {
            f"{name}_tokens_per_s": ratio(TOKENS * streams.requests, streams.seconds),
            f"{name}_token_cpu_us": ratio(1e6 * spent, TOKENS * streams.requests),
            f"{name}_busy": ratio(spent, streams.seconds),
            f"{name}_upstream_busy": ratio(upstream, streams.seconds),
            f"{name}_load_busy": ratio(streams.cpu_seconds, streams.seconds),
        }

    def _plan(self, target: Target, *, connections: int, seconds: float, stream: str = "") -> Plan:
        """`stream`: the model whose answer is streamed; without, whole answers of the instant one."""
        return Plan(
            port=target.port,
            path=target.path,
            headers={"authorization": f"Bearer {self._key}", "content-type": "application/json", **target.headers},
            body=request_body(stream or target.instant, stream=bool(stream)),
            connections=connections,
            seconds=seconds,
            first=TOKEN if stream else "",
            expect=TOKENS if stream else 0,
        )

    def _spent(self, target: Target) -> tuple[float, float, int]:
        """CPU seconds of the target and of PostgreSQL, and transactions that wrote."""
        if target is not self._gateway:
            return machine.cpu_seconds(target.process), 0.0, 0
        return (
            machine.cpu_seconds(target.process),
            machine.server_cpu_seconds(self._server),
            asyncio.run(machine.writes(self._server)),
        )

    def _rss(self) -> float:
        return float(self._gateway.process.memory_info().rss) / 2**20


def request_body(model: str, *, stream: bool = False, text: str = _PROSE) -> str:
    """A request of `REQUEST_BYTES`, of harmless prose where nothing else is to be said."""
    members = {"model": model, "max_tokens": 64, "stream": stream}
    bare = len(msgspec.json.encode({**members, "messages": [{"role": "user", "content": ""}]}))
    said = (text * (REQUEST_BYTES // len(text) + 1))[: REQUEST_BYTES - bare]
    return msgspec.json.encode({**members, "messages": [{"role": "user", "content": said}]}).decode()


async def seed(server: Server) -> str:
    """A tenant with a budget that no bench exhausts; its API key."""
    choices = {
        port: Choice(adapter="postgres", config={"dsn": server.dsn("ao_control")}) for port in ("tenant", "agent")
    }
    async with open_ports(choices, dict.fromkeys(choices), clock=SystemClock()) as ports:
        directory = Directory(tenants=ports["tenant"], agents=ports["agent"])
        entitlements = Entitlements(models=(INSTANT, IN_CHUNKS, PACED), tokens_per_day=10**15)
        await directory.tenants.create(operator_of(_TENANT), _TENANT, name="Bench", entitlements=entitlements)
        made = await issue(
            directory, _TENANT, principal=PrincipalId("svc_bench"), role="service", env="prod", label="bench"
        )
        return made.api_key


@contextmanager
def stack_b(server: Server, home: Path, *, port: int, upstream: int) -> Iterator[psutil.Process]:
    """The gateway as in production, with the upstream as its one backend."""
    dsn, jwks = home / "database_url", home / "jwks.json"
    dsn.write_text(server.dsn("ao_app"))
    jwks.write_bytes(msgspec.json.encode(issuer.jwks(issuer.generate_key(home / "issuer.pem"))))
    models = [{"id": model} for model in (INSTANT, IN_CHUNKS, PACED)]
    backends = [{"name": "bench", "base_url": f"http://127.0.0.1:{upstream}/v1", "models": models}]
    environment = {
        "AGENTOS_MODE": "prod",
        "AGENTOS_DATABASE_URL_FILE": str(dsn),
        "AGENTOS_ISSUER": "urn:agentos:bench",
        "AGENTOS_JWKS_FILE": str(jwks),
        "AGENTOS_STACK_B_PORT": str(port),
        "AGENTOS_BACKENDS": msgspec.json.encode(backends).decode(),
    }
    command = [*machine.on_one_cpu(), *machine.python("deploy.roots.stack_b")]
    with machine.child(command, log=home / "stack-b.log", environment=environment) as process:
        machine.wait_until_open(port)
        yield process


def lines(targets: Sequence[Target], at_once: Sequence[int]) -> list[Line]:
    found: list[Line] = []
    most = at_once[-1]
    for connections in at_once:
        found.append(Line(f"whole answers, {connections} at once"))
        for target in targets:
            name, title = f"{target.name}_{{}}_{connections}", _TITLES[target.name]
            found += [
                Line(title, name.format("rps"), "requests/s"),
                Line("  p50", name.format("p50_ms"), "ms"),
                Line("  p99", name.format("p99_ms"), "ms"),
                Line("  CPU per request", name.format("cpu_us"), "µs"),
                Line("  CPU of PostgreSQL per request", name.format("db_cpu_us"), "µs"),
                Line("  transactions per request that write", name.format("writes")),
            ]
    found += _lines_of_unseen(at_once[1])
    for place in _places():
        found.append(Line(f"whole answers at half of what Stack B answers at {most}, {_PLACES[place]}"))
        for target in targets:
            if target.name in _HALF:
                found.append(Line(f"{_TITLES[target.name]}: p50", f"{target.name}_p50_ms_{place}", "ms"))
                found.append(Line("  p99", f"{target.name}_p99_ms_{place}", "ms"))
    streaming = [target for target in targets if target.streams]
    for place in _places():
        found.append(Line(f"one paced stream of {TOKENS} tokens, {_PLACES[place]}"))
        for target in streaming:
            found += [
                Line(f"{_TITLES[target.name]}: the first token, p50", f"{target.name}_first_ms_{place}", "ms"),
                Line("  all of it, p50", f"{target.name}_stream_ms_{place}", "ms"),
            ]
    for form, written in (("chunks", "each chunk in a write of its own"), ("burst", "all in one write")):
        found.append(Line(f"{most} streams of {TOKENS} tokens at once, {written}"))
        for target in streaming:
            name = f"{target.name}_{form}"
            found += [
                Line(_TITLES[target.name], f"{name}_tokens_per_s", "tokens/s"),
                Line("  CPU per token", f"{name}_token_cpu_us", "µs"),
                Line("  processors that it was busy on", f"{name}_busy"),
                Line("  and the upstream", f"{name}_upstream_busy"),
                Line("  and the load", f"{name}_load_busy"),
            ]
    return [
        *found,
        Line("Stack B beside its references"),
        *(
            Line(f"requests/s at {connections}, to those {_TITLES[target.name]}", f"{target.name}_ratio_{connections}")
            for target in targets
            for connections in at_once[1:]
            if target.name in _PEERS
        ),
        Line(f"requests/s at {most}, to the upstream's own", f"rps_ratio_{most}"),
        Line(f"CPU per request at {most}, to nginx's", "nginx_cpu_ratio"),
        Line("added to the p50 at 1", "added_p50_ms_1", "ms"),
        *(
            Line(
                f"added to the p99 at half load, {_PLACES[place]}, {_TITLES[name]}",
                f"{name}_added_p99_ms_{place}",
                "ms",
            )
            for place in _places()
            for name in _HALF[1:]
        ),
        Line("from its start to ready", "gateway_ready_s", "s"),
        *(Line(f"added to the first token, {_PLACES[place]}", f"added_first_ms_{place}", "ms") for place in _places()),
        Line(f"tokens/s at {most} in chunks, to those of bytes passed through", "chunks_ratio"),
        Line("  CPU per token of bytes passed through, to ours", "chunks_cpu_ratio"),
        Line(f"tokens/s at {most} in one burst, to those of bytes passed through", "burst_ratio"),
        Line("  CPU per token of bytes passed through, to ours", "burst_cpu_ratio"),
        Line("memory at start (RSS)", "gateway_rss_start_mib", "MiB"),
        Line("memory under load", "gateway_rss_mib", "MiB"),
    ]


def _lines_of_unseen(connections: int) -> list[Line]:
    found: list[Line] = []
    for name, (_, title) in _UNSEEN.items():
        found += [
            Line(f"{title}, {connections} at once"),
            Line(_TITLES["gateway"], f"{name}_rps", "requests/s"),
            Line("  p50", f"{name}_p50_ms", "ms"),
            Line("  CPU per request", f"{name}_cpu_us", "µs"),
        ]
    return found


def _places() -> tuple[str, ...]:
    """Those of `_PLACES` that can be had here."""
    return tuple(_PLACES) if machine.can_be_apart() else ("beside",)


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gateway", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=3, help="interleaved rounds (%(default)s)")
    parser.add_argument("--seconds", type=at_least_one, default=2, help="of each measurement (%(default)s)")
    parser.add_argument(
        "--peers",
        metavar="NAMES",
        default=",".join(_PEERS),
        help="other gateways, by comma; may be empty (%(default)s)",
    )
    parser.add_argument("--streams", action="store_true", help="leave out whole answers")
    parser.add_argument("--json", metavar="FILE", help="write the record with its conditions there")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that the bench works; no figures")
    given = parser.parse_args(arguments)
    if given.smoke:
        return msgspec.structs.replace(SMOKE, json=given.json)
    peers = tuple(name for name in given.peers.split(",") if name)
    if unknown := sorted(set(peers) - set(_PEERS)):
        parser.error(f"there is no peer {unknown}; there are {', '.join(_PEERS)}")
    only: Literal["", "streams"] = "streams" if given.streams else ""
    return Options(rounds=given.rounds, seconds=given.seconds, peers=peers, only=only, json=given.json)


def main(options: Options) -> None:
    talk = Console(stderr=True)
    missing = [text for tool, text in (("wrk", tools.NO_WRK), ("nginx", tools.NO_NGINX)) if not tools.has(tool)]
    with ExitStack() as stack:
        home = stack.enter_context(machine.workplace())
        server = stack.enter_context(machine.database(home))
        key = asyncio.run(seed(server))
        upstream, proxy, relay, gateway = (free_port() for _ in range(4))
        command = machine.python("tests.bench.upstream", str(upstream))
        direct = stack.enter_context(machine.child(command, log=home / "upstream.log", announces=True))
        targets = [Target(name="direct", port=upstream, process=direct)]
        if tools.has("nginx"):
            process = stack.enter_context(tools.nginx(home, port=proxy, upstream=upstream))
            targets.append(Target(name="nginx", port=proxy, process=process))
        command = [*machine.on_one_cpu(), *machine.python("tests.bench.passthrough", str(relay), str(upstream))]
        process = stack.enter_context(machine.child(command, log=home / "passthrough.log"))
        machine.wait_until_open(relay)
        targets.append(Target(name="passthrough", port=relay, process=process, wholes=False))
        process = stack.enter_context(stack_b(server, home, port=gateway, upstream=upstream))
        targets.append(Target(name="gateway", port=gateway, process=process))
        for name in options.peers:
            try:
                peer = stack.enter_context(gateway_peers.opened(name, home, upstream))
            except Unavailable as error:
                missing.append(gateway_peers.why_missing(name, error))
                continue
            targets.append(
                Target(
                    name=name, port=peer.port, process=peer.process, path=peer.path, headers=peer.headers,
                    instant=peer.model, streams=False, seconds=peer.seconds,
                )
            )  # fmt: skip
        if options.peers:
            missing.append(gateway_peers.NOT_MEASURED)
        if not machine.can_be_apart():
            missing.append(machine.NO_WORLD_APART)
        bench = GatewayBench(targets, server, key, home, options)
        told = conditions(
            options,
            postgres=asyncio.run(machine.settings(server)),
            loaded_by="wrk" if tools.has("wrk") else "tests.bench.http_load",
            request_bytes=REQUEST_BYTES,
            one_processor_each=bool(machine.on_one_cpu()),
            peers=gateway_peers.VERSIONS,
        )
        bench.warm_up()
        rounds = interleaved(options.rounds, bench.parts(), talk)
    report(record_of("gateway", told, rounds, missing=missing), lines(targets, options.at_once), json=options.json)


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
