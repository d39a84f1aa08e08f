"""What the gateway is sent: valid requests of every surface, and what becomes of them under a seeded hand. Pure.

An input is bytes for a connection of its own. Structure first: most inputs are JSON that nearly is a request; fewer are
broken as bytes, as headers, or as HTTP.
"""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct

Json: TypeAlias = Any  # JSON that may be anything
Head: TypeAlias = list[tuple[str, str]]

SECRET: Final = "sk-canary-of-the-backend-77aa01"
"""The backend's key: no answer may hold it."""
MODELS: Final = 8
MOST_CHARS: Final = 1_000_000
"""Of what a mutation adds."""
_TOOL: Final = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


class Input(Struct, frozen=True, kw_only=True):
    kind: str
    """What was done to it, for the record."""
    raw: bytes


def _chat(draw: random.Random) -> Json:
    asked = f"hello {draw.randrange(10**6)}, write to ann@example.com"
    body: dict[str, Json] = {
        "model": f"m-{draw.randrange(MODELS)}",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": asked}],
    }
    more: list[dict[str, Json]] = [
        {"stream": True, "stream_options": {"include_usage": draw.random() < 0.5}},
        {"max_tokens": draw.randrange(1, 500)},
        {"temperature": 0.5, "top_p": 1, "seed": 7, "user": "u", "stop": ["x", "y"], "logit_bias": {"50256": -100}},
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": _TOOL}}], "tool_choice": "auto"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _TOOL, "strict": True}}},
        {"n": 2, "logprobs": True, "top_logprobs": 2, "metadata": {"a": "b"}},
    ]
    for members in more:
        if draw.random() < 0.3:
            body |= members
    if draw.random() < 0.2:
        call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"q": "sky"}'}}
        body["messages"] += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
        ]
    if draw.random() < 0.2:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        body["messages"][1]["content"] = [{"type": "text", "text": asked}, picture]
    return body


def _responses(draw: random.Random) -> Json:
    asked = f"hello {draw.randrange(10**6)}"
    body: dict[str, Json] = {"model": f"m-{draw.randrange(MODELS)}", "input": asked}
    if draw.random() < 0.5:
        body["input"] = [
            {"role": "user", "content": [{"type": "input_text", "text": asked}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "blue"},
        ]
    more: list[dict[str, Json]] = [
        {"stream": True}, {"instructions": "be brief"}, {"max_output_tokens": 50}, {"text": {"format": {"type": "text"}}},
        {"tools": [{"type": "function", "name": "look", "parameters": _TOOL}]}, {"metadata": {"a": "b"}, "store": False},
        {"reasoning": {"effort": "low"}},
    ]  # fmt: skip
    for members in more:
        if draw.random() < 0.3:
            body |= members
    return body


def _messages(draw: random.Random) -> Json:
    asked = f"hello {draw.randrange(10**6)}"
    body: dict[str, Json] = {
        "model": f"m-{draw.randrange(MODELS)}",
        "max_tokens": draw.randrange(1, 500),
        "messages": [{"role": "user", "content": asked}],
    }
    more: list[dict[str, Json]] = [
        {"stream": True}, {"system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]},
        {"tools": [{"name": "look", "input_schema": _TOOL}], "tool_choice": {"type": "auto"}},
        {"metadata": {"user_id": "u"}, "stop_sequences": ["x"], "temperature": 1, "top_k": 3},
        {"thinking": {"type": "disabled"}},
    ]  # fmt: skip
    for members in more:
        if draw.random() < 0.3:
            body |= members
    if draw.random() < 0.3:
        body["messages"] += [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"q": "sky"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "blue"}]},
        ]
    return body


def _embeddings(draw: random.Random) -> Json:
    body: dict[str, Json] = {"model": f"embed-{draw.randrange(MODELS)}", "input": ["a", "b"][: draw.randrange(1, 3)]}
    if draw.random() < 0.5:
        body |= {"encoding_format": draw.choice(["float", "base64"]), "dimensions": 8}
    return body


