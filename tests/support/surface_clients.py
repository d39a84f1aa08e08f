"""The official clients, unmodified, behind one face for each surface: the same question, and what the client understood."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import BaseModel

from tests.support import official

Json: TypeAlias = Any  # JSON of a test
History: TypeAlias = list[Any]  # in the surface's own words

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class City(BaseModel):
    """What a structured answer is read as."""

    name: str
    people: int


@dataclass(frozen=True, kw_only=True)
class Call:
    id: str
    name: str
    arguments: dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the client understood."""

    text: str
    finish: str
    """In the surface's own words."""
    usage: tuple[int, int] | None
    receipt: dict[str, Json]
    calls: tuple[Call, ...] = ()
    refusal: str = ""
    history: History = field(default_factory=list)
    """What was said so far, this answer included."""
    detail: dict[str, int] = field(default_factory=dict)
    """Counts of the usage under the surface's own names."""


def function(name: str, member: str) -> Json:
    """A tool, as each surface is given it."""
    schema = {"type": "object", "properties": {member: {"type": "string"}}, "required": [member]}
    return {"name": name, "description": f"does {name}", "schema": schema | {"additionalProperties": False}}


class Client(ABC):
    """One surface, through its official client."""

    path: str
    finishes: Mapping[str, str]
    """Its words for the canonical finish reasons."""

    def __init__(self, sdk: Any) -> None:
        self.sdk = sdk

    def with_options(self, **options: Any) -> "Client":
        return type(self)(self.sdk.with_options(**options))

    @property
    @abstractmethod
    def error(self) -> type[Exception]:
        """The client's own base of errors that have a status."""

    @abstractmethod
    def asked(self, text: str, tools: Sequence[Json] = (), **more: Any) -> dict[str, Any]:
        """The arguments of a call. `more`: history, system, stops, image, forced, most."""

    @abstractmethod
    async def ask(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told: ...

    @abstractmethod
    async def stream(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told: ...

    @abstractmethod
    async def open(self, text: str) -> Any:
        """A stream of raw events, to be left in the middle."""

    @abstractmethod
    async def parse(self, text: str) -> City:
        """Ask for a `City`."""

    @abstractmethod
    async def parse_streamed(self, text: str) -> City:
        """The same of a stream."""

    @abstractmethod
    async def raw(self, text: str) -> Any:
        """An answer as it came, headers and all."""

    @abstractmethod
    def results(self, told: Told, results: dict[str, str]) -> History:
        """The conversation with the results of the calls, by id."""

    @staticmethod
    def error_of(error: Any) -> dict[str, Json]:
        """Our members inside the error that the client raised."""
        body: dict[str, Json] = error.body
        return body


class ChatClient(Client):
    path = "/v1/chat/completions"
    finishes = MappingProxyType(
        {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter"}
    )

    @property
    def error(self) -> type[Exception]:
        return official.openai.APIStatusError

    def asked(self, text: str, tools: Sequence[Json] = (), **more: Any) -> dict[str, Any]:
        content: Any = text
        if "image" in more:
            picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{more['image']}"}}
            content = [{"type": "text", "text": text}, picture]
        messages = more.get("history") or [{"role": "user", "content": content}]
        if "system" in more:
            messages = [{"role": "system", "content": more["system"]}, *messages]
        asked: dict[str, Any] = {"model": "m-1", "messages": messages, "max_tokens": more.get("most", 100)}
        if tools:
            asked["tools"] = [
                {"type": "function", "function": {
                    "name": t["name"], "description": t["description"], "parameters": t["schema"], "strict": True}}
                for t in tools
            ]  # fmt: skip
        if "forced" in more:
            asked["tool_choice"] = {"type": "function", "function": {"name": more["forced"]}}
            asked["parallel_tool_calls"] = False
        return asked | ({"temperature": more["temperature"]} if "temperature" in more else {})

    async def ask(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told:
        asked = self.asked(text, tools, **more)
        reply = await self.sdk.chat.completions.create(**asked)
        return self._told(reply, asked, reply.model_extra)

    async def stream(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told:
        asked = self.asked(text, tools, **more)
        receipt: dict[str, Json] = {}
        async with self.sdk.chat.completions.stream(**asked, stream_options={"include_usage": True}) as events:
            async for event in events:
                if event.type == "chunk":
                    receipt |= event.chunk.model_extra or {}
            return self._told(await events.get_final_completion(), asked, receipt)

    async def open(self, text: str) -> Any:
        return await self.sdk.chat.completions.create(**self.asked(text), stream=True)

    async def parse(self, text: str) -> City:
        reply = await self.sdk.chat.completions.parse(**self.asked(text), response_format=City)
        city: City = reply.choices[0].message.parsed
        return city

    async def parse_streamed(self, text: str) -> City:
        async with self.sdk.chat.completions.stream(**self.asked(text), response_format=City) as events:
            city: City = (await events.get_final_completion()).choices[0].message.parsed
            return city

    async def raw(self, text: str) -> Any:
        return await self.sdk.chat.completions.with_raw_response.create(**self.asked(text))

    def _told(self, reply: Any, asked: dict[str, Any], receipt: dict[str, Json]) -> Told:
        choice = reply.choices[0]
        message, usage = choice.message, reply.usage
        calls = message.tool_calls or ()
        return Told(
            text=message.content or "",
            refusal=message.refusal or "",
            finish=choice.finish_reason,
            usage=(usage.prompt_tokens, usage.completion_tokens),
            receipt=receipt,
            calls=tuple(Call(id=c.id, name=c.function.name, arguments=json.loads(c.function.arguments)) for c in calls),
            history=[*asked["messages"], message],
        )

    def results(self, told: Told, results: dict[str, str]) -> History:
        said = [{"role": "tool", "tool_call_id": call, "content": text} for call, text in results.items()]
        return [*told.history, *said]


class ResponsesClient(Client):
    path = "/v1/responses"
    finishes = MappingProxyType({
        "stop": "completed", "length": "max_output_tokens", "tool_calls": "completed",
        "content_filter": "content_filter",
    })  # fmt: skip

    @property
    def error(self) -> type[Exception]:
        return official.openai.APIStatusError

    def asked(self, text: str, tools: Sequence[Json] = (), **more: Any) -> dict[str, Any]:
        given: Any = text
        if "image" in more:
            picture = {"type": "input_image", "image_url": f"data:image/png;base64,{more['image']}"}
            given = [{"role": "user", "content": [{"type": "input_text", "text": text}, picture]}]
        asked: dict[str, Any] = {
            "model": "m-1", "input": more.get("history") or given, "max_output_tokens": more.get("most", 100)
        }  # fmt: skip
        if "system" in more:
            asked["instructions"] = more["system"]
        if tools:
            asked["tools"] = [
                {"type": "function", "name": t["name"], "description": t["description"], "parameters": t["schema"],
                 "strict": True}
                for t in tools
            ]  # fmt: skip
        if "forced" in more:
            asked["tool_choice"] = {"type": "function", "name": more["forced"]}
            asked["parallel_tool_calls"] = False
        return asked | ({"temperature": more["temperature"]} if "temperature" in more else {})

    async def ask(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told:
        asked = self.asked(text, tools, **more)
        return self._told(await self.sdk.responses.create(**asked), asked)

    async def stream(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told:
        asked = self.asked(text, tools, **more)
        last: Any = None
        async with self.sdk.responses.stream(**asked) as events:
            async for event in events:
                last = event
            if last.type == "response.completed":
                return self._told(await events.get_final_response(), asked)
        return self._told(last.response, asked)

    async def open(self, text: str) -> Any:
        return await self.sdk.responses.create(**self.asked(text), stream=True)

    async def parse(self, text: str) -> City:
        city: City = (await self.sdk.responses.parse(**self.asked(text), text_format=City)).output_parsed
        return city

    async def parse_streamed(self, text: str) -> City:
        async with self.sdk.responses.stream(**self.asked(text), text_format=City) as events:
            city: City = (await events.get_final_response()).output_parsed
            return city

    async def raw(self, text: str) -> Any:
        return await self.sdk.responses.with_raw_response.create(**self.asked(text))

    def _told(self, reply: Any, asked: dict[str, Any]) -> Told:
        calls = [item for item in reply.output if item.type == "function_call"]
        parts = [part for item in reply.output if item.type == "message" for part in item.content]
        details = reply.incomplete_details
        given = asked["input"]
        said = [{"role": "user", "content": given}] if isinstance(given, str) else given
        usage = reply.usage
        return Told(
            text=reply.output_text,
            refusal="".join(part.refusal for part in parts if part.type == "refusal"),
            finish=reply.status if details is None else details.reason,
            usage=(usage.input_tokens, usage.output_tokens),
            receipt=reply.model_extra | {"usage": usage.model_extra},
            calls=tuple(Call(id=c.call_id, name=c.name, arguments=json.loads(c.arguments)) for c in calls),
            history=[*said, *reply.output],
            detail={
                "cached": usage.input_tokens_details.cached_tokens,
                "reasoning": usage.output_tokens_details.reasoning_tokens,
            },
        )

    def results(self, told: Told, results: dict[str, str]) -> History:
        said = [{"type": "function_call_output", "call_id": call, "output": text} for call, text in results.items()]
        return [*told.history, *said]


class MessagesClient(Client):
    path = "/v1/messages"
    finishes = MappingProxyType(
        {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
    )

    @property
    def error(self) -> type[Exception]:
        return official.anthropic.APIStatusError

    def asked(self, text: str, tools: Sequence[Json] = (), **more: Any) -> dict[str, Any]:
        content: Any = text
        if "image" in more:
            source = {"type": "base64", "media_type": "image/png", "data": more["image"]}
            content = [{"type": "text", "text": text}, {"type": "image", "source": source}]
        messages = more.get("history") or [{"role": "user", "content": content}]
        asked: dict[str, Any] = {"model": "m-1", "messages": messages, "max_tokens": more.get("most", 100)}
        if "system" in more:
            asked["system"] = more["system"]
        if tools:
            asked["tools"] = [
                {"name": t["name"], "description": t["description"], "input_schema": t["schema"], "strict": True}
                for t in tools
            ]
        if "forced" in more:
            asked["tool_choice"] = {"type": "tool", "name": more["forced"], "disable_parallel_tool_use": True}
        if "temperature" in more:
            # The newest client has no argument for it any more; the wire still does.
            asked["extra_body"] = {"temperature": more["temperature"]}
        return asked

    async def ask(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told:
        asked = self.asked(text, tools, **more)
        reply = await self.sdk.messages.create(**asked)
        return self._told(reply, asked, reply.model_extra | {"usage": reply.usage.model_extra})

    async def stream(self, text: str, tools: Sequence[Json] = (), **more: Any) -> Told:
        asked = self.asked(text, tools, **more)
        receipt: dict[str, Json] = {}
        async with self.sdk.messages.stream(**asked) as events:
            async for event in events:
                if event.type == "message_delta":
                    receipt = event.model_extra | {"usage": event.usage.model_extra}
            return self._told(await events.get_final_message(), asked, receipt)

    async def open(self, text: str) -> Any:
        return await self.sdk.messages.create(**self.asked(text), stream=True)

    async def parse(self, text: str) -> City:
        reply = await self.sdk.messages.parse(**self.asked(text), output_format=City)
        city: City = reply.parsed_output
        return city

    async def parse_streamed(self, text: str) -> City:
        async with self.sdk.messages.stream(**self.asked(text), output_format=City) as events:
            city: City = (await events.get_final_message()).parsed_output
            return city

    async def raw(self, text: str) -> Any:
        return await self.sdk.messages.with_raw_response.create(**self.asked(text))

    def _told(self, reply: Any, asked: dict[str, Any], receipt: dict[str, Json]) -> Told:
        text = "".join(block.text for block in reply.content if block.type == "text")
        refused = reply.stop_reason == "refusal"
        usage = reply.usage
        uses = [block for block in reply.content if block.type == "tool_use"]
        return Told(
            text="" if refused else text,
            refusal=text if refused else "",
            finish=reply.stop_reason,
            usage=(usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens),
            receipt=receipt,
            calls=tuple(Call(id=use.id, name=use.name, arguments=use.input) for use in uses),
            history=[*asked["messages"], {"role": "assistant", "content": reply.content}],
            detail={
                "cached": usage.cache_read_input_tokens,
                "reasoning": usage.output_tokens_details.thinking_tokens if usage.output_tokens_details else 0,
            },
        )

    def results(self, told: Told, results: dict[str, str]) -> History:
        said = [{"type": "tool_result", "tool_use_id": call, "content": text} for call, text in results.items()]
        return [*told.history, {"role": "user", "content": said}]

    @staticmethod
    def error_of(error: Any) -> dict[str, Json]:
        members: dict[str, Json] = error.body["error"]
        return members


CLIENTS: dict[str, type[Client]] = {kind.path: kind for kind in (ChatClient, ResponsesClient, MessagesClient)}


@asynccontextmanager
async def client_for(path: str, url: str, *, key: str = "acme", **options: Any) -> AsyncIterator[Client]:
    """The official client for the surface at `path`, of the gateway at `url`."""
    sdk: Any
    if path == MessagesClient.path:
        sdk = official.anthropic.AsyncAnthropic(base_url=url, api_key=key, **options)
    else:
        sdk = official.openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, **options)
    async with sdk:
        yield CLIENTS[path](sdk)
