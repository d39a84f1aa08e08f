"""The patterns, all over canonical text.

Each is linear: repeats are bounded or possessive, and an unbounded one starts only where a token starts.
"""

import re
from typing import Final

# Letters of alphabets. Scripts written without spaces are left out, or an address in the middle of a Chinese sentence
# would take the sentence along.
_LETTERS: Final = "a-zA-Z\u00c0-\u024f\u0370-\u052f\u0590-\u06ff\u0900-\u0e7f"

EMAIL: Final = re.compile(
    rf"(?<![{_LETTERS}0-9_.+-])"
    rf"(?:[{_LETTERS}]{{1,3}}')?[{_LETTERS}0-9_.+-]++@"
    rf"(?:[{_LETTERS}0-9-]{{1,63}}\.){{1,8}}(?:xn--[a-z0-9-]{{1,59}}|[{_LETTERS}]{{2,24}})"
)

# Digits, with a separator between groups of them that may have a blank on each side.
DIGIT_RUN: Final = re.compile(r"(?<!\d)\d++(?: ?[ .-] ?\d++)*+", re.ASCII)
DIGITS: Final = re.compile(r"\d++", re.ASCII)

IBAN_START: Final = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[ -]?[0-9][ -]?[0-9]")

SSN: Final = re.compile(r"(?<![\d.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-]|\.\d)", re.ASCII)
# Without hyphens it is a number like any other, unless the text says what it is.
SSN_NAMED: Final = re.compile(
    r"\b(?:ssn|social security)\b[^\d\n]{0,24}((?!000|666|9)\d{3}[ -]?(?!00)\d{2}[ -]?(?!0000)\d{4})(?!\d)",
    re.ASCII | re.IGNORECASE,
)

PHONE: Final = re.compile(
    r"(?<![\w+])\+[1-9](?:[ ./-]{0,2}(?:\(\d{1,5}\)|\d)){8,14}(?!\d)"  # +49 (0)30 1234567, (212) 555-0142
    r"|(?<![\w.+-])(?<!\d[ .-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?![\w-])",
    re.ASCII,
)

SECRET: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"aos_[a-z0-9]{1,16}_[0-9a-f]{32}_[0-9a-f]{64}"  # ours
    r"|sk-[A-Za-z0-9_-]{20,250}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,250}"  # OpenAI, Anthropic; Stripe
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,250}|github_pat_[A-Za-z0-9_]{22,250}|glpat-[A-Za-z0-9_-]{20,250}"  # GitHub, GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|hf_[A-Za-z0-9]{30,250}|npm_[A-Za-z0-9]{36}|AIza[0-9A-Za-z_-]{35}"  # Hugging Face, npm, Google
    r"|eyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+"  # a signed token
    r")"
)
# A secret without a form of its own, behind its name. It must have a digit: "password: forgotten" is prose.
SECRET_NAMED: Final = re.compile(
    r"\b(?:bearer[ \t]{1,4}"
    r"|(?:aws_secret_access_key|api[_-]?key|secret[_-]?key|access[_-]?token|password|passwd)"
    r"[\"']?[ \t]{0,4}[=:][ \t]{0,4}[\"']?)"
    r"(?=[A-Za-z._~+/=!@#$%^&*-]{0,200}[0-9])([A-Za-z0-9._~+/=!@#$%^&*-]{8,512})",
    re.ASCII | re.IGNORECASE,
)
URL_PASSWORD: Final = re.compile(r"://[^\s/:@]{0,256}:([^\s/@]{1,256})@")
PRIVATE_KEY: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
PRIVATE_KEY_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")

# Identifiers, whose digits mean nothing: ours, UUIDs, trace contexts, hexadecimal digests.
IDENTIFIER: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:[a-z]{3}_[0-9a-f]{32}"
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
    r"|[0-9a-f]{128}|[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?![0-9A-Za-z])"
)

# The pre-scan: literals are searched at the speed of memory, patterns at a hundredth of it.
SECRET_HINTS: Final = {
    "_": ("aos_", "k_live_", "k_test_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_", "npm_"),
    "-": ("sk-", "glpat-", "xox"),
    "A": ("AKIA", "ASIA", "AIza"),
    "J": ("eyJ",),
}
"""By a character that they have and prose seldom has."""
NAMES_OF_SECRETS: Final = ("bearer", "secret", "key", "token", "passw")
KEY_HINT: Final = "-----BEGIN"
URL_HINT: Final = "://"
FEWEST_DIGITS: Final = 7
"""Of everything that is told by its digits."""