def _count(draw: random.Random) -> Json:
    return {name: value for name, value in _messages(draw).items() if name in {"model", "messages", "system", "tools"}}


def _cancel(_: random.Random) -> Json:
    return {"step_key": "run_1.1"}


SURFACES: Final[Sequence[tuple[str, str, Callable[[random.Random], Json] | None]]] = (
    *(("POST", "/v1/chat/completions", _chat),) * 4, ("POST", "/v1/responses", _responses),
    ("POST", "/v1/responses", _responses),
    ("POST", "/v1/messages", _messages), ("POST", "/v1/messages", _messages),
    ("POST", "/v1/messages/count_tokens", _count), ("POST", "/v1/embeddings", _embeddings),
    ("POST", "/v1/policy/check", _chat), ("POST", "/v1/steps:cancel", _cancel), ("GET", "/v1/models", None),
    ("GET", "/v1/models/m-1", None), ("GET", "/healthz", None), ("GET", "/readyz", None), ("GET", "/openapi.json", None),
    ("GET", "/metrics", None),
)  # fmt: skip

ODD: Final[Sequence[Json]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.1, -0.0, 1e308, "", " ", "\x00", "a\x00b", "\ud800",
    "\udfff\ud800", "é", "\u202e", "\u200b" * 50, "\U0001f600" * 100, "x" * 20_000, "null", "NaN", "1", "{}", [], {}, [[]],
    [None], [{}], {"": ""}, {"type": "text"}, {"type": "no_such_type"}, {"$ref": "#"}, "http://127.0.0.1:1/", "env:HOME",
    "4111 1111 1111 1111", "<<EMAIL_1>>", "[EMAIL_1]", "%s%n{0}", "../../etc/passwd", "\r\nx: y", "data: [DONE]\n\n",
)  # fmt: skip
MEMBERS: Final = (
    "provider", "base_url", "api_base", "api_key", "extra_body", "headers", "route", "no_such_member", "stream", "n",
    "tools", "messages", "max_tokens", "max_completion_tokens", "stream_options", "stop", "functions", "__proto__", "", "é",
    "x" * 300,
    "tool_calls", "content", "role", "type", "logit_bias", "response_format", "tool_choice", "input", "model",
)  # fmt: skip
HEADERS: Final[Sequence[tuple[str, str]]] = (
    ("content-type", "text/plain"), ("content-type", "application/json; charset=utf-16"), ("content-type", ""),
    ("content-type", "multipart/form-data; boundary=x"), ("content-encoding", "gzip"), ("content-encoding", "identity"),
    ("authorization", "Bearer"), ("authorization", "Bearer a.b.c"), ("authorization", "Basic eDp5"),
    ("authorization", "Bearer " + "x" * 9_000), ("x-api-key", "nobody"), ("x-tenant-id", "tnt_globex"), ("x-tenant-id", ""),
    ("idempotency-key", ""), ("idempotency-key", "x" * 300), ("idempotency-key", "\x7f"), ("x-step-key", "s" * 400),
    ("x-route-preference", "cost"), ("x-route-preference", "sideways"), ("x-correlation-id", "x" * 200),
    ("x-correlation-id", "a b\tc"), ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-00"), ("traceparent", "x"),
    ("accept", "image/png"), ("expect", "100-continue"), ("expect", "200-ok"), ("upgrade", "h2c"),
    ("connection", "upgrade"),
    ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked, chunked"), ("content-length", "-1"),
    ("content-length", "1e3"), ("content-length", "99999999999999999999"), ("host", ""), ("host", "a\x00b"),
    ("x-stainless-retry-count", "1"), ("x-stainless-retry-count", "many"), ("anthropic-version", ""),
    ("anthropic-beta", "x," * 500), ("last-event-id", "x"), ("cookie", "a=b; " * 500), ("x-long", "x" * 40_000),
    ("te", "trailers"), ("trailer", "x"), ("range", "bytes=0-1"), ("x-forwarded-for", "x" * 500), ("é", "é"), ("a b", "c"),
)  # fmt: skip
TARGETS: Final = (
    "", "*", "/", "//v1/models", "/v1/models/", "/v1/models/%00", "/v1/models/%ff%fe", "/v1/models/..%2f..%2fx",
    "/v1/models/" + "x" * 9_000, "/v1/models?limit=1", "/v1/chat/completions?x=%", "/v1/chat/completions#x", "/v1/./models",
    "/V1/models", "/v1/no/such/route", "http://other.example/v1/models", "/v1/messages?beta=true&beta=x", "/v1/models/é",
    "/v1/models/a%20b%0d%0ax:y", "/v1/runs", "?", "/v1/steps:nothing",
)  # fmt: skip


