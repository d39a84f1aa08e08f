"""Which members of a request are taken. Whatever isn't named here is passed on only to backends whose operator says so.

What is not known may steer where a request goes, what it costs, who else reads it, or what is done beside answering; each
provider has its own words for that, and invents more. `tests/unit/test_members.py` compares with the official clients.
"""

from collections.abc import Mapping
from typing import Final

from ports.errors import InvalidArgument
from ports.messages import Json

# Members by which a client could choose where its request goes, or what is sent along: ours to decide. The first seven are
# of the public contract; the others do the same in servers that may stand behind us.
STEERING: Final = (
    "provider", "base_url", "api_base", "api_key", "extra_body", "headers", "route",
    "extra_headers", "extra_query", "api_version", "custom_llm_provider", "deployment_id", "fallbacks", "model_list",
    "mock_response", "organization", "user_config", "models",
)  # fmt: skip

# Other names for how much a backend may write, or more of it than is counted: the budget holds `max_tokens` times `n`.
WIDENING: Final = (
    "best_of", "max_length", "max_new_tokens", "max_output_tokens", "max_tokens_to_sample", "min_tokens", "num_predict",
    "options", "use_beam_search", "candidate_count", "candidateCount", "generationConfig", "generation_config", "n_predict",
    "num_completions", "num_generations",
)  # fmt: skip

NEVER: Final = frozenset({*STEERING, *WIDENING})
"""Refused whatever a backend is said to take."""

SAMPLING: Final = frozenset({
    "bad_words", "do_sample", "ebnf", "epsilon_cutoff", "eta_cutoff", "format", "grammar", "guided_choice",
    "guided_grammar", "guided_json", "guided_regex", "guided_whitespace_pattern", "include_reasoning",
    "include_stop_str_in_output", "json_schema", "length_penalty", "min_p", "mirostat", "mirostat_eta",
    "mirostat_tau", "random_seed", "reasoning", "regex", "repeat_last_n", "repeat_penalty", "repetition_penalty",
    "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids", "structured_outputs", "tfs_z",
    "think", "thinking", "top_a", "top_k", "typical_p",
})  # fmt: skip
"""What vLLM, TGI, ollama, llama.cpp and others know beside: how the next token is chosen, and which form an answer has."""

CHAT: Final = SAMPLING | {
    "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens",
    "messages", "metadata", "model", "n", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
    "reasoning_effort", "response_format", "safety_identifier", "seed", "stop", "stream", "stream_options",
    "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
}  # fmt: skip
"""Of a chat, whatever they say."""

EMBED: Final = frozenset({
    "dimensions", "encoding_format", "input", "input_type", "metadata", "model", "normalize", "truncate", "user",
})  # fmt: skip

WITHIN: Final[Mapping[str, tuple[Json, ...]]] = {
    # Sounds are priced otherwise, and no policy hears them.
    "audio": (None,),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prompt_cache_options": (None,),
    # What is kept there for longer is out of this node's hands: nothing here would ever erase it.
    "prompt_cache_retention": (None, "in_memory"),
    "store": (None, False),
    # The others cost more than the price that is held.
    "service_tier": (None, "auto", "default", "flex"),
    # Searches are billed apart, and tell somebody else what is asked.
    "web_search_options": (None,),
}
"""Of a chat, with the values that every backend may be sent."""

TOOLS: Final = frozenset({"function", "custom"})
"""Kinds of tools that the client runs itself. Others are run by the provider, which then spends and tells more."""

_CLIENT_TOOL: Final = frozenset({
    "cache_control", "custom", "description", "eager_input_streaming", "format", "function", "input_schema", "name",
    "parameters", "strict", "type",
})  # fmt: skip
"""Members of such a tool, as the surfaces' clients write it."""

_KIND: Final = "tools."

MAX_NAME_CHARS: Final = 64
"""Of a client's own words in an error."""


def extra(
    value: Mapping[str, Json], known: frozenset[str], within: Mapping[str, tuple[Json, ...]] | None = None
) -> tuple[str, ...]:
    """Its members that not every backend may be sent, in their order.

    Raises:
        InvalidArgument: one is called as a kind of tool is among the names that a backend takes.
    """
    if value.keys() <= known:
        return ()
    harmless = within or {}
    found = tuple(
        name for name, said in value.items() if name not in known and not (name in harmless and said in harmless[name])
    )
    for name in found:
        if name.startswith(_KIND):
            shown = name[:MAX_NAME_CHARS]
            raise InvalidArgument(
                f"{shown!r} is not taken: tools of a kind stand in tools",
                details={"path": f"$.{shown}"},
            )
    return found


def kinds_in(tool: Mapping[str, Json]) -> tuple[str, ...]:
    """As what the provider runs it, or what stands in it; none of a tool that is the client's. Some providers know theirs
    by a member, without a type."""
    kind = tool.get("type", "function")
    if isinstance(kind, str) and kind not in TOOLS:
        return (kind,)
    return tuple(name for name in tool if name not in _CLIENT_TOOL)


def tool_kind(kind: str) -> str:
    """By which name a backend is said to take tools of a kind."""
    return f"{_KIND}{kind}"


def untaken(name: str) -> InvalidArgument:
    """What is said to somebody who sent it."""
    kind = name.removeprefix(_KIND)
    what = f"a tool of the kind {kind[:MAX_NAME_CHARS]!r}" if kind != name else repr(name[:MAX_NAME_CHARS])
    return InvalidArgument(
        f"{what} is not passed on: no backend of this model is known to take it; leave it out, or ask the operator of this "
        f"node to put it into a backend's pass_members (docs/backends.md)",
        details={"path": "$.tools" if kind != name else f"$.{name[:MAX_NAME_CHARS]}"},
    )
