"""The published caps of the gateway. Each is in the OpenAPI document; the defaults are those of the public contract."""

from datetime import timedelta
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ports.errors import InvalidArgument

Cap: TypeAlias = Annotated[int, Meta(ge=1)]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    body_bytes: Cap = 4 * 1024 * 1024
    inspected_chars: Cap = 1024 * 1024
    """Of a request's texts, names and numbers, each of 32 at least: what policies and redaction look through. Images, sound
    and documents are not among them."""
    messages: Cap = 2_048
    tools: Cap = 128
    stop_strings: Cap = 4
    choices: Cap = 8
    """`n`."""
    logit_bias: Cap = 300
    max_tokens: Cap = 131_072
    """The most a request may ask for; a model may have less."""
    default_output_tokens: Cap = 4_096
    """What is held, and what the backend may write at most, when a request names no `max_tokens`."""
    output_slice_tokens: Cap = 1_024
    """What is held of a stream's output at first, per choice, where cancelling stops the bill; more as it is written."""
    embedding_inputs: Cap = 2_048
    request_s: Cap = 600
    """From the first byte of a request to the last of its answer. The official SDKs give up at the same time."""

    @property
    def deadline(self) -> timedelta:
        return timedelta(seconds=self.request_s)

    @property
    def lease(self) -> timedelta:
        """How long a hold outlives a process that prolongs it no more: a crash costs what was held after this time."""
        return timedelta(seconds=30)


def parse_limits(text: str) -> Limits:
    """The published caps, with what a JSON object says instead; an empty text says nothing. Raises `InvalidArgument`."""
    try:
        return msgspec.json.decode(text or "{}", type=Limits)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"AGENTOS_GATEWAY_LIMITS is not usable: {error}") from None
