"""LiteLLM, told to do what it is asked and nothing else. Importing this module takes seconds and a few hundred MB.

Nothing is fetched while it is imported, no `.env` file is read, nobody is told of a call, and its log, which quotes
requests, says nothing.
"""

import logging
import os
from collections.abc import AsyncIterator
from typing import Any, Final, cast

import httpx

from ports.messages import Json

# Read while it is imported: the list of prices that comes with it is used, and no file of the working directory.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LITELLM_MODE"] = "PRODUCTION"

import litellm
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

_LOGGERS: Final = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")
_ONCE: Final = {"max_retries": 0, "num_retries": 0, "no-log": True}


def _quieten() -> None:
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    litellm.turn_off_message_logging = True
    litellm.disable_streaming_logging = True
    litellm.use_litellm_proxy = False
    # What a model does not know is refused, not left out.
    litellm.drop_params = False
    litellm.modify_params = False
    for name in _LOGGERS:
        logging.getLogger(name).disabled = True


_quieten()


async def chat(model: str, members: dict[str, Json], transport: httpx.AsyncBaseTransport) -> dict[str, Json]:
    reply = await litellm.acompletion(model=model, client=_client(transport), **members, **_ONCE)
    return _plain(reply)


async def stream(
    model: str, members: dict[str, Json], transport: httpx.AsyncBaseTransport
) -> AsyncIterator[dict[str, Json]]:
    """What it yields, once it has begun."""
    # `Any`: it is typed as either kind of answer.
    reply: Any = await litellm.acompletion(
        model=model,
        client=_client(transport),
        stream=True,
        stream_options={"include_usage": True},
        **members,
        **_ONCE,
    )

    async def chunks() -> AsyncIterator[dict[str, Json]]:
        async for chunk in reply:
            yield _plain(chunk)

    return chunks()


async def embed(model: str, members: dict[str, Json], transport: httpx.AsyncBaseTransport) -> dict[str, Json]:
    return _plain(await litellm.aembedding(model=model, client=_client(transport), **members, **_ONCE))


async def close() -> None:
    """End what it keeps running in the background of this loop."""
    await GLOBAL_LOGGING_WORKER.stop()


def _client(transport: httpx.AsyncBaseTransport) -> AsyncHTTPHandler:
    return AsyncHTTPHandler(transport=transport, follow_redirects=False)


def _plain(reply: Any) -> dict[str, Json]:  # one of LiteLLM's models
    return cast("dict[str, Json]", reply.model_dump(mode="json", exclude_none=True))
