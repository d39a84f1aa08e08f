"""Backends from configuration, and those that are found without any."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Final, Literal, TypeAlias, get_args
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from ports.clock import Clock
from ports.errors import InvalidArgument
from ports.messages import Json
from ports.provider import Endpoint, ProviderPort
from stack_b.backends.billing import StopsBilling, usual
from stack_b.backends.demo import DemoBackend
from stack_b.backends.dial import split_url, tls_context
from stack_b.backends.dialects import Azure, Dialect, Tgi, Vllm
from stack_b.backends.money import nanousd_of
from stack_b.backends.openai_compatible import OpenAiCompatible
from stack_b.backends.plain_secrets import plain_secrets
from stack_b.backends.protocol import ModelCard, OpenBackend, Price
from stack_b.backends.provided import ProvidedBackend
from stack_b.backends.reach import USUAL, Reach
from stack_b.members import NEVER

OPENAI_URL: Final = "https://api.openai.com/v1"
OLLAMA_URL: Final = "http://127.0.0.1:11434/v1"

Direct: TypeAlias = Literal["openai_compatible", "openai", "azure", "vllm", "tgi", "ollama"]
"""Those that speak OpenAI's protocol."""
Provided: TypeAlias = Literal["anthropic", "bedrock", "gemini"]
"""Those that are reached through the provider port."""
Kind: TypeAlias = Literal[Direct, Provided, "demo"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
PROVIDED: Final[tuple[str, ...]] = get_args(Provided)

_DIALECTS: Final[Mapping[str, type[Dialect]]] = {"azure": Azure, "vllm": Vllm, "tgi": Tgi}
_URLS: Final[Mapping[str, str]] = {"openai": OPENAI_URL, "ollama": OLLAMA_URL}
_BILLING: Final[Mapping[str, StopsBilling]] = {"anthropic": usual("api.anthropic.com")}
_API_VERSION: Final = "api_version"
_STEERED: Final = frozenset(
    {"model", "messages", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"}
)

MOST_TOKENS: Final = 100_000_000
"""Of one answer: more than any model writes."""

Place: TypeAlias = Annotated[str, Meta(min_length=1, max_length=100)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=3_600)]


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    upstream: str | None = None
    """The backend's own name for it, where it differs."""
    chat: bool = True
    embed: bool = False
    max_tokens: Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None = None
    hidden_reasoning: bool | None = None
    """Whether it bills output that no stream shows."""
    prompt_usd_per_million: str | None = None
    """Decimal text, such as "0.15": money is never a float."""
    completion_usd_per_million: str | None = None


class BackendSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    kind: Kind = "openai_compatible"
    base_url: str = ""
    api_key: str = ""
    """A reference, `env:NAME`, `file:/path` or `secret:name`; empty for a backend without one."""
    models: tuple[ModelSettings, ...] = ()
    """Empty: what the backend lists."""
    timeout_s: Seconds = 300.0
    """The longest wait for the next bytes of an answer; the first of them may include loading the model."""
    first_byte_timeout_s: Seconds | None = None
    """Of a stream, the longest wait for its beginning; not said, it is `timeout_s`."""
    connect_timeout_s: Seconds = 5.0
    ca_file: str = ""
    """Certificates of the only authorities that are trusted here; empty: the usual ones."""
    max_tokens_member: Literal["max_tokens", "max_completion_tokens"] | None = None
    options: dict[str, str] = {}
    """What a kind must be told to be called: azure's `api_version`, bedrock's `region`."""
    members: dict[str, Json] = {}
    """Sent in every request beside the client's own, and instead of them: such as ollama's `options`."""
    pass_members: tuple[Place, ...] = ()
    """Members of requests that it may be sent beside those that every backend may (`stack_b.members`); `tools.web_search`
    is tools of that kind."""
    regions: tuple[Place, ...] = ()
    """Where what it is sent may be seen, all of them. Empty: unknown, so that nothing goes there which is bound to a
    region."""
    classifications: tuple[Place, ...] = USUAL
    """What it may be sent, by the classification in the caller's token; `*` for anything."""
    cancel_stops_billing: StopsBilling | None = None
    """Whether a call that is cut off costs only what was written until then; not said, what is usual at its host."""

    @property
    def reach(self) -> Reach:
        return Reach(
            regions=frozenset(self.regions),
            classifications=frozenset(self.classifications),
            passes=frozenset(self.pass_members),
        )


def references(backend: BackendSettings) -> Iterator[tuple[str, str]]:
    """What it refers to outside of the configuration: the member, and `env:NAME`, `file:/path` or `secret:name`."""
    if backend.api_key:
        yield "api_key", backend.api_key
    if backend.ca_file:
        yield "ca_file", f"file:{backend.ca_file}"


def parse_settings(text: str) -> tuple[BackendSettings, ...]:
    """The JSON list of backends in `text`; empty text is no backend.

    Raises:
        InvalidArgument: not such a list, a name twice, a price that is no number, or a backend that can't be reached as
            described.
    """
    if not text:
        return ()
    try:
        found = msgspec.json.decode(text, type=tuple[BackendSettings, ...])
    except msgspec.DecodeError as error:
        raise InvalidArgument(
            f'the backends are not usable: {error}; write a JSON list such as [{{"name": …, "base_url": …}}], where `kind` '
            f"may be {' or '.join(KINDS)} ({KINDS[0]} if not said)"
        ) from None
    check_settings(found)
    return found


def check_settings(backends: Sequence[BackendSettings]) -> None:
    """Raise `InvalidArgument` as `parse_settings` does."""
    names = [backend.name for backend in backends]
    if len(set(names)) != len(names):
        raise InvalidArgument(f"two backends have the same name among {names}")
    for backend in backends:
        _check_kind(backend)
        for model in backend.models:
            _card(model)


def discovered(variables: Mapping[str, str]) -> tuple[BackendSettings, ...]:
    """What the environment offers: OpenAI (or who speaks like it) by the usual variables, and a local ollama.

    The ollama is listed always: until one answers at its port it has no models.
    """
    found: list[BackendSettings] = []
    key, url = variables.get("OPENAI_API_KEY"), variables.get("OPENAI_BASE_URL")
    if key or url:
        reference = "env:OPENAI_API_KEY" if key else ""
        found.append(BackendSettings(name="openai", base_url=url or OPENAI_URL, api_key=reference))
    found.append(BackendSettings(name="ollama", base_url=OLLAMA_URL, connect_timeout_s=1.0))
    return tuple(found)


def merged(
    explicit: Sequence[BackendSettings], found: Sequence[BackendSettings], *, demo: bool
) -> tuple[BackendSettings, ...]:
    """Explicit backends first, then those found that they do not already name, then the demo backend."""
    names = {backend.name for backend in explicit}
    urls = {backend.base_url.rstrip("/") for backend in explicit}
    more = [backend for backend in found if backend.name not in names and backend.base_url.rstrip("/") not in urls]
    rules = [BackendSettings(name="demo", kind="demo")] if demo and "demo" not in names else []
    return (*explicit, *more, *rules)


def endpoint_of(backend: BackendSettings, api_key: str) -> Endpoint:
    """Of a provided kind."""
    return Endpoint(
        provider=backend.kind,
        base_url=backend.base_url,
        api_key=api_key,
        options=backend.options,
        connect_s=backend.connect_timeout_s,
        first_byte_s=backend.first_byte_timeout_s or backend.timeout_s,
        next_byte_s=backend.timeout_s,
    )


def open_backend(
    backend: BackendSettings,
    clock: Clock,
    *,
    secret: Callable[[str], str],
    demo: bool,
    provider: ProviderPort | None = None,
) -> OpenBackend:
    """The backend, with its connection pool, for the caller to close. Contacts nobody.

    Raises:
        InvalidArgument: a secret that isn't there, the demo backend where it may not be, or a provider that can't be used.
    """
    if backend.kind == "demo":
        if not demo:
            raise InvalidArgument(f"backend {backend.name!r}: the demo backend is not served in mode 'prod'")
        return DemoBackend(clock, name=backend.name)
    if backend.kind in PROVIDED:
        if provider is None:
            raise InvalidArgument(f"backend {backend.name!r}: this gateway has no adapter for the port 'provider'")
        return ProvidedBackend(
            name=backend.name,
            provider=provider,
            at=endpoint_of(backend, secret(backend.api_key)),
            models=tuple(_card(model) for model in backend.models),
            members=backend.members,
            cancel_stops_billing=(
                _BILLING.get(backend.kind, False)
                if backend.cancel_stops_billing is None
                else backend.cancel_stops_billing
            ),
        )
    query = f"?api-version={quote(backend.options[_API_VERSION])}" if _API_VERSION in backend.options else ""
    return OpenAiCompatible(
        name=backend.name,
        base_url=_base_url(backend) + query,
        dialect=_DIALECTS.get(backend.kind, Dialect)(backend.members),
        api_key=secret(backend.api_key) if backend.api_key else None,
        models=tuple(_card(model, "tgi" if backend.kind == "tgi" else None) for model in backend.models),
        timeout=timedelta(seconds=backend.timeout_s),
        first_byte_timeout=(
            None if backend.first_byte_timeout_s is None else timedelta(seconds=backend.first_byte_timeout_s)
        ),
        connect_timeout=timedelta(seconds=backend.connect_timeout_s),
        max_tokens_member=backend.max_tokens_member,
        cancel_stops_billing=backend.cancel_stops_billing,
        tls=tls_context(backend.ca_file) if backend.ca_file else None,
    )


def _base_url(backend: BackendSettings) -> str:
    return backend.base_url or _URLS.get(backend.kind, "")


def _check_kind(backend: BackendSettings) -> None:
    if backend.kind == "demo":
        return
    for problem in (*(_of_provided(backend) if backend.kind in PROVIDED else _of_direct(backend)), *_of_any(backend)):
        raise InvalidArgument(f"backend {backend.name!r}: {problem}")
    if backend.base_url or backend.kind not in PROVIDED:
        try:
            split_url(_base_url(backend))
        except InvalidArgument as error:
            raise InvalidArgument(f"backend {backend.name!r} is not usable: {error.message}") from None


def _of_provided(backend: BackendSettings) -> Iterator[str]:
    # Which options it needs is the adapter's to say, when it is opened.
    if not backend.api_key:
        yield f"{backend.kind} needs an api_key, as env:NAME, file:/path or secret:name"
    if backend.ca_file or backend.max_tokens_member:
        yield f"ca_file and max_tokens_member are not for {backend.kind}; leave them out"


def _of_direct(backend: BackendSettings) -> Iterator[str]:
    azure = backend.kind == "azure"
    if unknown := sorted(backend.options.keys() - ({_API_VERSION} if azure else set())):
        yield f"{backend.kind} does not know the options {unknown}; leave them out"
    if azure and (_API_VERSION in backend.options) == ("?" in backend.base_url):
        yield "azure needs one api_version in `options`, such as 2024-10-21, and a base_url without"


def _of_any(backend: BackendSettings) -> Iterator[str]:
    if (backend.kind in PROVIDED or backend.kind == "azure") and not backend.models:
        yield f"{backend.kind} does not list its models; name them in `models`"
    found = (*plain_secrets(backend.members, "members"), *plain_secrets(backend.options, "options"))
    if found:
        # Where, and never what: it would be shown once more.
        yield (
            f"{', '.join(found)} looks like a secret in plain, and a configuration is shown to many; give it as the "
            "api_key, by reference, and change it if this document was shown to anybody"
        )
    if taken := sorted(backend.members.keys() & _STEERED):
        yield f"members {taken} are the gateway's own to say; leave them out"
    if never := sorted(NEVER.intersection(backend.pass_members)):
        yield f"pass_members {never} would let clients steer, or write more than is held; leave them out"


def _card(model: ModelSettings, upstream: str | None = None) -> ModelCard:
    priced = model.prompt_usd_per_million is not None or model.completion_usd_per_million is not None
    price = Price(
        prompt=nanousd_of(model.prompt_usd_per_million or "0"),
        completion=nanousd_of(model.completion_usd_per_million or "0"),
    )
    return ModelCard(
        id=model.id,
        upstream=model.upstream or upstream or model.id,
        chat=model.chat,
        embed=model.embed,
        max_tokens=model.max_tokens,
        hidden_reasoning=model.hidden_reasoning,
        price=price if priced else None,
    )
