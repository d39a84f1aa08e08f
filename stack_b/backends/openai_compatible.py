"""A backend at any URL that speaks OpenAI: OpenAI itself, ollama, vLLM, TGI, LiteLLM and the rest.

One pool of connections per backend. Nothing of the client's request but its body travels upstream, and nothing but the
body travels back.
"""

import ssl
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct

from ports.errors import AgentOSError, InvalidArgument, Unavailable
from ports.messages import Json
from stack_b.backends.billing import StopsBilling, stops, usual
from stack_b.backends.chunk_reader import ChunkReader
from stack_b.backends.connection import (
    Answer,
    Connection,
    ExchangeError,
    NoRoom,
    NotConnected,
    Patience,
    TimedOut,
    TooLarge,
)
from stack_b.backends.dial import Dial, dial, host_header, split_url, tls_context
from stack_b.backends.dialects import Dialect
from stack_b.backends.pool import Pool
from stack_b.backends.protocol import OUTCOME_UNKNOWN, ModelCard
from stack_b.backends.shapes import ChunkShape, CompletionShape, EmbeddingsShape
from stack_b.backends.streamed import BROKE_OFF, Streamed
from stack_b.canonical import Encoded

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""2,048 embeddings of 3,072 numbers in decimal are about that."""
MAX_MODELS: Final = 10_000
MAX_REFUSAL_BYTES: Final = 64 * 1024
MAX_RETRY_AFTER_S: Final = 60
_MODELS_TIMEOUT_S: Final = 5.0
_OK: Final = 200
_FAILED: Final = 500
_OBJECT: Final = msgspec.json.Decoder(dict[str, Json])

# Of a 4xx, what is the client's to repair. Everything else is between us and the backend.
_REQUEST_REFUSED: Final = frozenset({400, 413, 422})
_MAX_WORD_CHARS: Final = 24
"""Of a word in the name of an error or a member; keys are longer."""
_COME_LATER: Final = frozenset({429, 503})


class OpenAiCompatible:
    """Satisfies `stack_b.backends.protocol.Backend`."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        api_key: str | None = None,
        models: tuple[ModelCard, ...] = (),
        timeout: timedelta = timedelta(seconds=300),
        first_byte_timeout: timedelta | None = None,
        connect_timeout: timedelta = timedelta(seconds=5),
        max_tokens_member: str | None = None,
        cancel_stops_billing: StopsBilling | None = None,
        tls: ssl.SSLContext | None = None,
        dial_by: Dial | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        """`models` empty: ask the backend. `timeout` bounds the wait for the next bytes, not the whole answer; of a
        stream, `first_byte_timeout` that for the first ones. `tls` and `dial_by` are instead of what `base_url` says.

        Raises:
            InvalidArgument: a `base_url` that is none, or an `api_key` that no header can hold.
        """
        self.name = name
        self._models = models
        parts = split_url(base_url)
        # OpenAI's newer models refuse `max_tokens`; many servers only know `max_tokens`.
        by_host = "max_completion_tokens" if parts.hostname == "api.openai.com" else "max_tokens"
        self._max_tokens_member = max_tokens_member or by_host
        known = usual(parts.hostname or "") if cancel_stops_billing is None else cancel_stops_billing
        self._stops_billing: StopsBilling = known
        self._path = parts.path.rstrip("/")
        self._query = f"?{parts.query}" if parts.query else ""
        self._dialect = dialect or Dialect()
        self._ours = frozenset({*self._dialect.members, "model", self._max_tokens_member, "stream", "stream_options"})
        """What a request may say in our words."""
        self._headers = _headers(name, host_header(parts), api_key, self._dialect)
        self._heads: dict[str, bytes] = {}
        seconds = timeout.total_seconds()
        first = seconds if first_byte_timeout is None else first_byte_timeout.total_seconds()
        self._patience = Patience(first=seconds, next=seconds)
        self._stream_patience = Patience(first=first, next=seconds)
        context = (tls or tls_context()) if parts.scheme == "https" else None
        self._pool = Pool(dial_by or dial(parts, context), connect_s=connect_timeout.total_seconds())

    def cancel_stops_billing(self, *, streamed: bool) -> bool:
        return stops(self._stops_billing, streamed=streamed)

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def models(self) -> tuple[ModelCard, ...]:
        if self._models:
            return self._models
        within = Patience(first=_MODELS_TIMEOUT_S, next=_MODELS_TIMEOUT_S, whole=_MODELS_TIMEOUT_S)
        listing = await self._whole(self._pool.ask(self._head("GET", "models") + b"\r\n", within))
        entries = listing.get("data")
        if not isinstance(entries, list):
            raise self._broken("its list of models has no `data`")
        ids = [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        return tuple(_card(model) for model in ids[:MAX_MODELS])

    async def probe(self) -> None:
        """Any answer but 5xx is one: who does not list its models may serve them."""
        within = Patience(first=_MODELS_TIMEOUT_S, next=_MODELS_TIMEOUT_S, whole=_MODELS_TIMEOUT_S)
        try:
            answer = await self._pool.ask(self._head("GET", "models") + b"\r\n", within)
        except ExchangeError as error:
            raise self._translated(error) from error
        status = answer.status
        answer.release()
        if status >= _FAILED:
            raise Unavailable(f"backend {self.name!r} answered {status}", code="upstream_error")

    def chat(self, model: str, body: dict[str, Json], max_tokens: int) -> Coroutine[Any, Any, dict[str, Json]]:
        request = self._chat_request(model, body, {self._max_tokens_member: max_tokens})
        return self._whole(self._pool.ask(request, self._patience), CompletionShape)

    # The same without a coroutine, where there is a connection.

    def idle(self) -> Connection | None:
        """A connection that can be asked at once, to be sent over or given back."""
        return self._pool.idle()

    def send(
        self,
        connection: Connection,
        model: str,
        body: dict[str, Json],
        max_tokens: int,
        arrived: Callable[[], None],
    ) -> Answer:
        """`arrived` is called when the answer, to be released, is here as a whole, or never will be."""
        request = self._chat_request(model, body, {self._max_tokens_member: max_tokens})
        return connection.send(request, self._patience, MAX_ANSWER_BYTES, arrived)

    def at_hand(self, answer: Answer) -> dict[str, Json] | None:
        """What `chat` would give of it, where it is a whole one that can be understood."""
        body = answer.at_hand(MAX_ANSWER_BYTES) if answer.error is None and _is_taken(answer) else None
        try:
            return None if body is None else self._shaped(self._object(body), CompletionShape)
        except AgentOSError:
            return None

    def going_on(self, answer: Answer) -> Coroutine[Any, Any, dict[str, Json]]:
        """`chat`, of which this is the answer under way."""
        return self._whole(answer.taken_over(), CompletionShape)

    def stream(self, model: str, body: dict[str, Json], max_tokens: int) -> Streamed:
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        request = self._chat_request(model, body, {self._max_tokens_member: max_tokens, **streamed})

        def asked() -> Awaitable[Answer]:
            return self._asked(request, self._stream_patience)

        return Streamed(ChunkReader(self._chunk), asked, self._piece, self._unfinished, most_bytes=MAX_ANSWER_BYTES)

    async def embed(self, model: str, body: dict[str, Json]) -> dict[str, Json]:
        members = {**body, **self._dialect.members, "model": model}
        request = self._post("embeddings", model, msgspec.json.encode(members))
        return await self._whole(self._pool.ask(request, self._patience), EmbeddingsShape)

    def _chat_request(self, model: str, body: dict[str, Json], more: dict[str, Json]) -> bytes:
        ours = {**self._dialect.members, "model": model, **more}
        if isinstance(body, Encoded) and body and self._ours.isdisjoint(body):
            # Written once for all who read it.
            content = b"%b,%b" % (body.json[:-1], msgspec.json.encode(ours)[1:])
        else:
            content = msgspec.json.encode({**body, **ours})
        return self._post("chat/completions", model, content)

    def _head(self, method: str, path: str) -> bytes:
        """All of a request's head but what depends on its body."""
        return f"{method} {self._path}/{path}{self._query} HTTP/1.1\r\n{self._headers}".encode("latin-1")

    def _post(self, path: str, model: str, content: bytes) -> bytes:
        place = self._dialect.path(path, model)
        head = self._heads.get(place)
        if head is None:
            head = self._heads[place] = self._head("POST", place)
        return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (head, len(content), content)

    async def _whole(self, asked: Awaitable[Answer], shape: type[Struct] | None = None) -> dict[str, Json]:
        """The answer that was asked for, which must have that `shape`."""
        answer: Answer | None = None
        try:
            answer = await asked
            if not _is_taken(answer):
                raise await self._refusal(answer)
            body = answer.at_hand(MAX_ANSWER_BYTES)
            told = self._object(await answer.read(MAX_ANSWER_BYTES) if body is None else body)
        except ExchangeError as error:
            raise self._translated(error) from error
        finally:
            if answer is not None:
                answer.release()
        return told if shape is None else self._shaped(told, shape)

    def _shaped(self, told: dict[str, Json], shape: type[Struct]) -> dict[str, Json]:
        told = self._dialect.answer(told)
        self._check(told, shape)
        return told

    async def _asked(self, request: bytes, patience: Patience) -> Answer:
        """The backend's 200, to be released by the caller, or the error that its status or silence means."""
        try:
            answer = await self._pool.ask(request, patience)
        except ExchangeError as error:
            raise self._translated(error) from error
        if _is_taken(answer):
            return answer
        try:
            raise await self._refusal(answer)
        finally:
            answer.release()

    async def _piece(self, answer: Answer) -> bytes:
        try:
            return await answer.piece()
        except ExchangeError as error:
            raise self._translated(error) from error

    def _translated(self, error: ExchangeError) -> Unavailable:
        match error:
            case NotConnected():
                return Unavailable(f"backend {self.name!r}: {error}", code="upstream_error", details={"sent": False})
            case NoRoom():
                return Unavailable(f"too many calls to backend {self.name!r} at once")
            case TimedOut():
                code = "upstream_timeout"
            case TooLarge():
                return self._broken(str(error))
            case _:
                code = "upstream_error"
        return Unavailable(f"backend {self.name!r}: {error}", code=code, details=OUTCOME_UNKNOWN)

    async def _refusal(self, answer: Answer) -> AgentOSError:
        status = answer.status
        if status == _OK:
            return self._broken("it compresses its answer although it was asked not to")
        told: dict[str, Json] = {"upstream_status": status}
        if status in {401, 403}:
            return Unavailable(
                f"backend {self.name!r} refused the node's credentials; the operator must renew them",
                code="upstream_auth_error",
                details=told,
            )
        if status not in _REQUEST_REFUSED:
            return Unavailable(
                f"backend {self.name!r} answered {status}",
                code="upstream_timeout" if status in {408, 504} else "upstream_error",
                details=told,
                retry_after=_retry_after(answer) if status in _COME_LATER else None,
            )
        refused = await _refused(answer)
        told |= _identifiers(refused)
        too_long = told.get("upstream_code") == "context_length_exceeded" or self._dialect.too_long(refused)
        code = "context_length_exceeded" if too_long else "invalid_request"
        return InvalidArgument(f"backend {self.name!r} refused the request ({status})", code=code, details=told)

    def _chunk(self, event: bytes) -> dict[str, Json]:
        chunk = self._object(event)
        if "error" in chunk:
            raise Unavailable(
                f"backend {self.name!r} failed in the middle of its answer",
                code="upstream_error",
                details=OUTCOME_UNKNOWN,
            )
        chunk = self._dialect.answer(chunk)
        self._check(chunk, ChunkShape)
        return chunk

    def _check(self, value: dict[str, Json], shape: type[Struct]) -> None:
        """What the pipeline relies on must be there; everything else in `value` is the backend's and is kept."""
        try:
            msgspec.convert(value, shape)
        except msgspec.ValidationError as error:
            # msgspec names paths and types, never values.
            raise self._broken(str(error)) from None

    def _object(self, raw: bytes | bytearray) -> dict[str, Json]:
        try:
            return _OBJECT.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._broken("its answer is not a JSON object") from None

    def _unfinished(self, what: str) -> Unavailable:
        if what != BROKE_OFF:
            return self._broken(what)
        return Unavailable(
            f"backend {self.name!r} broke off in the middle of its answer",
            code="upstream_error",
            details=OUTCOME_UNKNOWN,
        )

    def _broken(self, what: str) -> Unavailable:
        """It answered, so it has worked, whatever it was that it said."""
        return Unavailable(
            f"backend {self.name!r} can't be understood: {what}", code="upstream_error", details=OUTCOME_UNKNOWN
        )


def _headers(name: str, host: str, api_key: str | None, dialect: Dialect) -> str:
    lines = {"host": host, "user-agent": "agentos", "accept": "*/*", "accept-encoding": "identity"}
    if api_key is not None:
        if not api_key or not all("!" <= character <= "~" for character in api_key):
            raise InvalidArgument(f"backend {name!r}: its api_key is empty or has a character that no header may hold")
        header, scheme = dialect.key_header
        lines[header] = f"{scheme}{api_key}"
    return "".join(f"{header}: {value}\r\n" for header, value in lines.items())


def _is_taken(answer: Answer) -> bool:
    """Whether it is an answer, in the plain encoding that was asked for."""
    if answer.status != _OK:
        return False
    return not answer.kept or answer.kept.get(b"content-encoding", b"identity").lower() == b"identity"


def _retry_after(answer: Answer) -> timedelta | None:
    """The seconds that the backend asks to be left alone, within reason. Its dates are not read: clocks differ."""
    told = answer.kept.get(b"retry-after", b"")
    if not told.isdigit():
        return None
    return timedelta(seconds=min(int(told[:9]), MAX_RETRY_AFTER_S))


async def _refused(answer: Answer) -> dict[str, Json]:
    """A refusal's body, as far as it is one."""
    try:
        return _OBJECT.decode(await answer.read(MAX_REFUSAL_BYTES))
    except (ExchangeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _identifiers(refused: dict[str, Json]) -> dict[str, Json]:
    """OpenAI's `code` and `param` of a refusal, when they look like names. Its text stays here: it may quote anything."""
    error = refused.get("error")
    if not isinstance(error, dict):
        return {}
    found = {f"upstream_{name}": error.get(name) for name in ("code", "param")}
    return {name: value for name, value in found.items() if isinstance(value, str) and _is_name(value)}


def _is_name(text: str) -> bool:
    """Words, and not something that could be a key: a provider may quote the one it was called with."""
    return len(text) <= 64 and all(  # noqa: PLR2004 - a name, not prose
        word.isascii() and word.isalnum() and len(word) <= _MAX_WORD_CHARS for word in text.replace(".", "_").split("_")
    )


def _card(model: str) -> ModelCard:
    # The listing doesn't tell what a model does; its name usually does.
    embeds = "embed" in model.lower()
    return ModelCard(id=model, upstream=model, chat=not embeds, embed=embeds)
