"""Backends that speak OpenAI, how they are configured and found, and which of them is asked."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest

from adapters.system_clock import SystemClock
from ports.errors import AgentOSError, InvalidArgument, PermissionDenied, Unavailable
from ports.http.body import Receive
from ports.http.edge import Scope, Send
from ports.http.sse_decoder import MAX_EVENT_BYTES, SseDecoder
from ports.tenant import Entitlements
from stack_b.backends.catalog import Candidate, Catalog
from stack_b.backends.connection import Answer, Connection, NoRoom, NotConnected, Patience
from stack_b.backends.demo import DemoBackend
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.pool import Pool
from stack_b.backends.protocol import Backend, ModelCard
from stack_b.backends.settings import BackendSettings, discovered, merged, open_backend, parse_settings
from stack_b.encoding import encoded
from stack_b.routing.choice import choose, may_fall_back
from tests.support.in_process import in_process
from tests.support.scripted_upstream import ScriptedUpstream, Whole, completion

pytestmark = [pytest.mark.anyio]

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: up\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def backend_before(upstream: Any, **settings: Any) -> AsyncIterator[OpenAiCompatible]:
    settings.setdefault("base_url", "http://up/v1")
    backend = OpenAiCompatible(name="up", dial_by=in_process(upstream), **settings)
    try:
        yield backend
    finally:
        await backend.aclose()


async def test_only_the_body_travels_and_with_the_nodes_own_key() -> None:
    upstream = ScriptedUpstream([completion()])
    async with backend_before(upstream, api_key="sk-node") as backend:
        answer = await backend.chat("m-1", BODY, 5)

    [received] = upstream.requests
    assert received.path == "/v1/chat/completions"
    assert received.headers["authorization"] == "Bearer sk-node"
    assert received.headers["user-agent"] == "agentos"
    assert set(received.headers) <= {
        "accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent"
    }  # fmt: skip
    assert received.body == {**BODY, "model": "m-1", "max_tokens": 5}
    assert answer["system_fingerprint"] == "fp_kept"


@pytest.mark.parametrize(
    ("settings", "member"),
    [
        ({"base_url": "https://api.openai.com/v1"}, "max_completion_tokens"),
        ({"max_tokens_member": "max_completion_tokens"}, "max_completion_tokens"),
        ({}, "max_tokens"),
    ],
)
async def test_the_limit_is_spelled_as_the_backend_reads_it(settings: dict[str, str], member: str) -> None:
    upstream = ScriptedUpstream([completion()])
    async with backend_before(upstream, **settings) as backend:
        await backend.chat("m-1", BODY, 5)

    assert upstream.requests[0].body[member] == 5


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Whole({"error": {"message": "bad key sk-node"}}, status=401), "upstream_auth_error"),
        (Whole("no", status=403), "upstream_auth_error"),
        (Whole("slow down", status=429), "upstream_error"),
        (Whole("<html>", status=500), "upstream_error"),
        (Whole("", status=503), "upstream_error"),
        (Whole("", status=408), "upstream_timeout"),
        (Whole("", status=504), "upstream_timeout"),
        (Whole({}, status=404), "upstream_error"),
        (Whole("", status=302, headers=(("location", "http://elsewhere/"),)), "upstream_error"),
        (Whole({"error": {"code": "bad_thing", "param": "temperature"}}, status=400), "invalid_request"),
        (Whole({"error": {"code": "context_length_exceeded"}}, status=400), "context_length_exceeded"),
        (Whole({"error": "odd"}, status=422), "invalid_request"),
        (Whole("<html>"), "upstream_error"),
        (Whole([]), "upstream_error"),
        (Whole({"choices": []}), "upstream_error"),
        (Whole({"choices": [{"message": "x"}]}), "upstream_error"),
        (Whole({"choices": [{"message": {}}], "usage": {"prompt_tokens": -5}}), "upstream_error"),
        (Whole({"choices": [{"message": {}}], "usage": {"prompt_tokens": 2**63 - 1}}), "upstream_error"),
        (Whole({"choices": [{"message": {}}], "usage": {"completion_tokens": 10**30}}), "upstream_error"),
    ],
)
async def test_a_backends_failure_is_an_error_of_ours_without_its_words(answer: Whole, code: str) -> None:
    async with backend_before(ScriptedUpstream([answer]), api_key="sk-node") as backend:
        with pytest.raises(AgentOSError) as failed:
            await backend.chat("m-1", BODY, 5)

    assert failed.value.code == code
    assert "sk-node" not in failed.value.message + repr(failed.value.details)


async def test_a_refusal_of_the_request_names_the_member_but_quotes_nothing() -> None:
    told = {"error": {"code": "unsupported_value", "param": "temperature", "message": "ann@example.com said so"}}
    async with backend_before(ScriptedUpstream([Whole(told, status=400)])) as backend:
        with pytest.raises(InvalidArgument) as refused:
            await backend.chat("m-1", BODY, 5)

    assert refused.value.details == {
        "upstream_status": 400, "upstream_code": "unsupported_value", "upstream_param": "temperature"
    }  # fmt: skip
    assert "ann@" not in refused.value.message


@pytest.mark.parametrize("member", ["code", "param"])
async def test_a_refusal_that_gives_the_nodes_key_for_a_name_is_not_repeated(member: str) -> None:
    key = "9f2c4e71" * 4
    told = {"error": {"code": "unsupported_value", "param": "temperature", member: f"key_{key}"}}
    async with backend_before(ScriptedUpstream([Whole(told, status=400)]), api_key=key) as backend:
        with pytest.raises(InvalidArgument) as refused:
            await backend.chat("m-1", BODY, 5)

    assert key not in refused.value.message + repr(refused.value.details)
    assert len(refused.value.details) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(), "it can't be reached"),
        (TimeoutError(), "it can't be reached"),
        (ssl.SSLCertVerificationError(), "its certificate is not trusted"),
    ],
)
async def test_a_backend_out_of_reach_was_sent_nothing(error: OSError, told: str) -> None:
    async def fail(_: object) -> Connection:
        raise error

    backend = OpenAiCompatible(name="up", base_url="http://up", dial_by=fail)
    with pytest.raises(Unavailable, match=told) as failed:
        await backend.chat("m-1", BODY, 5)

    assert failed.value.code == "upstream_error"
    assert failed.value.details == {"sent": False}


async def test_its_models_are_asked_for_or_told() -> None:
    told = (ModelCard(id="mine", upstream="theirs"),)
    upstream = ScriptedUpstream(models=["llama3:8b", "nomic-embed-text"])

    async with backend_before(upstream) as asked, backend_before(upstream, models=told) as configured:
        assert [(card.id, card.chat, card.embed) for card in await asked.models()] == [
            ("llama3:8b", True, False), ("nomic-embed-text", False, True)
        ]  # fmt: skip
        assert await configured.models() == told


def test_events_are_the_same_however_the_bytes_are_split() -> None:
    raw = b': note\r\ndata: {"a":1}\r\n\r\nevent: x\ndata:{"b":\ndata: 2}\n\n\ndata: [DONE]\n\n'
    for size in range(1, len(raw)):
        decoder = SseDecoder()
        events = [event for at in range(0, len(raw), size) for event in decoder.feed(raw[at : at + size])]

        assert events == [b'{"a":1}', b'{"b":\n2}', b"[DONE]"]


def test_an_event_without_its_blank_line_is_not_lost_and_one_without_end_is_refused() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: last") == []
    assert decoder.close() == [b"last"]

    with pytest.raises(Unavailable):
        SseDecoder().feed(b"data: " + b"x" * MAX_EVENT_BYTES)


@pytest.mark.parametrize("piece", [b"x" * 1_024, b"data:\n" * 170], ids=["one line", "many lines"])
def test_a_huge_event_in_small_pieces_costs_what_its_bytes_cost(piece: bytes) -> None:
    decoder, began = SseDecoder(), time.process_time()
    decoder.feed(b"data: ")
    for _ in range(MAX_EVENT_BYTES // len(piece) - 1):
        assert decoder.feed(piece) == []

    # Copied whole with each piece, it takes half a minute.
    assert time.process_time() - began < 5


def test_vectors_go_both_ways() -> None:
    vector = [0.5, -1.0, 0.25]

    packed = encoded(vector, "base64")

    assert encoded(packed, "float") == vector
    assert encoded(packed, "base64") == packed
    assert encoded(vector, "float") == vector
    with pytest.raises(Unavailable):
        encoded("not base64!", "float")


class TestSettings:
    async def test_backends_come_from_the_configuration_the_environment_and_the_mode(self) -> None:
        explicit = parse_settings('[{"name": "vllm", "base_url": "http://10.0.0.7:8000/v1"}]')
        found = discovered({"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": "https://proxy.example/v1"})

        demo = merged(explicit, found, demo=True)
        prod = merged(explicit, found, demo=False)

        assert [backend.name for backend in demo] == ["vllm", "openai", "ollama", "demo"]
        assert [backend.name for backend in prod] == ["vllm", "openai", "ollama"]
        assert (demo[1].base_url, demo[1].api_key) == ("https://proxy.example/v1", "env:OPENAI_API_KEY")

    async def test_what_is_configured_is_not_found_a_second_time(self) -> None:
        explicit = parse_settings('[{"name": "local", "base_url": "http://127.0.0.1:11434/v1/"}]')

        assert [backend.name for backend in merged(explicit, discovered({}), demo=False)] == ["local"]

    @pytest.mark.parametrize(
        "text",
        [
            "{}", "[1]", '[{"name": "a"}]', '[{"name": "a", "base_url": "ftp://x"}]', '[{"name": "a", "kindd": "demo"}]',
            '[{"name": "a", "kind": "demo"}, {"name": "a", "kind": "demo"}]', "nonsense",
        ],
    )  # fmt: skip
    async def test_a_configuration_that_can_not_work_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidArgument):
            parse_settings(text)

    async def test_a_kind_that_does_not_exist_is_answered_with_those_that_do(self) -> None:
        with pytest.raises(InvalidArgument, match=r"'openia'.*openai_compatible or openai or .*demo"):
            parse_settings('[{"name": "a", "kind": "openia", "base_url": "http://a"}]')

    async def test_prices_are_decimal_text(self) -> None:
        [settings] = parse_settings(
            '[{"name": "a", "base_url": "http://a", "models":'
            ' [{"id": "m", "prompt_usd_per_million": "0.0375", "completion_usd_per_million": "0.15"}, {"id": "free"}]}]'
        )
        async with aclosing(open_backend(settings, SystemClock(), secret=lambda _: "", demo=False)) as backend:
            priced, free = await backend.models()

        assert priced.price is not None
        assert (priced.price.prompt, priced.price.completion) == (37_500_000, 150_000_000)
        assert free.price is None

    @pytest.mark.parametrize("price", ["cheap", "-1", "NaN", "0.0000000001"])
    async def test_a_price_that_is_none_is_refused(self, price: str) -> None:
        with pytest.raises(InvalidArgument, match="price"):
            parse_settings(
                f'[{{"name": "a", "base_url": "http://a", "models": [{{"id": "m", "prompt_usd_per_million": "{price}"}}]}}]'
            )

    async def test_the_demo_backend_is_not_served_in_production(self) -> None:
        settings = BackendSettings(name="demo", kind="demo")

        with pytest.raises(InvalidArgument, match="prod"):
            open_backend(settings, SystemClock(), secret=lambda _: "", demo=False)


class Moody(DemoBackend):
    """A backend whose listing fails when told to."""

    silent = False

    async def models(self) -> tuple[ModelCard, ...]:
        if self.silent:
            raise Unavailable("silent", code="upstream_error")
        return await super().models()


async def test_a_backend_that_falls_silent_keeps_its_models() -> None:
    backend = Moody(SystemClock())
    catalog = Catalog([backend], SystemClock())

    assert catalog.served() == ()
    assert await catalog.refresh()
    backend.silent = True
    assert not await catalog.refresh()
    assert len(catalog.served()) == 2


def candidate(model: str, *, name: str = "a", embed: bool = False) -> Candidate:
    backend: Backend = DemoBackend(SystemClock(), name=name)
    return Candidate(backend, ModelCard(id=model, upstream=model, chat=not embed, embed=embed))


def test_candidates_are_entitled_capable_and_in_order() -> None:
    served = [candidate("m", name="first"), candidate("e", embed=True), candidate("m", name="second"), candidate("x")]
    exact, every = Entitlements(models=("m", "e")), Entitlements()

    assert [found.backend.name for found in choose("m", "chat", exact, served)] == ["first", "second"]
    assert choose("x", "chat", exact, served) == ()
    assert len(choose("x", "chat", every, served)) == 1
    assert choose("e", "chat", every, served) == ()
    assert len(choose("e", "embed", exact, served)) == 1
    assert choose("*", "chat", every, served) == ()


@pytest.mark.parametrize(
    ("error", "allowed"),
    [
        (Unavailable("x", code="upstream_error"), True),
        (Unavailable("x", code="upstream_timeout"), True),
        (Unavailable("x"), True),
        (Unavailable("x", code="upstream_auth_error"), False),
        (InvalidArgument("x"), False),
        (PermissionDenied("x", code="policy_blocked"), False),
    ],
)
def test_only_an_unavailable_backend_is_passed_over(error: AgentOSError, *, allowed: bool) -> None:
    assert may_fall_back(error) is allowed


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("http://up", "up", "/chat/completions"),
        ("http://up:80/v1/", "up", "/v1/chat/completions"),
        ("http://up:8000/v1", "up:8000", "/v1/chat/completions"),
        ("https://up:443/v1", "up", "/v1/chat/completions"),
        ("http://[::1]:9/v1", "[::1]:9", "/v1/chat/completions"),
        ("http://b\u00fccher.example/v1", "xn--bcher-kva.example", "/v1/chat/completions"),
        ("http://up/openai?api-version=1", "up", "/openai/chat/completions?api-version=1"),
    ],
)
async def test_a_url_becomes_a_host_and_a_path(url: str, host: str, path: str) -> None:
    asked: list[Scope] = []
    upstream = ScriptedUpstream([completion()])

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope)
        await upstream(scope, receive, send)

    async with backend_before(watched, base_url=url) as backend:
        await backend.chat("m-1", BODY, 5)

    assert upstream.requests[0].headers["host"] == host
    assert asked[0]["raw_path"] == path.partition("?")[0].encode()
    assert asked[0]["query_string"] == path.partition("?")[2].encode()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://", "a host"), ("http://u:geheim@up/v1", "credentials"), ("http://up/v1\r\nx: y", "a host"),
        ("http://up:0", "a host"), ("http://up:99999", "a host"), ("ftp://up", "a host"), ("http://up/a b", "a host"),
        ("http://up/v\u00fc", "a host"),
        (f"http://{'a' * 64}\u00fc.example", "a host"),
    ],
)  # fmt: skip
async def test_a_url_that_leads_nowhere_is_refused_at_the_start_without_a_word_of_it(url: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        OpenAiCompatible(name="up", base_url=url)

    assert "geheim" not in refused.value.message


@pytest.mark.parametrize("key", ["", "sk-\n", "sk-a b", "sk-\r\nx-admin: 1", "sk-\u00e4"])
async def test_a_key_that_no_header_can_hold_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(InvalidArgument, match="api_key") as refused:
        OpenAiCompatible(name="up", base_url="http://up", api_key=key)

    assert "sk-" not in refused.value.message


async def test_too_many_calls_at_once_are_told_as_such() -> None:
    async def fail(_: object) -> Connection:
        raise NoRoom

    backend = OpenAiCompatible(name="up", base_url="http://up", dial_by=fail)
    with pytest.raises(Unavailable, match="too many calls") as failed:
        await backend.chat("m-1", BODY, 5)

    assert failed.value.code == "unavailable"
    assert failed.value.details == {}


class TestThePool:
    @asynccontextmanager
    async def over(self, app: ScriptedUpstream, **settings: Any) -> AsyncIterator[Pool]:
        pool = Pool(in_process(app), connect_s=5, **settings)
        try:
            with anyio.fail_after(10):
                yield pool
        finally:
            await pool.aclose()

    async def asked(self, pool: Pool) -> Answer:
        return await pool.ask(REQUEST, Patience(first=5, next=5))

    async def test_a_call_without_room_waits_its_turn(self) -> None:
        async with self.over(ScriptedUpstream([completion()]), most=1) as pool:
            first = await self.asked(pool)
            second = asyncio.create_task(self.asked(pool))
            await anyio.wait_all_tasks_blocked()
            waited = not second.done()
            await first.read(1_000)
            first.release()
            (await second).release()

        assert waited

    async def test_a_call_whose_turn_never_comes_is_told_that_nothing_was_sent(self) -> None:
        upstream = ScriptedUpstream([completion()])
        async with self.over(upstream, most=1, room_s=0.05) as pool:
            first = await self.asked(pool)
            with pytest.raises(NoRoom):
                await self.asked(pool)
            first.release()

        assert len(upstream.requests) == 1

    async def test_the_turn_of_a_caller_who_left_is_the_next_ones(self) -> None:
        async with self.over(ScriptedUpstream([completion()]), most=1) as pool:
            first = await self.asked(pool)
            leaves, stays = (asyncio.create_task(self.asked(pool)) for _ in range(2))
            await anyio.wait_all_tasks_blocked()
            # It is the first one's turn from here on, and it leaves before it hears of it.
            first.release()
            leaves.cancel()
            (await stays).release()
            with pytest.raises(asyncio.CancelledError):
                await leaves

    async def test_an_idle_connection_is_closed_after_a_while(self) -> None:
        async with self.over(ScriptedUpstream([completion()]), idle_s=0.05) as pool:
            answer = await self.asked(pool)
            await answer.read(1_000)
            answer.release()
            kept = len(pool._open)
            while pool._open:  # noqa: ASYNC110 - nobody is told of it
                await anyio.sleep(0.01)

        assert kept == 1

    async def test_more_idle_connections_than_are_of_use_are_closed(self) -> None:
        async with self.over(ScriptedUpstream([completion()]), kept=1) as pool:
            answers = [await self.asked(pool) for _ in range(3)]
            for answer in answers:
                await answer.read(1_000)
                answer.release()

            assert len(pool._idle) == 1

    async def test_a_pool_that_is_closed_lets_nobody_wait(self) -> None:
        async with self.over(ScriptedUpstream([completion()]), most=1) as pool:
            first = await self.asked(pool)
            second = asyncio.create_task(self.asked(pool))
            await anyio.wait_all_tasks_blocked()
            await pool.aclose()
            with pytest.raises(NotConnected):
                await second
            first.release()
