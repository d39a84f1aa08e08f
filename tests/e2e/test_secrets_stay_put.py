"""R23 on a real node: canaries wherever a secret may be, the main job and its failures, and then a search everywhere else.

The same node shows that a rotated key is in use within seconds, without a restart.
"""

import base64
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anyio
import asyncpg
import httpx
import msgspec
import psutil
import pytest

from adapters.postgres.bootstrap import ADMIN
from deploy import credentials
from deploy.catalogue import environment_file
from ports.http.body import Receive
from ports.http.edge import Scope, Send
from tests.support.http_server import served
from tests.support.kv_server import KvServer, Lease, kv_serving
from tests.support.node import NodeUnderTest
from tests.support.scripted_upstream import completion

pytestmark = pytest.mark.anyio

VARIABLE: Final = "CANARY_PROVIDER_KEY"
COMMANDS: Final = (
    ("validate",), ("status", "--json"), ("config", "explain"), ("gateway", "show"), ("key", "list"),
    ("runs", "list"), ("requests", "list", "--tenant", "tnt_demo"), ("usage", "tnt_demo"), ("tenant", "quota", "tnt_demo"),
    ("logs", "stack-b", "-n", "1000"),
)  # fmt: skip


class Canaries:
    """Every secret there is, by what it is for."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def plant(self, name: str, form: str = "{}") -> str:
        """Without a form of its own, so that no filter for what looks like a key hides that it was told."""
        self.values[name] = form.format(secrets.token_hex(24))
        return self.values[name]

    def found_in(self, text: str) -> list[str]:
        """Names of those that `text` tells, as they are or in a usual disguise."""
        return [name for name, value in self.values.items() if any(form in text for form in _forms(value))]


def _forms(value: str) -> Iterator[str]:
    raw = value.encode()
    yield value
    yield quote(value, safe="")
    yield raw.hex()
    yield json.dumps(value)[1:-1]
    # In base64, wherever in a longer text it stands.
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw).decode()
        yield encoded[4 if shift else 0 : len(encoded) - 4]


class Provider:
    """Quotes the key with every answer's head, and with every refusal in all places that a refusal has."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        """In the order in which they came, each once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return None
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        told = dict(scope["headers"]).get(b"authorization", b"").decode()
        key = told.removeprefix("Bearer ")
        if key and key not in self.keys:
            self.keys.append(key)
        if scope["method"] == "GET":
            return await _answer(send, 200, {"object": "list", "data": []}, key)
        asked = json.loads(body)
        status = {"m-401": 401, "m-500": 500, "m-400": 400}.get(asked["model"], 200)
        if status != 200:
            text = f"Incorrect API key provided: {key}. Authorization: {told}"
            return await _answer(
                send, status, {"error": {"message": text, "type": key, "code": key, "param": told}}, key
            )
        if asked.get("stream"):
            return await _stream(send, key)
        return await _answer(send, 200, completion("paid").body, key)


