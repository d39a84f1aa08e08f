"""Which providers there are, where they are, and what each must be told to be called. Pure."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ports.errors import InvalidArgument
from ports.messages import Json
from ports.provider import Endpoint


class Maker(Struct, frozen=True, kw_only=True):
    """One provider, as LiteLLM knows it."""

    name: str
    """LiteLLM's own."""
    base_url: str = ""
    """Said with every call, so that no variable of the environment can say another. Empty: made of the options."""
    base_argument: str = "api_base"
    key_argument: str = "api_key"
    options: Mapping[str, str] = {}
    """Ours → LiteLLM's argument. All are needed."""
    cache_marks: bool = True
    """Whether `cache_control` in a message is a part of the request, and not a request of its own."""
    ends_with: bytes = b""
    """What is in every stream that is whole, for those of which LiteLLM takes any end for the end. No text can say it: in a
    text its quotation marks are escaped."""


# Those whose calls were seen to go over the adapter's own wire; LiteLLM has more, some of which bring another.
MAKERS: Final[Mapping[str, Maker]] = {
    "anthropic": Maker(name="anthropic", base_url="https://api.anthropic.com"),
    "bedrock": Maker(
        name="bedrock", options={"region": "aws_region_name"}, base_argument="aws_bedrock_runtime_endpoint"
    ),
    "gemini": Maker(
        name="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta",
        cache_marks=False,
        ends_with=b'"finishReason"',
    ),
}


def check(at: Endpoint) -> None:
    """Raise `InvalidArgument` where something is missing, or is of no use."""
    maker = MAKERS.get(at.provider)
    if maker is None:
        raise InvalidArgument(f"no provider {at.provider!r} is known; there are {sorted(MAKERS)}")
    if not at.api_key:
        raise InvalidArgument(f"the provider {at.provider!r} needs an api_key; write env:NAME or file:/path")
    if missing := sorted(maker.options.keys() - at.options.keys()):
        raise InvalidArgument(f"the provider {at.provider!r} needs {missing} in `options`")
    if unknown := sorted(at.options.keys() - maker.options.keys()):
        raise InvalidArgument(f"the provider {at.provider!r} does not know the options {unknown}")


def arguments(at: Endpoint) -> dict[str, Json]:
    """What LiteLLM is told of where and by which right."""
    maker = MAKERS[at.provider]
    told: dict[str, Json] = {"custom_llm_provider": maker.name, maker.key_argument: at.api_key}
    told |= {argument: at.options[ours] for ours, argument in maker.options.items()}
    if base := at.base_url or maker.base_url:
        told[maker.base_argument] = base
    return told