def drawn(draw: random.Random, token: str, *, valid_share: float = 0.25) -> Input:
    """One input. `token` is a caller's who may call everything."""
    method, target, valid = draw.choice(SURFACES)
    head: Head = [("host", "gateway"), ("authorization", f"Bearer {token}")]
    body = b""
    if valid is not None:
        head.append(("content-type", "application/json"))
        # Of its own: what is done to it must not be done to the next one.
        value = _copied(valid(draw))
    else:
        value = None
    broken = draw.choices(("structure", "bytes", "headers", "target", "framing", "noise"), (50, 15, 18, 5, 10, 2))[0]
    kind = "valid" if draw.random() < valid_share else broken
    if value is not None:
        if kind == "structure":
            for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
                value = _changed(draw, value)
        body = _encoded(draw, value, duplicates=kind == "structure" and draw.random() < 0.1)
    match kind:
        case "bytes":
            body = _garbled(draw, body)
        case "headers":
            head = _with_headers(draw, head)
        case "target":
            method = draw.choice(
                ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "get", "P\u00d6ST")
            )
            target = draw.choice(TARGETS)
        case "framing":
            return Input(kind=kind, raw=_framed(draw, method, target, head, body))
        case "noise":
            return Input(kind=kind, raw=draw.randbytes(draw.randrange(1, 3_000)))
        case _:
            pass
    return Input(kind=kind, raw=_request(method, target, head, body))


def _request(method: str, target: str, head: Head, body: bytes, *, version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in head)]
    if not any(name in {"content-length", "transfer-encoding"} for name, _ in head):
        lines.append(f"content-length: {len(body)}")
    if not any(name == "connection" for name, _ in head):
        lines.append("connection: close")
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def _encoded(draw: random.Random, value: Json, *, duplicates: bool) -> bytes:
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    if duplicates and text.startswith("{") and len(text) > 2:
        name = draw.choice(MEMBERS)
        text = f"{{{json.dumps(name)}: 1, {json.dumps(name)}: 2, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


