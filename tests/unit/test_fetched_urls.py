"""What a backend would fetch for a client lies on the public internet, as far as its text says."""

from typing import Any

import pytest

from ports.errors import InvalidArgument
from stack_b.backends.reach import Reach
from stack_b.http.parse import chat_call
from stack_b.limits import Limits
from tests.support.held_backend import HeldBackend
from tests.support.stack_b import stack_b


def body(part: Any) -> dict[str, Any]:
    return {"model": "m-1", "messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


REFUSED = (
    "http://169.254.169.254/latest/meta-data", "https://169.254.169.254/", "file:///etc/passwd", "FILE:/etc/passwd",
    "http://127.0.0.1:8081/", "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f.0x1/",
    "https://[::1]/", "https://localhost/", "https://a.localhost/", "https://printer.local/", "https://db.internal./",
    "https://metadata.google.internal/", "https://intranet/", "https://user@img.example/", "https://img.example\\@x.lan/",
    "https://img.example /a", " https://img.example/a", "ftp://img.example/a", "gopher://img.example/", "//img.example/a",
    "/etc/passwd", "http://img.example/a", "https://\uff11\uff12\uff17.0.0.1/", "s3://bucket/key", "",
    "http\u017f://img.example/a", "https://\u212aube.example/a",
)  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_what_lies_inside_or_can_not_be_told_is_refused_with_its_place(url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        chat_call(body(image(url)), Limits())

    assert refused.value.code == "invalid_request"
    assert refused.value.details == {"path": "$.messages[0].content[1].image_url.url"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": "http://10.0.0.1/"},
        {"type": "video_url", "video_url": {"url": "http://10.0.0.1/"}},
        {"type": "audio_url", "audio_url": {"url": "http://10.0.0.1/"}},
        {"type": "file", "file": {"file_data": "http://10.0.0.1/"}},
        {"type": "input_audio", "input_audio": {"data": "file:///etc/passwd"}},
        {"type": "document", "source": {"type": "url", "url": "http://10.0.0.1/"}},
        {"type": "tool_result", "content": [image("http://10.0.0.1/")]},
    ],
)
def test_wherever_it_stands(part: Any) -> None:
    with pytest.raises(InvalidArgument):
        chat_call(body(part), Limits())


@pytest.mark.parametrize(
    "part",
    [
        image("https://img.example/a?b=c#d"),
        image("https://img.example:8443/a"),
        image("data:image/png;base64,aGk="),
        image("DATA:image/png;base64,aGk="),
        {"type": "file", "file": {"file_data": "aGk=", "filename": "a"}},
        {"type": "text", "text": "read http://10.0.0.1/"},
        {"type": "tool_use", "id": "1", "name": "fetch", "input": {"url": "http://10.0.0.1/"}},
    ],
)
def test_what_is_public_or_only_said_is_taken(part: Any) -> None:
    assert chat_call(body(part), Limits()).extra == ()


@pytest.mark.anyio
async def test_a_file_of_the_providers_account_is_for_backends_whose_operator_says_so() -> None:
    part = {"type": "file", "file": {"file_id": "file-1"}}
    statuses = []
    for passes in ((), ("file_id",)):
        backend = HeldBackend(held=False)
        async with stack_b(backend, limit=5_000_000, reaches={"held": Reach(passes=frozenset(passes))}) as node:
            answer = await node.post("/v1/chat/completions", body(part))
            statuses.append((answer.status_code, backend.calls))

    assert statuses == [(400, 0), (200, 1)]
