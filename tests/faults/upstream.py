"""The model of the agent under test: asks for the tools that the run's input lists, turn by turn, after the time it says.

An OpenAI-shaped ASGI app in the driver's process, behind Stack B. It notes what it is asked: each time, a call was paid.
"""

import asyncio
import json
import re
import time
from collections import defaultdict
from typing import Any, Final

from ports.http.body import Receive
from ports.http.edge import Scope, Send
from tests.faults.payments import Payment

MODEL: Final = "scripted"

_LIFE: Final = re.compile(r"/lives/(\d+)/")


class Upstream:
    def __init__(self) -> None:
        self.payments: defaultdict[str, list[Payment]] = defaultdict(list)
        """By place: run and turn."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"].endswith("/models"):
            await _answer(send, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
            return
        request = json.loads(body)
        place, message, seconds = said(request["messages"])
        payment = Payment(life=life_of(scope["path"]), asked_at=time.time())
        self.payments[place].append(payment)
        await asyncio.sleep(seconds)
        await (_stream if request.get("stream") else _answer)(send, _completion(message))
        payment.answered_at = time.time()


def base_url(server: str, life: int) -> str:
    """Where a process of Stack B finds the model: its own address, by which it is known that it was this one who asked."""
    return f"{server}/lives/{life}/v1"


def life_of(path: str) -> int:
    found = _LIFE.match(path)
    assert found is not None, "it was asked under an address of `base_url`"
    return int(found[1])


def said(messages: list[dict[str, Any]]) -> tuple[str, dict[str, Any], float]:
    """Where in which run this is, what the model says there, and after how long. Pure."""
    plan = json.loads(next(one["content"] for one in messages if one["role"] == "user"))
    turn = sum(one["role"] == "assistant" for one in messages)
    place = f"{plan['marker']}/{turn}"
    if turn == len(plan["turns"]):
        return place, {"role": "assistant", "content": "done"}, plan["seconds"]
    calls = [
        {
            "id": f"call_{turn}_{number}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": json.dumps(
                    {"place": f"{place}/{number}", "seconds": plan.get("tool_seconds", plan["seconds"])}
                ),
            },
        }
        for number, name in enumerate(plan["turns"][turn])
    ]
    return place, {"role": "assistant", "content": None, "tool_calls": calls}, plan["seconds"]


def _completion(message: dict[str, Any]) -> dict[str, Any]:
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    return {
        "id": "chatcmpl-faults",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


async def _answer(send: Send, body: dict[str, Any]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _stream(send: Send, body: dict[str, Any]) -> None:
    """The same answer as a stream of two chunks, its usage last."""
    [choice] = body["choices"]
    delta = dict(choice["message"])
    if calls := delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
    head = {**body, "object": "chat.completion.chunk"}
    usage = head.pop("usage")
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
        {**head, "choices": [], "usage": usage},
    ]
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": text.encode()})
