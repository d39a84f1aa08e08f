"""What is particular about servers that speak OpenAI's protocol, each in its own way. Pure.

`openai_compatible` is the plain form: a bearer's key, the model in the body, arguments of tools as text, and
`context_length_exceeded` said as a code. What is here differs from that, and is tested against a server that insists on it.
"""

import re
from collections.abc import Mapping
from typing import ClassVar, Final
from urllib.parse import quote

import msgspec

from ports.messages import Json


class Dialect:
    """The plain form, with members that the operator wants in every request."""

    key_header: ClassVar[tuple[str, str]] = ("authorization", "Bearer ")
    """Its name, and what stands before the key."""

    def __init__(self, members: Mapping[str, Json] | None = None) -> None:
        self.members: dict[str, Json] = dict(members or {})

    def path(self, path: str, model: str) -> str:  # noqa: ARG002 - for those where it is in there
        """Where `model` is asked, below the base URL."""
        return path

    def answer(self, answer: dict[str, Json]) -> dict[str, Json]:
        """A whole answer, or a chunk of one, as OpenAI would have written it."""
        return answer

    def too_long(self, refused: dict[str, Json]) -> bool:  # noqa: ARG002 - its code says it
        """Whether a refusal means that the prompt is longer than the model reads. Its words go no further than here."""
        return False


class Azure(Dialect):
    """A model is a deployment, which is part of the path; the key has a header of its own."""

    key_header = ("api-key", "")

    def path(self, path: str, model: str) -> str:
        return f"openai/deployments/{quote(model, safe='')}/{path}"


class Vllm(Dialect):
    """Says how long is too long in words only."""

    _too_long: Final = re.compile(r"maximum (?:context|model) length", re.IGNORECASE)

    def too_long(self, refused: dict[str, Json]) -> bool:
        error = refused.get("error")
        said = error.get("message") if isinstance(error, dict) else refused.get("message")
        return isinstance(said, str) and self._too_long.search(said) is not None


class Tgi(Dialect):
    """Gives the arguments of a tool as an object, and its errors as text beside the kind of error."""

    _too_long: Final = re.compile(r"inputs.{0,40}(?:tokens|max_new_tokens).{0,40}must|must have less than \d+ tokens")

    def answer(self, answer: dict[str, Json]) -> dict[str, Json]:
        choices = answer.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            said = (choice.get("message") or choice.get("delta")) if isinstance(choice, dict) else None
            calls = said.get("tool_calls") if isinstance(said, dict) else None
            for call in calls if isinstance(calls, list) else ():
                _as_text(call.get("function") if isinstance(call, dict) else None)
        return answer

    def too_long(self, refused: dict[str, Json]) -> bool:
        said = refused.get("error")
        return isinstance(said, str) and self._too_long.search(said) is not None


def _as_text(function: Json) -> None:
    if isinstance(function, dict) and isinstance(function.get("arguments"), dict | list):
        function["arguments"] = msgspec.json.encode(function["arguments"]).decode()