async def _answer(send: Send, status: int, body: object, key: str) -> None:
    raw = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(raw)).encode()),
        (b"x-key", key.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


async def _stream(send: Send, key: str) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"x-key", key.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for choice in (
        {"delta": {"role": "assistant", "content": "paid"}, "finish_reason": None},
        {"delta": {}, "finish_reason": "stop"},
    ):
        chunk = {**base, "choices": [{"index": 0, **choice}],
                 "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip
        await send({"type": "http.response.body", "body": f"data: {json.dumps(chunk)}\n\n".encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class Place:
    """A node with canaries, a provider and a secret manager."""

    def __init__(self, node: NodeUnderTest, canaries: Canaries, provider: Provider, kv: KvServer) -> None:
        self.node = node
        self.canaries = canaries
        self.provider = provider
        self.kv = kv
        self.said: dict[str, str] = {}
        """What the node told anybody, by where."""

    async def agentos(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = await anyio.to_thread.run_sync(lambda: self.node.agentos(*arguments))
        self.say(f"command {' '.join(arguments)}", done.stdout + done.stderr)
        return done

    def say(self, where: str, text: str) -> None:
        self.said[where] = self.said.get(where, "") + text

    def leaks(self) -> list[str]:
        return [f"{name} in {where}" for where, text in self.said.items() for name in self.canaries.found_in(text)]


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Place]:
    canaries, provider = Canaries(), Provider()
    node = NodeUnderTest(home)
    async with kv_serving(KvServer()) as kv, served(provider) as upstream:
        kv.tokens[canaries.plant("token of the secret manager", "hvs.{}")] = Lease(below="agentos/")
        kv.put("agentos/provider", {"value": canaries.plant("provider key of the secret manager", "sk-{}")})
        node.node.create()
        node.environ[VARIABLE] = canaries.plant("provider key in a variable")
        for name, key in (("kv-token", "token of the secret manager"), ("provider", "")):
            file = (node.node.home if key else node.node.gateway_secrets) / name
            file.write_text(canaries.values[key] if key else canaries.plant("provider key in a file"))
            file.chmod(0o600)
        (node.node.env_file).write_text(_settings(node, kv, upstream, home.with_name("gateway.json")))
        try:
            await anyio.to_thread.run_sync(node.up)
            yield Place(node, canaries, provider, kv)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: node.agentos("nuke", "--hard", "--yes-really"))


def _settings(node: NodeUnderTest, kv: KvServer, upstream: str, file: Path) -> str:
    backends = [
        {"name": name, "base_url": f"{upstream}/v1", "api_key": key, "models": [{"id": model} for model in models]}
        for name, key, models in (
            ("kv", "secret:provider", ("m-good", "m-401")),
            ("file", f"file:{node.node.gateway_secrets}/provider", ("m-500",)),
            ("env", f"env:{VARIABLE}", ("m-400",)),
        )
    ]
    file.write_text(json.dumps({"backends": backends}))
    store = {"url": kv.url, "prefix": "agentos", "token_file": str(node.node.home / "kv-token"), "fresh_s": 1}
    return (
        f"AGENTOS_SECRETS={json.dumps({'adapter': 'kv', 'config': store})}\nAGENTOS_GATEWAY_FILE={file}\n"
        "AGENTOS_LOG_LEVEL=debug\n"
    )


def _generated(node: NodeUnderTest, canaries: Canaries) -> None:
    """What the node made for itself: it is as secret as what was planted."""
    for name, value in msgspec.json.decode(node.node.secret(credentials.DATABASE_PASSWORDS).read_bytes()).items():
        canaries.values[f"database password of {name}"] = value
    for name, key in node.tokens().keys.items():
        canaries.values[f"API key {name}"] = key.api_key.rpartition("_")[2]
    pem = node.node.secret(credentials.ISSUER_KEY).read_text().splitlines()
    canaries.values["issuer's key"] = pem[1]
    canaries.values["placeholder key"] = node.node.secret(credentials.PLACEHOLDER_KEY).read_text().strip()
    canaries.values["record key"] = node.node.secret(credentials.RECORD_KEYS).read_text().strip().rpartition(":")[2]


async def _work(place: Place) -> None:
    """The main job, and every failure that has to do with a key."""
    node = place.node
    key = node.app_key()
    async with httpx.AsyncClient(timeout=30, trust_env=False, headers={"Authorization": f"Bearer {key}"}) as client:
        for model in ("m-good", "m-401", "m-500", "m-400", "absent"):
            for stream in (False, True):
                asked = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream}
                answer = await client.post(f"{node.stack_b}/v1/chat/completions", json=asked)
                place.say(f"answer of {model}", f"{answer.status_code} {answer.headers} {answer.text}")
                assert (answer.status_code == 200) == (model == "m-good"), (model, answer.text)
        for wrong in (key[:-4], key + "0", "Bearer", node.app_key().replace("aos_", "aos-")):
            answer = await client.get(f"{node.stack_a}/v1/runs", headers={"Authorization": f"Bearer {wrong}"})
            assert answer.status_code == 401
            place.say("answers to wrong keys", f"{answer.headers} {answer.text}")


async def _run(place: Place) -> None:
    for agent, fails in (("agt_good", False), ("agt_bad", True)):
        done = await place.agentos("run", agent, "What is 2 + 2?", "--json")
        assert (done.returncode != 0) == fails, done.stderr


async def _publish(place: Place) -> None:
    for agent, model in (("agt_good", "m-good"), ("agt_bad", "m-401")):
        file = place.node.node.home.with_name(f"{agent}.json")
        file.write_text(json.dumps({"id": agent, "model": model, "instructions": "Answer."}))
        done = await place.agentos("agent", "publish", str(file))
        assert done.returncode == 0, done.stderr


async def _rotate(place: Place) -> float:
    """The key of the secret manager is replaced: for how long the old one was in use."""
    new = place.canaries.plant("rotated provider key")
    place.kv.put("agentos/provider", {"value": new})
    began = anyio.current_time()
    async with httpx.AsyncClient(
        timeout=30, trust_env=False, headers={"Authorization": f"Bearer {place.node.app_key()}"}
    ) as client:
        with anyio.fail_after(20):
            while new not in place.provider.keys:
                asked = {"model": "m-good", "messages": [{"role": "user", "content": f"hello {anyio.current_time()}"}]}
                answer = await client.post(f"{place.node.stack_b}/v1/chat/completions", json=asked)
                assert answer.status_code == 200, answer.text
                await anyio.sleep(0.1)
    return anyio.current_time() - began


async def _look(place: Place) -> None:
    """Everything that the node has said or shows, gathered."""
    node = place.node
    urls = (node.stack_a, node.stack_b, node.admin, f"http://127.0.0.1:{node.ports['worker']}")
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        for url in urls:
            for path in ("/metrics", "/readyz", "/healthz", "/openapi.json"):
                place.say(f"{url}{path}", (await client.get(f"{url}{path}")).text)
        client.headers["Authorization"] = f"Bearer {node.app_key()}"
        runs = (await client.get(f"{node.stack_a}/v1/runs")).json()["items"]
        assert len(runs) >= 2
        for run in runs:
            for path in ("", "/steps", "/events"):
                answer = await client.get(f"{node.stack_a}/v1/runs/{run['run_id']}{path}")
                place.say(f"run{path}", answer.text)
    for command in COMMANDS:
        await place.agentos(*command)
    for file in _files(node):
        place.say(f"file {file.name}", file.read_text(errors="replace"))
    await _look_into_the_database(place)
    _look_at_processes(place)


def _files(node: NodeUnderTest) -> Iterable[Path]:
    """All but those that are for secrets, and the database's own, which is asked instead."""
    own = {node.node.home / "kv-token", environment_file(node.node, "stack-b")}
    folders = {node.node.secrets, node.node.gateway_secrets, node.node.home / "postgres", node.node.home / "data"}
    for path in node.node.home.rglob("*"):
        if path.is_file() and path not in own and not folders & set(path.parents):
            yield path


async def _look_into_the_database(place: Place) -> None:
    passwords = msgspec.json.decode(place.node.node.secret(credentials.DATABASE_PASSWORDS).read_bytes())
    connection = await asyncpg.connect(
        credentials.embedded_url(ADMIN, passwords["admin"], place.node.ports["postgres"])
    )
    try:
        tables = await connection.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'agentos' AND c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, 'SELECT')"
        )
        assert len(tables) > 10
        for table in tables:
            rows = await connection.fetch(f"SELECT row_to_json(t)::text AS row FROM {table['name']} t")
            place.say(f"table {table['name']}", "\n".join(row["row"] for row in rows))
        place.say("database's activity", str(await connection.fetch("SELECT * FROM pg_stat_activity")))
        place.say("database's settings", str(await connection.fetch("SELECT * FROM pg_settings")))
    finally:
        await connection.close()


