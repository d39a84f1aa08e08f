"""Which members of a request reach a backend: what clients and usual servers know, and what an operator lets pass."""

from collections.abc import Mapping
from typing import Any, Final

import pytest

from ports.errors import InvalidArgument
from ports.messages import Json
from stack_b.backends.protocol import ModelCard
from stack_b.backends.reach import Reach
from stack_b.backends.settings import parse_settings
from stack_b.http.surfaces import messages_in, responses_in
from stack_b.http.surfaces.messages_wire import CountBody, MessagesBody
from stack_b.http.surfaces.responses_wire import ResponsesBody
from stack_b.limits import Limits
from stack_b.members import CHAT, EMBED, NEVER, SAMPLING, WITHIN
from tests.support.http_server import served
from tests.support.scripted_upstream import ScriptedUpstream, completion
from tests.support.stack_b import StackB, stack_b, upstream_at

pytestmark = [pytest.mark.anyio]

CHAT_PATH: Final = "/v1/chat/completions"
ASKED: Final[dict[str, Any]] = {"model": "m-1", "messages": [{"role": "user", "content": "hello"}]}
EVERY: Final[dict[str, Any]] = {
    **ASKED,
    "frequency_penalty": 0.1, "logit_bias": {"1": 1.0}, "logprobs": True, "max_completion_tokens": 9, "max_tokens": 9,
    "metadata": {"k": "v"}, "modalities": ["text"], "n": 1, "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "hi"}, "presence_penalty": 0.1, "prompt_cache_key": "k",
    "prompt_cache_retention": "in_memory", "reasoning_effort": "low", "response_format": {"type": "text"},
    "safety_identifier": "s", "seed": 1, "service_tier": "auto", "stop": ["x"], "store": False, "temperature": 0.5,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "auto",
    "top_logprobs": 1, "top_p": 0.5, "user": "u", "verbosity": "low", "functions": [{"name": "g"}], "function_call": "auto",
    "audio": None, "moderation": None, "prompt_cache_options": None, "web_search_options": None,
}  # fmt: skip
"""All that OpenAI's client may say without streaming."""
MODELS: Final = (ModelCard(id="m-1", upstream="m-1"),)
_OURS: Final = frozenset({"model", "n", "max_tokens", "max_completion_tokens"})
"""What the gateway says itself."""


async def test_whatever_the_official_clients_may_say_is_decided() -> None:
    """A new release of a client that knows more fails here: say what becomes of it."""
    # Seconds, of every process that reads this file.
    from anthropic.types.message_count_tokens_params import MessageCountTokensParams
    from anthropic.types.message_create_params import MessageCreateParamsStreaming
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
    from openai.types.embedding_create_params import EmbeddingCreateParams
    from openai.types.responses.response_create_params import ResponseCreateParamsStreaming

    here: Mapping[Any, set[str]] = {
        CompletionCreateParamsStreaming: {*CHAT, *WITHIN},
        EmbeddingCreateParams: set(EMBED),
        ResponseCreateParamsStreaming: {*ResponsesBody.__struct_fields__, *responses_in.HARMLESS},
        MessageCreateParamsStreaming: {*MessagesBody.__struct_fields__, *messages_in.HARMLESS},
        MessageCountTokensParams: {*CountBody.__struct_fields__, *messages_in.HARMLESS},
    }
    for params, decided in here.items():
        assert params.__annotations__.keys() - decided == set(), params
    assert CompletionCreateParamsStreaming.__annotations__.keys() - {"stream", "stream_options"} == EVERY.keys()


async def test_no_member_is_both_taken_and_refused() -> None:
    assert NEVER & (CHAT | WITHIN.keys() | EMBED) == set()
    assert CHAT & WITHIN.keys() == set()


async def _sent(value: dict[str, Any], *, passes: tuple[str, ...] = ()) -> tuple[int, dict[str, Any], list[Json]]:
    """What is answered, and what the backend was sent."""
    upstream = ScriptedUpstream([completion()])
    async with (
        served(upstream) as url,
        upstream_at(url, models=MODELS) as backend,
        stack_b(backend, reaches={"up": Reach(passes=frozenset(passes))}) as node,
    ):
        answer = await node.post(CHAT_PATH, value)
    return answer.status_code, answer.json(), [one.body for one in upstream.requests]


async def test_every_member_of_the_official_client_arrives_as_it_was_said() -> None:
    status, answer, [sent] = await _sent(EVERY)

    assert status == 200, answer
    assert {name: sent[name] for name in EVERY.keys() - _OURS} == {name: EVERY[name] for name in EVERY.keys() - _OURS}


async def test_how_the_next_token_is_chosen_is_the_clients() -> None:
    said: dict[str, Any] = {name: ["as", "said"] for name in SAMPLING}
    status, answer, [sent] = await _sent({**ASKED, **said})

    assert status == 200, answer
    assert {name: sent[name] for name in said} == said


