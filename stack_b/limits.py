"""The published caps of the gateway. Each is in the OpenAPI document; the defaults are those of the public contract."""

from datetime import timedelta
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

Cap: TypeAlias = Annotated[int, Meta(ge=1)]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    body_bytes: Cap = 4 * 1024 * 1024
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
