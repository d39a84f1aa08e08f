"""A policy: rules on what may be asked of models and what may come of it. Data only; `stack_b.policies` decides by it.

Each policy is read by itself, from the top: the first rule that applies to what is looked at decides on it, and what no
rule applies to is allowed. Where several policies hold, such as the node's and the tenant's, what one of them denies is
denied: no policy widens another.

A rule applies where all conditions that it states hold; of the alternatives in one condition, any. A name may have `*` in
it, which stands for anything.
"""

import hashlib
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

MAX_RULES: Final = 200
MAX_WORDS: Final = 500
MAX_PATTERN_CHARS: Final = 1_000
MAX_NAMES: Final = 200

Stage: TypeAlias = Literal["input", "output", "offer", "call"]
"""What a rule is about: what is asked, what is answered, a function that is offered to the model, and one that it calls."""
Effect: TypeAlias = Literal["allow", "deny"]

RuleId = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_.-]{0,63}$")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Names: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMES)]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
Words: TypeAlias = Annotated[tuple[Word, ...], Meta(max_length=MAX_WORDS)]
Pattern = Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN_CHARS)]
Patterns: TypeAlias = Annotated[tuple[Pattern, ...], Meta(max_length=MAX_WORDS)]
Scalar: TypeAlias = str | int | float | bool | None


class Argument(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of one argument of a call. Under `allow`, every value at the path must be so, and there must be one;
    under `deny`, it is enough that one is."""

    path: Annotated[str, Meta(min_length=1, max_length=200)]
    """Names of members with dots between them; `*` is each member of an object or each item of a list."""
    values: Annotated[tuple[Scalar, ...], Meta(max_length=MAX_WORDS)] | None = None
    patterns: Patterns = ()
    """One of them is the whole text of the value."""
    least: float | None = None
    most: float | None = None


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: RuleId
    """What a decision names as its reason."""
    effect: Effect
    on: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=4)] = ("input",)
    models: Names = ()
    """As the node names the model that would serve, whatever name was asked for: fallbacks and canaries included."""
    tiers: Names = ()
    """The tier that was asked for, by its name or an alias."""
    backends: Names = ()
    principals: Names = ()
    roles: Names = ()
    agents: Names = ()
    """What the client says of itself, in `metadata.agent_id` or a header."""
    classifications: Names = ()
    regions: Names = ()
    """Any of those that the caller's token names."""
    keywords: Words = ()
    """Words or phrases, in any case; not inside a longer word."""
    patterns: Patterns = ()
    """Regular expressions in RE2's syntax, found anywhere in a text, in any case."""
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    """It applies to a request that may write more than this, all its choices together."""
    functions: Names = ()
    arguments: Annotated[tuple[Argument, ...], Meta(max_length=MAX_NAMES)] = ()


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rules: Annotated[tuple[Rule, ...], Meta(max_length=MAX_RULES)] = ()

    @property
    def version(self) -> str:
        """Equal for policies that say the same; empty for one that says nothing."""
        if not self.rules:
            return ""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]