_THOUGHTS: Final[tuple[dict[str, Json], ...]] = (
    {"thinking": {"type": "enabled", "budget_tokens": 101}},
    {"thinking": {"config": [{"thinkingBudget": "101"}]}},
    {"reasoning": {"max_tokens": 101}},
    {"reasoning": {"max_tokens": 100.5}},
    {"reasoning": {"max_tokens": -1}},
    {"reasoning": 101},
    {"think": 101},
)


@pytest.mark.parametrize("more", _THOUGHTS)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/policy/check"])
async def test_no_more_may_be_thought_than_may_be_written(path: str, more: dict[str, Json]) -> None:
    """The budget holds as much as may be written: thoughts are in it."""
    asked = {"model": "agentos-demo", "messages": ASKED["messages"], "max_tokens": 100}
    async with stack_b() as node:
        answer = await node.post(path, asked | more)
        balance = await node.balance()

    error = answer.json()["error"]
    [name] = more
    assert (answer.status_code, error["details"]["path"]) == (400, f"$.{name}")
    assert "100" in error["message"]
    assert (balance.held, balance.settled) == (0, 0)


async def test_as_much_may_be_thought_as_may_be_written() -> None:
    more = {"thinking": {"type": "enabled", "budget_tokens": 100}, "reasoning": {"effort": "low", "max_tokens": 100}}
    status, answer, [sent] = await _sent({**ASKED, **more, "max_tokens": 100})

    assert (status, {name: sent[name] for name in more}) == (200, more), answer


async def test_without_a_limit_of_its_own_the_nodes_bounds_what_is_thought() -> None:
    async with stack_b(limits=Limits(default_output_tokens=50)) as node:
        answers = [await node.chat(thinking={"budget_tokens": tokens}) for tokens in (50, 51)]

    assert [answer.status_code for answer in answers] == [200, 400]


UNKNOWN: Final[dict[str, Json]] = {
    "plugins": [{"id": "web"}], "data_sources": [{"type": "azure_search"}], "transforms": ["middle-out"],
    "safe_prompt": True, "enable_search": True, "background": True, "mcp_servers": [{"url": "https://x.test"}],
    "container": "c", "prompt": {"id": "pmpt_1"}, "previous_response_id": "resp_1", "conversation": "conv_1",
    "web_search_options": {}, "service_tier": "priority", "modalities": ["text", "audio"], "audio": {"voice": "v"},
    "moderation": {"mode": "x"}, "thinking_budget": 10**6, "chat_template": "{{ x }}", "guided_decoding_backend": "b",
    "store": True, "prompt_cache_retention": "24h", "an_unknown_member": 1, "x" * 300: 1,
}  # fmt: skip


async def test_what_nobody_is_known_to_take_is_refused_by_name() -> None:
    async with stack_b(reaches={"demo": Reach(passes=frozenset({"something_else"}))}) as node:
        for name, said in UNKNOWN.items():
            answer = await node.chat(**{name: said})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "invalid_request"), name
            assert error["details"]["path"] == f"$.{name[:64]}"
            assert name[:64] in error["message"]
            assert "pass_members" in error["message"]


async def test_what_the_operator_says_a_backend_takes_arrives() -> None:
    status, answer, [sent] = await _sent({**ASKED, **UNKNOWN}, passes=tuple(UNKNOWN))

    assert status == 200, answer
    assert {name: sent[name] for name in UNKNOWN} == UNKNOWN


@pytest.mark.parametrize("kind", ["web_search", "mcp", "code_interpreter", "namespace"])
async def test_tools_that_the_provider_runs_are_passed_on_only_where_the_operator_says_so(kind: str) -> None:
    tools = [EVERY["tools"][0], {"type": kind, "server_url": "https://x.test"}]
    status, answer, sent = await _sent({**ASKED, "tools": tools})
    passed, _, [arrived] = await _sent({**ASKED, "tools": tools}, passes=(f"tools.{kind}",))

    assert (status, answer["error"]["details"]["path"], sent) == (400, "$.tools", [])
    assert kind in answer["error"]["message"]
    assert (passed, arrived["tools"]) == (200, tools)


_FUNCTION: Final[dict[str, Json]] = {"type": "function", "function": {"name": "f"}}
_HIDDEN: Final[tuple[tuple[dict[str, Any], str], ...]] = (
    ({"tools": [{"googleSearch": {}}]}, "googleSearch"),
    ({"tools": [{"google_search": {}}]}, "google_search"),
    ({"tools": [_FUNCTION, {"codeExecution": {}}]}, "codeExecution"),
    ({"tools": [{**_FUNCTION, "web_search": {}}]}, "web_search"),
    ({"tools": [{"name": "f", "input_schema": {}, "url_context": None}]}, "url_context"),
    ({"functions": [{"name": "f", "type": "web_search"}]}, "web_search"),
    ({"functions": [{"name": "f", "googleSearch": {}}]}, "googleSearch"),
)


