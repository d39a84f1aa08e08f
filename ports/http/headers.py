"""A request's header fields: looked up by name, and checked for what recipients disagree about."""

import re
from typing import Final

from ports.errors import InvalidArgument

_SINGLETONS: Final = frozenset(
    {
        b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key", b"if-match", b"last-event-id",
        b"traceparent", b"transfer-encoding", b"x-api-key", b"x-correlation-id", b"x-step-key", b"x-tenant-id",
    }
)  # fmt: skip
_KEY: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


class Headers(dict[bytes, bytes]):
    """By name, in lower case. Of several fields of one name, the first one counts."""

    __slots__ = ("_raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        """`raw` as ASGI has it."""
        super().__init__(raw)
        self._raw = raw
        if len(self) != len(raw):
            self.update(reversed(raw))

    def text(self, name: bytes) -> str | None:
        value = self.get(name)
        return None if value is None else value.decode("latin-1")

    def idempotency_key(self) -> str | None:
        """Raises `InvalidArgument` for what can't be one."""
        key = self.text(b"idempotency-key")
        if key is not None and _KEY.fullmatch(key) is None:
            raise InvalidArgument(
                "Idempotency-Key must be 1 to 255 printable ASCII characters", details={"path": "idempotency-key"}
            )
        return key

    def any_of(self, beginnings: tuple[bytes, ...]) -> bool:
        return any(name.startswith(beginnings) for name in self)

    def check(self) -> None:
        """Raise `InvalidArgument` for a singleton that was sent twice, or framing that is ambiguous."""
        if len(self) != len(self._raw):
            names = [name for name, _ in self._raw]
            for name in names:
                if name in _SINGLETONS and names.count(name) > 1:
                    raise InvalidArgument(f"the header {name.decode('latin-1')!r} was sent twice")
        framing = self.get(b"transfer-encoding")
        if framing is None:
            return
        if b"content-length" in self:
            raise InvalidArgument("send Content-Length or Transfer-Encoding, not both")
        if framing.strip().lower() != b"chunked":
            raise InvalidArgument("the only Transfer-Encoding taken is chunked")
