"""When Presidio has to look, and what comes of it together with our patterns, which know secrets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Final

from msgspec import Meta, Struct

from adapters.presidio_pii.engine import KINDS, NEED_A_MODEL, Engine, EngineSettings, Hit, engine_of
from adapters.presidio_pii.pool import EnginePool
from ports.adapter import AdapterSpec, Given
from ports.context import AuthContext
from ports.errors import InvalidArgument
from ports.pii import Finder, PiiCapabilities, PiiDetector, Span
from ports.pii_text import readings

PATTERNS: Final = "pii_patterns"
"""The port of the detector underneath: it decides the common case, and knows what Presidio doesn't."""

OF_PATTERNS: Final = frozenset({"secret", "payment_card", "iban", "us_ssn", "email", "phone"})
# Told by an `@` or by digits; of the others no sign is known beforehand.
_TOLD_BY_SIGNS: Final = frozenset({"EMAIL_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "PHONE_NUMBER", "IP_ADDRESS"})
_FEWEST_DIGITS: Final = 4


class PresidioConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entities: tuple[str, ...] = ("EMAIL_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "US_SSN")
    """Presidio's names. More find more, and take more for something."""
    score: Annotated[float, Meta(gt=0, le=1)] = 0.5
    model: str = ""
    """An installed spaCy model, for names of persons and places. Without one, none is looked for."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes for long texts."""
    long_chars: Annotated[int, Meta(ge=256)] = 4_096
    """A text of this length goes to another process: 4 kB take about 10 ms."""


class PresidioPii:
    """PiiDetector. Short texts are looked at in this process."""

    def __init__(self, config: PresidioConfig, patterns: PiiDetector, engine: Engine, pool: EnginePool) -> None:
        self._config = config
        self._patterns = patterns
        self._engine = engine
        self._pool = pool
        self._settings = settings_of(config)
        self._told_by_signs = not config.model and set(config.entities) <= _TOLD_BY_SIGNS

    @property
    def capabilities(self) -> PiiCapabilities:
        return capabilities_of(self._config)

    def elsewhere(self) -> Finder | None:
        patterns = self._patterns.elsewhere()
        return None if patterns is None else partial(find_apart, self._settings, patterns)

    async def detect(self, auth: AuthContext, text: str) -> tuple[Span, ...]:
        known = await self._patterns.detect(auth, text)
        if not text or (self._told_by_signs and not _may_match(text)):
            return known
        if len(text) < self._config.long_chars:
            hits = self._engine.find(text)
        else:
            hits = await self._pool.find(text)
        return merged(known, hits)


def _may_match(text: str) -> bool:
    return any("@" in one.text or sum(map(one.text.count, "0123456789")) >= _FEWEST_DIGITS for one in readings(text))


def merged(known: tuple[Span, ...], hits: list[Hit]) -> tuple[Span, ...]:
    """One span for findings that overlap, with the name that our patterns have for it, if they have one."""
    spans: list[Span] = []
    ours = {(span.start, span.end) for span in known}
    both = [*((span.start, span.end, span.kind) for span in known), *hits]
    for start, end, kind in sorted(both, key=lambda hit: (hit[0], hit[:2] not in ours)):
        if spans and start < spans[-1].end:
            last = spans[-1]
            is_ours = (last.start, last.end) in ours or (start, end) not in ours
            spans[-1] = Span(start=last.start, end=max(last.end, end), kind=last.kind if is_ours else kind)
        else:
            spans.append(Span(start=start, end=end, kind=kind))
    return tuple(spans)


def capabilities_of(config: PresidioConfig) -> PiiCapabilities:
    """Raises `InvalidArgument` for entities that we have no name for, or that need a model."""
    if unknown := sorted(set(config.entities) - KINDS.keys()):
        raise InvalidArgument(
            f"the pii adapter 'presidio' does not know the entities {unknown}; it knows {sorted(KINDS)}"
        )
    if not config.model and (lacking := sorted(set(config.entities) & NEED_A_MODEL)):
        raise InvalidArgument(f"the entities {lacking} need a language model; name an installed one as `model`")
    return PiiCapabilities(
        classes=OF_PATTERNS | {KINDS[entity] for entity in config.entities}, plain_words=bool(config.model)
    )


def settings_of(config: PresidioConfig) -> EngineSettings:
    return EngineSettings(entities=config.entities, score=config.score, model=config.model)


def find_apart(settings: EngineSettings, patterns: Finder, text: str) -> tuple[Span, ...]:
    """In a process that has no engine before it is asked for."""
    return merged(patterns(text), engine_of(settings).find(text))


@asynccontextmanager
async def open_presidio_pii(config: PresidioConfig, given: Given) -> AsyncIterator[PiiDetector]:
    capabilities_of(config)
    settings = settings_of(config)
    engine = await asyncio.to_thread(Engine, settings)
    pool = EnginePool(settings, workers=config.workers)
    try:
        yield PresidioPii(config, given.ports[PATTERNS], engine, pool)
    finally:
        await pool.close()


SPEC: Final = AdapterSpec(
    config=PresidioConfig, capabilities=capabilities_of, open=open_presidio_pii, needs=(PATTERNS,)
)
