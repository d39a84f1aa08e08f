"""The one place that imports Presidio: 3 s and 100 MB, so only where it is asked for, and once per process.

Its recognisers run over no language model unless one is named. Then it tokenises nothing, and words nearby change no score:
what is found in a text is found in its pieces.
"""

import importlib.util
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

from ports.errors import InvalidArgument
from ports.pii_text import canonical_form

LANGUAGE: Final = "en"
"""Of Presidio's tables; a number or an address has the same form in all of them."""

KINDS: Final = {
    "EMAIL_ADDRESS": "email",
    "CREDIT_CARD": "payment_card",
    "IBAN_CODE": "iban",
    "US_SSN": "us_ssn",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip_address",
    "CRYPTO": "crypto_wallet",
    "PERSON": "person",
    "LOCATION": "location",
}
"""Presidio's names and ours."""
NEED_A_MODEL: Final = frozenset({"PERSON", "LOCATION"})

Hit = tuple[int, int, str]


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What a process needs to build its engine; it is sent to those of the pool."""

    entities: tuple[str, ...]
    score: float
    model: str


class Engine:
    """Presidio's analyzer. Building one imports it.

    Raises:
        InvalidArgument: the extra or the language model is not installed.
    """

    def __init__(self, settings: EngineSettings) -> None:
        if importlib.util.find_spec("presidio_analyzer") is None:
            raise InvalidArgument(
                "the pii adapter 'presidio' needs the extra `presidio`; install it, or choose 'regex'"
            )
        if settings.model and importlib.util.find_spec(settings.model) is None:
            raise InvalidArgument(f"the spaCy model {settings.model!r} is not installed; install it, or leave it out")
        self._settings = settings
        self._analyzer = _analyzer(settings)

    def find(self, text: str) -> list[Hit]:
        """What Presidio finds in `text` as a reader sees it, at its places in the text given."""
        # A language model knows letters by their marks.
        canonical = canonical_form(text, "composed" if self._settings.model else "bare")
        found = self._analyzer.analyze(
            canonical.text,
            LANGUAGE,
            entities=list(self._settings.entities),
            score_threshold=self._settings.score,
        )
        return [
            (*canonical.place(one.start, one.end), KINDS[one.entity_type])
            for one in found
            if not _is_prose(one.entity_type, canonical.text[one.start : one.end])
        ]


@lru_cache(1)
def engine_of(settings: EngineSettings) -> Engine:
    """The one of this process."""
    return Engine(settings)


def _is_prose(entity: str, text: str) -> bool:
    # In groups an account number is written in capitals; small words between numbers are prose.
    return entity == "IBAN_CODE" and " " in text and not text.isupper()


def _analyzer(settings: EngineSettings) -> Any:  # Presidio ships no types
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry  # noqa: PLC0415 - see the module's docstring
    from presidio_analyzer.nlp_engine import NlpEngine, NoOpNlpEngine, SpacyNlpEngine  # noqa: PLC0415 - as above
    from presidio_analyzer.predefined_recognizers import (  # noqa: PLC0415 - as above
        CreditCardRecognizer,
        CryptoRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
        SpacyRecognizer,
        UsSsnRecognizer,
    )
    from tldextract import TLDExtract  # noqa: PLC0415 - as above

    # Its own extractor would fetch the list of suffixes at first use; a gateway calls nobody but backends.
    bundled = TLDExtract(cache_dir=None, suffix_list_urls=())

    class Email(EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(bundled(pattern_text).fqdn)

    recognizers = {
        "EMAIL_ADDRESS": Email,
        "CREDIT_CARD": CreditCardRecognizer,
        "IBAN_CODE": IbanRecognizer,
        "US_SSN": UsSsnRecognizer,
        "PHONE_NUMBER": PhoneRecognizer,
        "IP_ADDRESS": IpRecognizer,
        "CRYPTO": CryptoRecognizer,
    }
    chosen: list[Any] = [recognizers[entity]() for entity in settings.entities if entity in recognizers]
    engine: NlpEngine
    if settings.model:
        engine = SpacyNlpEngine(models=[{"lang_code": LANGUAGE, "model_name": settings.model}])
        chosen.append(SpacyRecognizer(supported_entities=sorted(NEED_A_MODEL & set(settings.entities))))
    else:
        engine = NoOpNlpEngine(models=[{"lang_code": LANGUAGE, "model_name": "none"}])
    registry = RecognizerRegistry(recognizers=chosen, supported_languages=[LANGUAGE])
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[LANGUAGE])
