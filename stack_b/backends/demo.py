"""The demo backend: deterministic, without a key and without a network, so that the whole loop is real on any machine.

It says in every answer that it isn't a language model. It understands tool definitions and decides by rules
(`demo_rules`), several at once; its tokens are words and punctuation marks, which it counts exactly.
"""

import hashlib
import math
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from ports.clock import Clock
from ports.errors import InvalidArgument
from ports.messages import Json
from stack_b.backends.demo_answer import Call, Result, Turn, answer, filled, joined, next_calls, parsed
from stack_b.backends.protocol import ModelCard

CHAT_MODEL: Final = "agentos-demo"
EMBED_MODEL: Final = "agentos-demo-embed"
DIMENSIONS: Final = 256
MAX_DIMENSIONS: Final = 4_096

_TOKEN: Final = re.compile(r"\w+|[^\w\s]")
_PIECE: Final = re.compile(r"\s*\S+\s*")


class _Reply(Struct, frozen=True, kw_only=True):
    text: str
    calls: tuple[Call, ...]
    finish_reason: str
    tokens: int


class DemoBackend:
    """Satisfies `stack_b.backends.protocol.Backend`."""

    def __init__(self, clock: Clock, *, name: str = "demo") -> None:
        self._clock = clock
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def cancel_stops_billing(self, *, streamed: bool) -> bool:  # noqa: ARG002 - the protocol's signature
        return True

    async def aclose(self) -> None:
        """It has nothing to close."""

    async def models(self) -> tuple[ModelCard, ...]:
        return (
            ModelCard(id=CHAT_MODEL, upstream=CHAT_MODEL),
            ModelCard(id=EMBED_MODEL, upstream=EMBED_MODEL, chat=False, embed=True),
        )

    async def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> dict[str, Json]:
        reply = _reply(body, max_tokens)
        seal = _seal(body)
        message: dict[str, Json] = {"role": "assistant", "content": reply.text or None}
        if reply.calls:
            message["tool_calls"] = _wire_calls(reply.calls, seal)
        choice = {"message": message, "finish_reason": reply.finish_reason, "logprobs": None}
        count = _choices(body)
        return {
            **self._head("chat.completion", model, seal),
            "choices": [{"index": index, **choice} for index in range(count)],
            "usage": _usage(body, reply.tokens * count),
        }

    async def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> AsyncGenerator[dict[str, Json], None]:
        reply = _reply(body, max_tokens)
        seal = _seal(body)
        head = self._head("chat.completion.chunk", model, seal)
        count = _choices(body)
        for index in range(count):
            deltas: list[dict[str, Json]] = [{"role": "assistant", "content": ""}]
            deltas += [{"content": piece} for piece in _PIECE.findall(reply.text)]
            for number, call in enumerate(_wire_calls(reply.calls, seal)):
                deltas += _call_fragments(number, call)
            for delta in deltas:
                yield {**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
            yield {**head, "choices": [{"index": index, "delta": {}, "finish_reason": reply.finish_reason}]}
        yield {**head, "choices": [], "usage": _usage(body, reply.tokens * count)}

    async def embed(self, model: str, body: dict[str, Json]) -> dict[str, Json]:
        dimensions = body.get("dimensions") or DIMENSIONS
        if not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
            raise InvalidArgument(f"dimensions must be 1 to {MAX_DIMENSIONS}", code="validation_failed")
        inputs: Sequence[str] = body["input"]
        tokens = sum(len(_TOKEN.findall(text)) for text in inputs)
        return {
            "object": "list",
            "model": model,
            "data": [
                {"object": "embedding", "index": index, "embedding": vector_of(text, dimensions)}
                for index, text in enumerate(inputs)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _head(self, kind: str, model: str, seal: str) -> dict[str, Json]:
        created = int(self._clock.now().timestamp())
        return {"id": f"chatcmpl-{seal}", "object": kind, "created": created, "model": model}


def vector_of(text: str, dimensions: int) -> list[float]:
    """The words' hashes as a vector of length one: texts that share words are near each other."""
    vector = [0.0] * dimensions
    for word in _TOKEN.findall(text.casefold()):
        seal = hashlib.blake2b(word.encode(), digest_size=9).digest()
        vector[int.from_bytes(seal[:8]) % dimensions] += 1.0 if seal[8] & 1 else -1.0
    length = math.sqrt(sum(number * number for number in vector))
    if length == 0.0:
        # No words, or words that cancel each other: still a vector one can divide by.
        return [1.0] + [0.0] * (dimensions - 1)
    return [number / length for number in vector]


def _reply(body: dict[str, Json], max_tokens: int) -> _Reply:
    try:
        return _made(body, max_tokens)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # What the gateway leaves to backends, a schema above all, may be any JSON here.
        raise InvalidArgument(
            "the demo backend can't read this request; look at its tools and their schemas"
        ) from error


def _made(body: dict[str, Json], max_tokens: int) -> _Reply:
    turn = _turn(body)
    calls = next_calls(turn)
    if calls:
        tokens = sum(_count(call.name) + _count(_arguments(call)) for call in calls)
        if tokens > max_tokens:
            # Half a tool call is worth nothing.
            return _Reply(text="", calls=(), finish_reason="length", tokens=max_tokens)
        return _Reply(text="", calls=calls, finish_reason="tool_calls", tokens=tokens)
    text = _stopped(_formatted(answer(turn), body), body.get("stop"))
    words = list(_TOKEN.finditer(text))
    if len(words) > max_tokens:
        return _Reply(text=text[: words[max_tokens].start()], calls=(), finish_reason="length", tokens=max_tokens)
    return _Reply(text=text, calls=(), finish_reason="stop", tokens=len(words))


def _turn(body: dict[str, Json]) -> Turn:
    messages: list[dict[str, Json]] = body["messages"]
    said = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    text = joined(messages[said].get("content")) if said >= 0 else ""
    choice = body.get("tool_choice") or "auto"
    offered = {} if choice == "none" else _offered(body.get("tools") or [])
    forced = None
    if isinstance(choice, dict):
        forced = choice.get("function", {}).get("name")
    elif choice == "required" and offered:
        forced = "*"
    return Turn(
        text=text,
        results=tuple(_results(messages[said + 1 :])),
        offered=offered,
        forced=forced if forced == "*" or forced in offered else None,
        parallel=body.get("parallel_tool_calls") is not False,
    )


def _offered(tools: list[dict[str, Json]]) -> dict[str, dict[str, Json]]:
    functions = [tool.get("function") for tool in tools]
    return {
        function["name"]: function.get("parameters") or {}
        for function in functions
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    }


def _results(messages: list[dict[str, Json]]) -> Iterator[Result]:
    """Calls made since the user spoke, with what the tools answered, in the order of the answers."""
    calls: dict[str, Call] = {}
    for message in messages:
        for wished in message.get("tool_calls") or []:
            function = wished.get("function") or {}
            arguments = parsed(function.get("arguments"))
            calls[wished.get("id", "")] = Call(
                name=str(function.get("name")), arguments=arguments if isinstance(arguments, dict) else {}
            )
        call = calls.get(message.get("tool_call_id") or "")
        if message["role"] == "tool" and call is not None:
            yield Result(call=call, output=parsed(message.get("content")))


def _formatted(text: str, body: dict[str, Json]) -> str:
    """The answer in the form that was asked for: text, a JSON object, or an object of the given schema."""
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return msgspec.json.encode({"answer": text}).decode()
    if isinstance(wanted, dict) and kind == "json_schema":
        return msgspec.json.encode(filled((wanted.get("json_schema") or {}).get("schema") or {}, text)).decode()
    return text


def _stopped(text: str, stop: Json) -> str:
    """The text before the first stop string."""
    strings = [stop] if isinstance(stop, str) else stop or []
    ends = [text.find(string) for string in strings if string and string in text]
    return text[: min(ends)] if ends else text


def _choices(body: dict[str, Json]) -> int:
    return body.get("n") or 1


def _usage(body: dict[str, Json], completion_tokens: int) -> dict[str, Json]:
    prompt = _count(msgspec.json.encode([body["messages"], body.get("tools")]).decode())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
    }


def _count(text: str) -> int:
    return len(_TOKEN.findall(text))


def _seal(body: dict[str, Json]) -> str:
    """The same request, the same ids."""
    return hashlib.blake2b(msgspec.json.encode(body, order="deterministic"), digest_size=12).hexdigest()


def _arguments(call: Call) -> str:
    return msgspec.json.encode(call.arguments).decode()


def _wire_calls(calls: Sequence[Call], seal: str) -> list[dict[str, Json]]:
    return [
        {
            "id": f"call_{seal}{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": _arguments(call)},
        }
        for number, call in enumerate(calls)
    ]


def _call_fragments(number: int, call: dict[str, Json]) -> list[dict[str, Json]]:
    """A tool call as models stream it: who is called first, then the arguments in pieces."""
    arguments = call["function"]["arguments"]
    half = len(arguments) // 2
    head = {**call, "index": number, "function": {"name": call["function"]["name"], "arguments": ""}}
    pieces = [{"index": number, "function": {"arguments": part}} for part in (arguments[:half], arguments[half:])]
    return [{"tool_calls": [piece]} for piece in (head, *pieces)]
