"""Whether a call that is cut off costs only what was written until then. By what providers say of themselves. Pure.

Servers that one runs oneself (vLLM, TGI, ollama, llama.cpp) notice that a caller has gone, and stop. Of the providers on
the Internet some stop, and then only for streams; the others write and bill to the end. Of one that is not known the second
is assumed: money fails closed.
"""

import ipaddress
from typing import Final, Literal, TypeAlias

StopsBilling: TypeAlias = bool | Literal["streams"]
"""`"streams"`: of streamed calls only. A whole answer is made, and billed, whether somebody waits for it or not."""

_STREAMS: Final = (
    "api.openai.com", "openai.azure.com", "services.ai.azure.com", "api.anthropic.com", "api.x.ai", "api.deepseek.com",
    "api.together.xyz", "api.fireworks.ai", "api.deepinfra.com", "api.cohere.com", "api.cohere.ai",
)  # fmt: skip
"""Hosts, with all below them, that stop a stream when its caller leaves."""
_OWN: Final = (".local", ".internal", ".lan", ".home.arpa", ".svc", ".svc.cluster.local", ".localhost")


def usual(host: str) -> StopsBilling:
    """What is known of a backend by where it is."""
    name = host.lower().rstrip(".")
    if _is_own(name):
        return True
    return "streams" if any(name == known or name.endswith(f".{known}") for known in _STREAMS) else False


def stops(how: StopsBilling, *, streamed: bool) -> bool:
    return streamed if how == "streams" else bool(how)


def _is_own(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_OWN)
    return address.is_private or address.is_loopback
