"""A request whose JSON is there: what a backend is sent is what it would be sent without."""

from typing import Any

import msgspec
import pytest

from stack_b.backends.dialects import Dialect
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.canonical import encoded

BODIES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "texts": {"messages": [{"role": "user", "content": 'say "}" to Ann, and Grüße'}]},
    "a member of the gateway's": {"messages": [], "max_tokens": 10**9, "model": "another", "stream": True},
}


@pytest.mark.parametrize("members", [None, {"store": False}, {"messages": []}], ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_it_is_sent_the_same(name: str, members: dict[str, Any] | None) -> None:
    backend = OpenAiCompatible(name="b", base_url="http://127.0.0.1:9/v1", dialect=Dialect(members))
    body = BODIES[name]
    told = backend._chat_request("m-1", encoded(body, msgspec.json.encode(body)), {"max_tokens": 7})

    assert told == backend._chat_request("m-1", body, {"max_tokens": 7})
    assert told.count(b'"max_tokens"') == 1
    assert msgspec.json.decode(told.partition(b"\r\n\r\n")[2])["max_tokens"] == 7
