"""What the adapter of the port 'provider' says of a backend's settings, before a gateway opens it."""

from adapters.litellm_provider import LiteLlmProvider
from ports.errors import InvalidArgument
from stack_b.backends.settings import PROVIDED, BackendSettings, endpoint_of


def check_provided(backend: BackendSettings) -> None:
    """Raise `InvalidArgument` where the gateway would refuse it. Whether its key is there is looked at elsewhere."""
    if backend.kind not in PROVIDED or not backend.api_key:
        return
    try:
        LiteLlmProvider().check(endpoint_of(backend, backend.api_key))
    except InvalidArgument as error:
        raise InvalidArgument(f"backend {backend.name!r}: {error.message}") from None