def _places(value: Json) -> list[tuple[Json, Any]]:
    """Each member and item, as its holder and where in it."""
    found: list[tuple[Json, Any]] = []
    waiting = [value]
    while waiting and len(found) < 5_000:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def _changed(draw: random.Random, value: Json) -> Json:
    places = _places(value)
    if not places or draw.random() < 0.02:
        return _copied(draw.choice(ODD))
    holder, key = draw.choice(places)
    match draw.randrange(8):
        case 0 | 1 | 2:
            holder[key] = _copied(draw.choice(ODD))
        case 3:
            del holder[key]
        case 4:
            target = holder if isinstance(holder, dict) else value
            if isinstance(target, dict):
                target[draw.choice(MEMBERS)] = _copied(draw.choice(ODD))
        case 5:
            other, there = draw.choice(places)
            holder[key] = _copied(other[there]) if there in other or isinstance(other, list) else None
        case 6:
            deep: Json = holder[key]
            for _ in range(draw.choice((1, 3, 70, 300))):
                deep = [deep] if draw.random() < 0.5 else {"a": deep}
            holder[key] = deep
        case _:
            # As many as are too many, of something small: what is too large is refused before it is looked at.
            size = len(json.dumps(holder[key]))
            times = min(draw.choice((2, 5, 130, 2_100)), 1 + MOST_CHARS // size)
            holder[key] = [_copied(holder[key]) for _ in range(times)]
    return value


def _copied(value: Json) -> Json:
    # A member put into itself would have no end.
    return json.loads(json.dumps(value))


def _garbled(draw: random.Random, body: bytes) -> bytes:
    if draw.random() < 0.1:
        flipped = bytearray(body)
        for _ in range(draw.randrange(1, 8) if body else 0):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    at = draw.randrange(len(body) + 1)
    number = draw.choice((b"NaN", b"Infinity", b"1e999", b"-1e-999", b"01", b"1" * 5_000, b"0x1", b".5"))
    nothing = (b"", b"null", b"[]", b"1", b'""', b"NaN", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe")
    ways: Sequence[Callable[[], bytes]] = (
        lambda: body[:at],
        lambda: body[:at] + draw.randbytes(draw.randrange(1, 20)) + body[at:],
        lambda: b"\xef\xbb\xbf" + body,
        lambda: body + draw.choice((b"}", b"\x00", b" {}", b"\n[1]")),
        lambda: gzip.compress(body, mtime=0),
        lambda: body.decode("utf-8", "replace").encode("utf-16"),
        lambda: body.replace(b'"', b"'"),
        lambda: draw.choice(nothing),
        lambda: body.replace(b"true", number).replace(b"2", number, 1),
    )
    return draw.choice(ways)()


def _with_headers(draw: random.Random, head: Head) -> Head:
    found = list(head)
    for _ in range(draw.choice((1, 1, 2, 4))):
        name, value = draw.choice(HEADERS)
        match draw.randrange(3):
            case 0:
                found.append((name, value))
            case 1:
                found = [(one, said) for one, said in found if one != name] + [(name, value)]
            case _:
                again = [draw.choice(found)] * draw.randrange(3) if found else []
                found = [one for one in found if draw.random() < 0.8] + again
    if draw.random() < 0.05:
        found += [(f"x-{number}", "y") for number in range(draw.choice((50, 400)))]
    return found


def _framed(draw: random.Random, method: str, target: str, head: Head, body: bytes) -> bytes:
    """Odd ways to say how long a body is, and where a request ends."""
    chunked: Head = [*head, ("transfer-encoding", "chunked")]
    half = len(body) // 2
    match draw.randrange(9):
        case 0:
            parts = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (body[:half], body[half:]) if one)
            return _request(method, target, chunked, parts + b"0\r\n\r\n")
        case 1:
            sizes = (b"zz", b"-1", b"ffffffffffffffffff", b"", b"5;ext=" + b"x" * 5_000)
            return _request(method, target, chunked, draw.choice(sizes) + b"\r\n" + body + b"\r\n0\r\n\r\n")
        case 2:
            whole = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return _request(method, target, chunked, whole + b"0\r\nx-trailer: y\r\ncontent-length: 5\r\n\r\n")
        case 3:
            return _request(method, target, [*chunked, ("content-length", str(len(body)))], b"0\r\n\r\n" + body)
        case 4:
            return _request(method, target, [*head, ("content-length", str(len(body) + 50))], body)
        case 5:
            return _request(method, target, [*head, ("content-length", str(half))], body)
        case 6:
            twice = _request(method, target, [*head, ("connection", "keep-alive")], body)
            return twice + _request("GET", "/v1/models", head, b"")
        case 7:
            return _request(method, target, head, body, version=draw.choice(("1.0", "0.9", "2.0", "1.1 x", "9")))
        case _:
            raw = _request(method, target, head, body)
            return raw.replace(b"\r\n", draw.choice((b"\n", b"\r", b"\r\n ", b"\r\r\n")), draw.randrange(1, 8))
