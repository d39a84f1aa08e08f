"""Embedding vectors as numbers or as base64 of little-endian 32-bit floats, whichever the client asked for. Pure."""

import base64
import binascii
import struct
from typing import Literal

from ports.errors import Unavailable
from ports.messages import Json


def vector_of(item: dict[str, Json], encoding: Literal["float", "base64"]) -> dict[str, Json]:
    """One input's, with nothing beside it that isn't known there."""
    known: dict[str, Json] = {"object": "embedding"} if "object" in item else {}
    if "index" in item:
        known["index"] = item["index"]
    return {**known, "embedding": encoded(item["embedding"], encoding)}


def encoded(vector: list[float] | str, encoding: Literal["float", "base64"]) -> list[float] | str:
    """`vector` in `encoding`: not every backend knows both.

    Raises:
        Unavailable: `upstream_error`: the backend's vector can't be read.
    """
    if encoding == "base64":
        return (
            vector if isinstance(vector, str) else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        )
    if isinstance(vector, list):
        return vector
    try:
        raw = base64.b64decode(vector, validate=True)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    except (binascii.Error, struct.error) as error:
        raise Unavailable("the backend's vector can't be read", code="upstream_error") from error
