"""Each kind of backend against a server that insists on what is particular about it, and refuses everything else."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar, TypeAlias

import pytest

from adapters.inproc.provider import Answered, InprocProvider
from adapters.system_clock import SystemClock
from ports.errors import InvalidArgument, Unavailable
from ports.provider import Endpoint
from stack_b.backends.catalog import Catalog
from stack_b.backends.protocol import ModelCard, OpenBackend
from stack_b.backends.provided import ProvidedBackend
from stack_b.backends.settings import KINDS, endpoint_of, open_backend, parse_settings
from stack_b.chunks import written_out
from tests.support.rough_backend import LAST_CHUNK, SSE, Step, event, rough_backend, whole
from tests.support.scripted_upstream import completion, delta, usage

pytestmark = pytest.mark.anyio

KEY = "key-9d0c"
ASK = {"messages": [{"role": "user", "content": "hi"}]}
Json: TypeAlias = Any
Insists: TypeAlias = Callable[[str, dict[str, str], Json], bool]
"""Whether a request (its target, headers and body) is one that the server takes."""


def answered(request: bytes, insists: Insists, answer: Sequence[Step]) -> Sequence[Step]:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = dict(one.lower().split(": ", 1) for one in lines)
    if insists(line.split(" ")[1], headers, json.loads(body) if body else None):
        return answer
    return [whole(b'{"error": {"message": "not like this"}}', status="400 Bad Request")]


def said(body: Json) -> list[Step]:
    return [whole(json.dumps(body).encode())]


def streamed(*chunks: Json) -> list[Step]:
    return [SSE, *(event(json.dumps(chunk).encode()) for chunk in chunks), event(b"[DONE]"), LAST_CHUNK]


@asynccontextmanager
async def opened(kind: str, insists: Insists, answer: Sequence[Step], **settings: Json) -> AsyncIterator[OpenBackend]:
    async with rough_backend(lambda request: answered(request, insists, answer)) as rough:
        base = rough.url if settings.pop("with_v1", True) else rough.url.removesuffix("/v1")
        models = settings.pop("models", [{"id": "m"}])
        text = json.dumps([{"name": "up", "kind": kind, "base_url": base, "models": models, **settings}])
        [found] = parse_settings(text)
        backend = open_backend(found, SystemClock(), secret=lambda _: KEY, demo=False)
        async with aclosing(backend):
            yield backend


async def read(backend: OpenBackend, model: str) -> list[Json]:
    found: list[Json] = []
    async for pieces in backend.stream(model, ASK, 9):
        found += written_out(pieces if isinstance(pieces, list) else [pieces])
    return found


class TestAzure:
    OPTIONS: ClassVar[Json] = {"options": {"api_version": "2024-10-21"}, "api_key": "env:K", "with_v1": False}
    MODELS: ClassVar[Json] = [{"id": "large", "upstream": "my deployment"}]

    @staticmethod
    def insists(path: str) -> Insists:
        target = f"/openai/deployments/my%20deployment/{path}?api-version=2024-10-21"
        return lambda asked, headers, _: (
            asked == target and headers.get("api-key") == KEY and "authorization" not in headers
        )

    async def test_it_is_asked_by_deployment_version_and_a_key_of_its_own(self) -> None:
        insists = self.insists("chat/completions")
        # Its first chunk has no choice, but what its filter says.
        filtered: Json = {"choices": [], "prompt_filter_results": []}
        stream = streamed(filtered, delta("stop", role="assistant", content="hi"))
        body = completion("hi", usage=usage(3, 1)).body

        async with opened("azure", insists, said(body), models=self.MODELS, **self.OPTIONS) as backend:
            whole_answer = await backend.chat("my deployment", ASK, 9)
        async with opened("azure", insists, stream, models=self.MODELS, **self.OPTIONS) as backend:
            chunks = await read(backend, "my deployment")

        assert whole_answer["choices"][0]["message"]["content"] == "hi"
        assert chunks[0] == filtered

    async def test_its_embeddings_are_asked_in_the_same_way(self) -> None:
        body = {"data": [{"embedding": [0.5], "index": 0}]}
        async with opened(
            "azure", self.insists("embeddings"), said(body), models=self.MODELS, **self.OPTIONS
        ) as backend:
            assert (await backend.embed("my deployment", {"input": ["a"]}))["data"] == body["data"]

    @pytest.mark.parametrize(
        "settings",
        [
            {"models": [{"id": "m"}], "base_url": "https://a.example"},
            {"models": [{"id": "m"}], "base_url": "https://a.example?api-version=1", "options": {"api_version": "1"}},
            {"base_url": "https://a.example", "options": {"api_version": "1"}},
        ],
    )
    async def test_one_without_a_version_or_deployments_is_refused(self, settings: Json) -> None:
        with pytest.raises(InvalidArgument, match="azure"):
            parse_settings(json.dumps([{"name": "a", "kind": "azure", **settings}]))


class TestVllm:
    async def test_it_says_in_words_that_a_prompt_is_too_long(self) -> None:
        words = "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens: CANARY"
        for refused in (
            {"object": "error", "message": words, "type": "BadRequestError", "param": None, "code": 400},
            {"error": {"message": words, "type": "BadRequestError", "param": None, "code": 400}},
        ):
            answer = [whole(json.dumps(refused).encode(), status="400 Bad Request")]
            async with opened("vllm", lambda *_: True, answer) as backend:
                with pytest.raises(InvalidArgument) as raised:
                    await backend.chat("m", ASK, 9)

            assert raised.value.code == "context_length_exceeded"
            assert "CANARY" not in f"{raised.value} {raised.value.details}"

    async def test_members_that_only_it_knows_are_sent_with_every_request(self) -> None:
        members = {"chat_template_kwargs": {"enable_thinking": False}}
        async with opened(
            "vllm",
            lambda _, __, body: body["chat_template_kwargs"] == {"enable_thinking": False} and body["max_tokens"] == 9,
            said(completion("hi").body),
            members=members,
        ) as backend:
            assert await backend.chat("m", ASK, 9)


class TestTgi:
    async def test_its_model_has_one_name_and_its_arguments_become_text(self) -> None:
        call = {"id": "0", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        insists: Insists = lambda _, __, body: body["model"] == "tgi"  # noqa: E731 - as short as the others
        whole_answer = said(completion("", tool_calls=[call]).body)
        fragment = {"index": 0, "id": "0", "function": {"name": "f", "arguments": {"a": 1}}}
        stream = streamed(delta(role="assistant", tool_calls=[fragment]), delta("tool_calls"))

        async with opened("tgi", insists, whole_answer) as backend:
            [card] = await backend.models()
            answer = await backend.chat(card.upstream, ASK, 9)
        async with opened("tgi", insists, stream) as backend:
            chunks = await read(backend, card.upstream)

        assert card == ModelCard(id="m", upstream="tgi")
        assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'
        assert chunks[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'

    async def test_its_refusal_of_a_prompt_that_is_too_long_is_told_as_that(self) -> None:
        words = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 9000"
        refused = json.dumps({"error": words, "error_type": "validation"}).encode()
        async with opened("tgi", lambda *_: True, [whole(refused, status="422 Unprocessable Entity")]) as backend:
            with pytest.raises(InvalidArgument) as raised:
                await backend.chat("m", ASK, 9)

        assert raised.value.code == "context_length_exceeded"

    async def test_an_error_in_its_stream_is_one(self) -> None:
        broken = streamed(delta(role="assistant", content="h"), {"error": "Request failed", "error_type": "generation"})
        async with opened("tgi", lambda *_: True, broken) as backend:
            with pytest.raises(Unavailable):
                await read(backend, "tgi")


class TestOllama:
    async def test_it_gets_its_options_and_no_key(self) -> None:
        members = {"options": {"num_ctx": 8192}, "keep_alive": "10m"}
        async with opened(
            "ollama",
            lambda _, headers, body: (
                {name: body.get(name) for name in members} == members and "authorization" not in headers
            ),
            said(completion("hi").body),
            members=members,
        ) as backend:
            assert await backend.chat("m", ASK, 9)

    async def test_where_it_is_need_not_be_said(self) -> None:
        [settings] = parse_settings('[{"name": "o", "kind": "ollama"}]')

        async with aclosing(open_backend(settings, SystemClock(), secret=lambda _: KEY, demo=False)) as backend:
            assert backend.name == "o"


class TestOpenAi:
    async def test_its_newer_member_may_be_asked_for_and_the_client_can_not_say_the_other(self) -> None:
        async with opened(
            "openai",
            lambda _, headers, body: (
                headers["authorization"] == f"bearer {KEY}"
                and body["max_completion_tokens"] == 9
                and "max_tokens" not in body
            ),
            said(completion("hi").body),
            api_key="env:K",
            max_tokens_member="max_completion_tokens",
        ) as backend:
            assert await backend.chat("m", ASK, 9)


class TestSettings:
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "demo"])
    @pytest.mark.parametrize("member", ["model", "messages", "stream", "max_tokens", "n"])
    async def test_no_kind_lets_its_members_say_what_the_gateway_says(self, kind: str, member: str) -> None:
        settings = {
            "name": "a", "kind": kind, "base_url": "http://a", "api_key": "env:K", "models": [{"id": "m"}],
            "members": {member: 1}, "options": {"api_version": "1"} if kind == "azure" else {},
        }  # fmt: skip
        with pytest.raises(InvalidArgument, match="the gateway's own"):
            parse_settings(json.dumps([settings]))

    @pytest.mark.parametrize(
        "settings",
        [
            {"kind": "anthropic", "models": [{"id": "m"}]}, {"kind": "anthropic", "api_key": "env:K"},
            {"kind": "anthropic", "api_key": "env:K", "models": [{"id": "m"}], "ca_file": "/x"},
            {"kind": "vllm", "base_url": "http://a", "options": {"region": "x"}}, {"kind": "vllm"}, {"kind": "tgi"},
        ],
    )  # fmt: skip
    async def test_what_can_not_be_reached_is_refused(self, settings: Json) -> None:
        with pytest.raises(InvalidArgument):
            parse_settings(json.dumps([{"name": "a", **settings}]))

    async def test_a_provided_kind_needs_the_port_and_what_its_adapter_asks_for(self) -> None:
        [settings] = parse_settings(
            '[{"name": "a", "kind": "bedrock", "api_key": "env:K", "models": [{"id": "m"}], "timeout_s": 7}]'
        )

        with pytest.raises(InvalidArgument, match="'provider'"):
            open_backend(settings, SystemClock(), secret=lambda _: KEY, demo=False)
        with pytest.raises(InvalidArgument, match="api_key"):
            open_backend(settings, SystemClock(), secret=lambda _: "", demo=False, provider=InprocProvider())
        assert endpoint_of(settings, KEY) == Endpoint(
            provider="bedrock", api_key=KEY, connect_s=5.0, first_byte_s=7.0, next_byte_s=7.0
        )


class TestProvided:
    AT = Endpoint(provider="anthropic", api_key=KEY)
    CARDS = (ModelCard(id="claude", upstream="claude-up"),)

    def backend(self, *steps: Answered) -> ProvidedBackend:
        return ProvidedBackend(name="a", provider=InprocProvider(list(steps)), at=self.AT, models=self.CARDS)

    async def test_its_models_are_served_once_the_port_is_prepared(self) -> None:
        catalog = Catalog([self.backend()], SystemClock())
        before = catalog.served()
        await catalog.refresh()

        assert before == ()
        assert [candidate.card.id for candidate in catalog.served()] == ["claude"]

    @pytest.mark.parametrize("usage", [{"prompt_tokens": -1}, {"prompt_tokens": "many"}, {"completion_tokens": 10**12}])
    async def test_a_count_that_can_not_be_is_no_answer(self, usage: Json) -> None:
        with pytest.raises(Unavailable) as raised:
            await self.backend(Answered(text="hi", usage=usage)).chat("claude-up", ASK, 9)
        with pytest.raises(Unavailable):
            async for _ in self.backend(Answered(text="hi", usage=usage)).stream("claude-up", ASK, 9):
                pass

        assert raised.value.details["outcome"] == "unknown"

    async def test_what_a_client_says_to_the_gateway_goes_no_further(self) -> None:
        # The provider of this process refuses what it does not know, as every one does.
        answer = await self.backend().chat("claude-up", ASK | {"metadata": {"agent_id": "agt_1"}}, 9)

        assert answer["choices"][0]["message"]["content"] == "hi"