def _look_at_processes(place: Place) -> None:
    pids = place.node.pids()
    assert len(pids) == 5
    for name, pid in pids.items():
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            place.say(f"arguments of {name}", " ".join(one.cmdline()))
            environment = one.environ()
            if name == "stack-b":
                # The one place for a key that came as a variable.
                assert environment.pop(VARIABLE) == place.canaries.values["provider key in a variable"]
            place.say(f"environment of {name}", json.dumps(environment))


async def test_secrets_stay_where_they_are_and_rotate_without_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(tmp_path / "home") as place:
        _generated(place.node, place.canaries)
        before = place.node.pids()
        await _publish(place)
        await _work(place)
        await _run(place)
        took = await _rotate(place)
        await _work(place)
        assert place.node.pids() == before
        await _look(place)
        leaks = place.leaks()
        searched = sum(map(len, place.said.values()))
        used = sorted(name for name, value in place.canaries.values.items() if value in place.provider.keys)
        record: dict[str, Any] = {
            "invariant": "R23", "canaries": len(place.canaries.values), "places": len(place.said), "bytes": searched,
            "rotated_within_s": round(took, 1), "canary_leaks": len(leaks), "leaks": leaks[:20],
        }  # fmt: skip

    with capsys.disabled():
        print(json.dumps(record))  # noqa: T201  # the record is what the proof prints
    # The keys were where they should be: otherwise nothing was proven.
    assert used == [
        "provider key in a file", "provider key in a variable", "provider key of the secret manager",
        "rotated provider key",
    ]  # fmt: skip
    assert "secret.read" in place.said["file stack-b.log"]
    assert place.said["table agentos.api_keys"]
    assert leaks == []


@pytest.mark.parametrize("disguise", ["{}", 'x "{}" y', "Bearer {}"])
def test_the_search_finds_a_canary_in_any_usual_form(disguise: str) -> None:
    canaries = Canaries()
    value = canaries.plant("key")
    text = disguise.format(value)
    for shown in (
        text,
        text.encode().hex(),
        quote(text, safe=""),
        json.dumps({"a": text}),
        *(base64.b64encode(b"x" * shift + text.encode()).decode() for shift in range(3)),
    ):
        assert canaries.found_in(shown) == ["key"], shown

    assert canaries.found_in(value[:-1]) == []