@pytest.mark.parametrize(("said", "kind"), _HIDDEN)
async def test_a_tool_that_the_provider_runs_needs_no_type_to_be_one(said: dict[str, Any], kind: str) -> None:
    status, answer, sent = await _sent({**ASKED, **said})
    passed, _, [arrived] = await _sent({**ASKED, **said}, passes=(f"tools.{kind}",))

    assert (status, answer["error"]["details"]["path"], sent) == (400, "$.tools", [])
    assert repr(kind) in answer["error"]["message"]
    assert passed == 200
    assert {name: arrived[name] for name in said} == said


@pytest.mark.parametrize(
    "tool",
    [
        {"function": {"name": "f"}},
        {"type": "custom", "custom": {"name": "f"}},
        {"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": True},
        {"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral"}},
    ],
)
async def test_a_tool_of_the_client_in_another_surfaces_words_arrives(tool: dict[str, Json]) -> None:
    status, answer, [sent] = await _sent({**ASKED, "tools": [tool]})

    assert (status, sent["tools"]) == (200, [tool]), answer


async def test_a_function_is_an_object() -> None:
    status, answer, sent = await _sent({**ASKED, "functions": ["web_search"]})

    assert (status, answer["error"]["details"]["path"], sent) == (422, "$.functions", [])


async def test_a_member_that_is_called_like_a_kind_of_tool_is_none() -> None:
    status, answer, sent = await _sent({**ASKED, "tools.web_search": {}}, passes=("tools.web_search",))

    assert (status, answer["error"]["details"]["path"], sent) == (400, "$.tools.web_search", [])


async def test_what_is_harmless_in_a_chat_is_not_known_of_embeddings() -> None:
    asked = {"model": "agentos-demo-embed", "input": "x"}
    async with stack_b() as node:
        for more in ({"service_tier": "flex"}, {"modalities": ["text"]}, {"audio": None}):
            answer = await node.post("/v1/embeddings", asked | more)
            [name] = more
            assert (answer.status_code, answer.json()["error"]["details"]["path"]) == (400, f"$.{name}")


async def test_of_several_backends_those_are_asked_that_take_it() -> None:
    first, second = ScriptedUpstream([completion()]), ScriptedUpstream([completion()])
    async with (
        served(first) as one,
        served(second) as two,
        upstream_at(one, name="one", models=MODELS) as up,
        upstream_at(two, name="two", models=MODELS) as other,
        stack_b(up, other, reaches={"two": Reach(passes=frozenset({"plugins"}))}) as node,
    ):
        answer = await node.post(CHAT_PATH, {**ASKED, "plugins": []})

    assert answer.json()["route"]["backend"] == "two"
    assert (len(first.requests), len(second.requests)) == (0, 1)


@pytest.mark.parametrize("path", ["/v1/policy/check", "/v1/embeddings"])
async def test_it_is_so_where_one_asks_first_and_for_embeddings(path: str) -> None:
    body = {**ASKED, "plugins": []} if "check" in path else {"model": "agentos-demo-embed", "input": "x", "plugins": []}
    if "check" in path:
        body["model"] = "agentos-demo"
    async with stack_b() as node:
        answer = await node.post(path, body)

    assert (answer.status_code, answer.json()["error"]["details"]["path"]) == (400, "$.plugins")


async def test_a_dearer_service_tier_of_a_response_is_refused_too() -> None:
    async with stack_b() as node:
        answers = [
            await node.post("/v1/responses", {"model": "agentos-demo", "input": "x", "service_tier": tier})
            for tier in ("auto", "priority")
        ]

    assert [answer.status_code for answer in answers] == [200, 400]


async def test_an_operator_passes_no_member_on_that_steers_or_widens() -> None:
    text = '[{"name": "up", "base_url": "https://x.test", "pass_members": ["plugins", %s]}]'

    [settings] = parse_settings(text % '"tools.web_search"')
    assert settings.reach.passes == {"plugins", "tools.web_search"}
    for name in ("models", "best_of"):
        with pytest.raises(InvalidArgument, match=f"pass_members .*{name}"):
            parse_settings(text % f'"{name}"')


async def test_a_model_that_is_not_the_tenants_is_not_told_apart_by_what_it_takes() -> None:
    async with stack_b(models=("none",)) as node:
        answers = [await _ask(node), await _ask(node, plugins=[])]

    assert [answer["error"]["code"] for answer in answers] == ["model_not_entitled"] * 2


async def _ask(node: StackB, **more: Any) -> Any:
    return (await node.post(CHAT_PATH, {**ASKED, **more})).json()
