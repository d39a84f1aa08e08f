"""OpenAI's responses and Anthropic's messages as canonical calls: what is carried, and what is refused by name."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ports.errors import AgentOSError, InvalidArgument, Unsupported
from stack_b.budget.estimate import MEDIA_TOKENS
from stack_b.http.surfaces.messages_in import FAILED, counted, input_tokens, messages
from stack_b.http.surfaces.responses_in import responses
from stack_b.limits import Limits
from stack_b.members import STEERING, WIDENING

LIMITS = Limits()
HELLO = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {}}
IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
READ = {"/v1/responses": responses, "/v1/messages": messages}


def response(**members: Any) -> dict[str, Any]:
    return {"model": "m", "input": "hello", **members}


def message(*said: Any, **members: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": list(said) or [HELLO], **members}


def asked(value: dict[str, Any]) -> dict[str, Any]:
    """The canonical members of a request of either kind."""
    call, _ = (responses if "input" in value else messages)(value, LIMITS)
    return call.members


def test_a_response_is_a_chat_with_its_instructions_before_it() -> None:
    call, _ = responses(
        response(
            instructions="be brief",
            max_output_tokens=7,
            temperature=0.5,
            reasoning={"effort": "low", "summary": "auto"},
            text={"verbosity": "low", "format": {"type": "json_object"}},
            tools=[{"type": "function", "name": "f", "parameters": SCHEMA, "strict": None}],
            tool_choice={"type": "function", "name": "f"},
            parallel_tool_calls=False,
            metadata={"ours": "alone"},
            user="u",
            store=False,
            truncation="disabled",
            include=["reasoning.encrypted_content"],
            previous_response_id=None,
            stream=True,
            stream_options={"include_obfuscation": False},
        ),
        LIMITS,
    )

    assert (call.model, call.max_tokens, call.choices, call.stream) == ("m", 7, 1, True)
    assert call.members == {
        "messages": [{"role": "system", "content": "be brief"}, HELLO],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "verbosity": "low",
        "reasoning_effort": "low",
        "temperature": 0.5,
        "user": "u",
    }


def test_function_calls_of_a_response_are_one_turn_with_what_was_said() -> None:
    def call(number: int) -> dict[str, Any]:
        return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}", "id": None}

    def made(number: int) -> dict[str, Any]:
        return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    said = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
        {"type": "output_text", "text": "let me see", "annotations": [], "logprobs": None}]}  # fmt: skip
    picture = {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "low", "file_id": None}
    result = {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}, picture]}
    members = asked(
        response(
            input=[HELLO, said, call(1), call(2), {"type": "function_call_output", "call_id": "c1", "output": "1"}, result,
                   call(3)]
        )
    )  # fmt: skip

    assert members["messages"] == [
        HELLO,
        {"role": "assistant", "content": "let me see", "tool_calls": [made(1), made(2)]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": [
            {"type": "text", "text": "2"},
            {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}}]},
        {"role": "assistant", "content": None, "tool_calls": [made(3)]},
    ]  # fmt: skip


def test_files_sounds_and_refusals_of_a_response_are_carried() -> None:
    parts = [
        {"type": "input_file", "file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't"}]}
    members = asked(response(input=[{"role": "user", "content": parts}, refusal, HELLO]))

    assert members["messages"][0]["content"] == [
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]
    assert members["messages"][1]["content"] == [{"type": "refusal", "refusal": "I won't"}]


def test_a_message_is_a_chat_with_its_system_prompt_before_it() -> None:
    call, _ = messages(
        message(
            system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief", "cache_control": {"type": "x"}}],
            temperature=0.5,
            top_k=3,
            stop_sequences=["END"],
            metadata={"user_id": "u"},
            tools=[{"name": "f", "input_schema": SCHEMA, "cache_control": None}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            output_config={"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
            thinking={"type": "adaptive", "display": None},
            service_tier="auto",
            stream=True,
        ),
        LIMITS,
    )

    assert (call.model, call.max_tokens, call.stream) == ("m", 9, True)
    assert call.members == {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]}, HELLO,
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA, "strict": True},
        },
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["END"],
        "user": "u",
    }  # fmt: skip


def test_results_of_tools_come_before_what_the_user_says_with_them() -> None:
    calls = {"role": "assistant", "content": [
        {"type": "text", "text": "let me see"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
    ]}  # fmt: skip
    results = {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "no such thing", "is_error": True},
        {"type": "text", "text": "and now?"},
    ]}  # fmt: skip
    members = asked(message(HELLO, calls, results))

    assert members["messages"] == [
        HELLO,
        {"role": "assistant", "content": "let me see", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "t2", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "t1", "content": "1"},
        {"role": "tool", "tool_call_id": "t2", "content": f"{FAILED}\nno such thing"},
        {"role": "user", "content": "and now?"},
    ]  # fmt: skip


def test_images_and_documents_of_a_message_are_carried() -> None:
    url = {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}}
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "read me"}}
    pdf = {"type": "document", "title": "a.pdf", "source": {
        "type": "base64", "media_type": "application/pdf", "data": "aGk="}}  # fmt: skip
    result = {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}
    members = asked(message({"role": "user", "content": [result, IMAGE, url, text, pdf]}))

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    assert members["messages"] == [
        {"role": "tool", "tool_call_id": "t", "content": [picture]},
        {"role": "user", "content": [
            picture,
            {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
            {"type": "text", "text": "read me"},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}}]},
    ]  # fmt: skip


def test_a_count_of_tokens_takes_a_message_without_its_limit() -> None:
    call = counted({"model": "m", "messages": [HELLO], "system": "be brief"}, LIMITS)

    assert call.max_tokens is None
    assert call.members["messages"] == [{"role": "system", "content": "be brief"}, HELLO]


def test_an_image_is_counted_as_one_and_not_by_its_bytes() -> None:
    def count(*blocks: Any) -> int:
        return input_tokens(counted({"model": "m", "messages": [{"role": "user", "content": list(blocks)}]}, LIMITS))

    large = {"type": "image", "source": {**IMAGE["source"], "data": "aGk=" * 100_000}}
    text = {"type": "text", "text": "what is it?"}

    assert count(text, large) == count(text, IMAGE)
    assert MEDIA_TOKENS < count(text, IMAGE) < count(text, IMAGE, IMAGE) < 3 * MEDIA_TOKENS
    assert count(text) < 50


def part(**members: Any) -> dict[str, Any]:
    return response(input=[{"role": "user", "content": [members]}])


def block(**members: Any) -> dict[str, Any]:
    return message({"role": "user", "content": [members]})


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (response(store=True), "$.store"),
        (response(background=True), "$.background"),
        (response(previous_response_id="resp_1"), "$.previous_response_id"),
        (response(conversation="conv_1"), "$.conversation"),
        (response(prompt={"id": "p"}), "$.prompt"),
        (response(truncation="auto"), "$.truncation"),
        (response(include=["message.output_text.logprobs"]), "$.include"),
        (response(tools=[{"type": "web_search"}]), "$.tools[0].type"),
        (response(tool_choice={"type": "mcp", "server_label": "x"}), "$.tool_choice.type"),
        (response(input=[{"type": "item_reference", "id": "msg_1"}]), "$.input[0].type"),
        (response(input=[{"type": "reasoning", "summary": []}]), "$.input[0].type"),
        (part(type="input_video"), "$.input[0].content[0].type"),
        (message(thinking={"type": "enabled", "budget_tokens": 2_000}), "$.thinking.type"),
        (message(container="c"), "$.container"),
        (message(mcp_servers=[{"url": "https://x.test"}]), "$.mcp_servers"),
        (message(speed="fast"), "$.speed"),
        (message(service_tier="standard_only"), "$.service_tier"),
        (message(tools=[{"type": "bash_20250124", "name": "bash"}]), "$.tools[0].type"),
        (message(HELLO, {"role": "assistant", "content": "It is"}), "$.messages[1].role"),
        (block(type="thinking", thinking="hm", signature="s"), "$.messages[0].content[0].type"),
        (
            block(type="document", source={"type": "url", "url": "https://x.test"}),
            "$.messages[0].content[0].source.type",
        ),
        (block(type="image", source={"type": "file", "file_id": "f"}), "$.messages[0].content[0].source.type"),
    ],
)
def test_what_has_no_counterpart_is_unsupported_and_named(body: dict[str, Any], path: str) -> None:
    with pytest.raises(Unsupported) as refused:
        asked(body)

    assert refused.value.details["path"] == path
    assert refused.value.message.startswith(path)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"input": "hello"}, "$"),
        (response(model=""), "$.model"),
        (response(input=[]), "$.input"),
        (response(input=7), "$.input"),
        (response(input=[{"role": "tool", "content": "x"}]), "$.input[0].role"),
        (response(input=[HELLO] * 2_049), "$.input"),
        (response(input=[HELLO] * 2_048, instructions="be brief"), "$.input"),
        (response(max_output_tokens=0), "$.max_output_tokens"),
        (response(max_output_tokens=2**40), "$.max_output_tokens"),
        (response(max_tokens=5), "$.max_tokens"),
        (response(n=2), "$.n"),
        (response(temperature=2.5), "$.temperature"),
        (response(tools=[{"type": "function", "name": "f"}] * 129), "$.tools"),
        (response(reasoning={"summary": "detailed"}), "$.reasoning.summary"),
        (message(thinking={"type": "adaptive", "display": "summarized"}), "$.thinking.display"),
        (response(stream_options={"include_obfuscation": True}), "$.stream_options.include_obfuscation"),
        (response(future="member"), "$.future"),
        (response(input=[{**HELLO, "future": 1}]), "$.input[0].future"),
        (part(type="input_image", file_id="file_1"), "$.input[0].content[0].file_id"),
        ({"model": "m", "messages": [HELLO]}, "$"),
        (message(max_tokens=0), "$.max_tokens"),
        (message(max_tokens=2**40), "$.max_tokens"),
        (message(n=2), "$.n"),
        (message(max_completion_tokens=2), "$.max_completion_tokens"),
        (message(temperature=1.5), "$.temperature"),
        (message(*[HELLO] * 2_049), "$.messages"),
        (message(stop_sequences=["a"] * 5), "$.stop_sequences"),
        (message(tools=[{"name": "f", "input_schema": SCHEMA}] * 129), "$.tools"),
        (message({"role": "tool", "content": "x"}), "$.messages[0].role"),
        (message({"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "t"}]}, HELLO),
         "$.messages[0].content"),
        (block(type="tool_use", id="t", name="f", input={}), "$.messages[0].content"),
        (block(type="tool_use", id="t", name="f", input="{}"), "$.messages[0].content[0].input"),
        (message(future="member"), "$.future"),
        (block(type="text", text="a", future=1), "$.messages[0].content[0].future"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_the_very_member(body: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        asked(body)

    assert refused.value.code == "validation_failed"
    assert refused.value.details["path"] == path


@pytest.mark.parametrize("surface", sorted(READ))
@pytest.mark.parametrize("name", sorted({*STEERING, *WIDENING} - {"max_output_tokens"}))
def test_no_surface_lets_a_client_steer_or_widen(surface: str, name: str) -> None:
    body = response() if surface == "/v1/responses" else message()
    with pytest.raises(InvalidArgument) as refused:
        READ[surface](body | {name: None}, LIMITS)

    assert refused.value.details["path"] == f"$.{name}"
    assert "is not taken" in refused.value.message


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (message(max_output_tokens=5), "max_tokens"),
        (message(n=5), "max_tokens"),
        (response(max_tokens=5), "max_output_tokens"),
        (response(n=5), "max_output_tokens"),
    ],
)
def test_the_limit_of_another_surface_is_refused_with_the_name_it_has_here(body: dict[str, Any], limit: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        asked(body)

    assert refused.value.message.endswith(f"say how much may be written with {limit}")


NAMES = st.sampled_from(
    ["model", "input", "messages", "system", "instructions", "role", "content", "type", "text", "tools", "tool_choice",
     "name", "source", "stream", "text", "reasoning", "metadata", "output_config", "max_tokens", "thinking", "include", "x"]
)  # fmt: skip
WORDS = st.sampled_from(
    [
        "user",
        "assistant",
        "message",
        "text",
        "image",
        "input_text",
        "tool_result",
        "function",
        "function_call",
        "m",
        "auto",
    ]
)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.parametrize("surface", sorted(READ))
@settings(max_examples=150, deadline=None)
@given(members=st.dictionaries(NAMES, JSON, max_size=8), whole=st.booleans())
def test_whatever_comes_is_a_call_or_a_refusal(surface: str, *, members: dict[str, Any], whole: bool) -> None:
    body = ((response() if surface == "/v1/responses" else message()) if whole else {}) | members
    refusal: AgentOSError | None = None
    try:
        call, _ = READ[surface](body, LIMITS)
    except AgentOSError as error:
        refusal = error

    assert refusal is None or refusal.code in {"validation_failed", "unsupported"}
    assert refusal.details["path"].startswith("$") if refusal else call.members["messages"]
