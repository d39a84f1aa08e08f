"""A prompt and its answer that a tenant wants kept."""

from datetime import timedelta

from ports.messages import Json
from ports.tenant import Entitlements


class Texts:
    """Of one request: the prompt as its backend saw it, the answer as its client did. They live as long as the request."""

    def __init__(self, keep: timedelta, prompt: Json) -> None:
        self.keep = keep
        self.prompt = prompt
        self.answer: Json = None


def texts_to_keep(entitlements: Entitlements, prompt: Json) -> Texts | None:
    wanted = entitlements.store_prompts
    return None if wanted is None else Texts(timedelta(days=wanted.retention_days), prompt)
