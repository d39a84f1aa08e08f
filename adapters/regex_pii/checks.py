"""Which numbers are cards and which are bank accounts: by issuer, length and checksum."""

import re
from typing import Final

# Issuer prefix → lengths, from the ranges that the networks publish.
_CARDS: Final = (
    (re.compile(r"4"), frozenset({13, 16, 19})),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), frozenset({16})),  # Mastercard
    (re.compile(r"3[47]"), frozenset({15})),  # American Express
    (re.compile(r"3(?:0[0-5]|095|[689])"), frozenset({14, 16})),  # Diners Club
    (re.compile(r"6011|64[4-9]|65"), frozenset({16, 19})),  # Discover
    (re.compile(r"35(?:2[89]|[3-8])"), frozenset({16, 19})),  # JCB
    (re.compile(r"62|81"), frozenset({16, 17, 18, 19})),  # UnionPay
    (re.compile(r"220[0-4]"), frozenset({16, 19})),  # Mir
    (re.compile(r"50|5[6-9]|6[37]"), frozenset({13, 14, 15, 16, 18, 19})),  # Maestro
)

# Length by country, from the IBAN registry.
_IBAN_LENGTHS: Final = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU31 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
        "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
        "YE30",
    )
}


def is_card(digits: str) -> bool:
    """Whether `digits`, and nothing but digits, is the number of a payment card."""
    known = any(len(digits) in lengths and issuer.match(digits) for issuer, lengths in _CARDS)
    return known and luhn(digits)


def luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def iban_length(country: str) -> int:
    """How many characters an IBAN of `country` has; 0 when the country has none."""
    return _IBAN_LENGTHS.get(country.upper(), 0)


def mod97(iban: str) -> bool:
    """The checksum of an IBAN written without blanks."""
    rearranged = iban[4:] + iban[:4]
    return int("".join(str(int(char, 36)) for char in rearranged)) % 97 == 1
