"""From what a backend reports, or doesn't, to what is settled. Pure; integers only."""

from ports.messages import Json, Usage
from stack_b.backends.protocol import Price
from stack_b.budget.estimate import estimated_tokens


def usage_of(reported: dict[str, Json] | None, *, prompt_bytes: int, content_bytes: int, price: Price | None) -> Usage:
    """The backend's own count; what it left out is estimated from the bytes that went there and came back.

    Zero and missing are different: a reported zero is a count.
    """
    told = reported or {}
    prompt, completion = told.get("prompt_tokens"), told.get("completion_tokens")
    estimated = prompt is None or (completion is None and content_bytes > 0)
    prompt = estimated_tokens(prompt_bytes) if prompt is None else prompt
    completion = estimated_tokens(content_bytes) if completion is None else completion
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_nanousd=price.cost_nanousd(prompt, completion) if price else 0,
        estimated=estimated,
    )


def content_bytes_of(answer: dict[str, Json]) -> int:
    """The size of everything the backend wrote in a whole answer."""
    size = 0
    for choice in answer["choices"]:
        message = choice["message"]
        for name, value in message.items():
            if name != "role" and isinstance(value, str):
                size += len(value.encode())
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            size += len((function.get("name") or "").encode()) + len((function.get("arguments") or "").encode())
    return size
