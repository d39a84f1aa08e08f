"""Broken providers."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar

import pytest

from adapters.inproc.provider import Answered, InprocProvider
from conformance.provider import SECRET, ProviderContract
from ports.errors import AgentOSError, Unavailable
from ports.messages import Json
from ports.provider import Endpoint
from tests.contract.broken.mutant import Mutant
from tests.contract.test_inproc_provider import InprocProviderHarness

Body = dict[str, Json]


class BrokenProvider(Mutant, ProviderContract):
    broken: ClassVar[type[InprocProvider]] = InprocProvider

    @pytest.fixture
    def harness(self) -> InprocProviderHarness:
        return InprocProviderHarness(self.broken())


class TestIsHonest(BrokenProvider):
    """Nothing is broken: what fails below fails for what is broken there."""

    caught_by = frozenset()


class GivesArgumentsAsAnObject(InprocProvider):
    async def chat(self, at: Endpoint, model: str, body: Body, max_tokens: int) -> Body:
        answer = await super().chat(at, model, body, max_tokens)
        for call in answer["choices"][0]["message"].get("tool_calls") or ():
            call["function"]["arguments"] = {"a": 1}
        return answer


class TestGivesArgumentsAsAnObject(BrokenProvider):
    broken = GivesArgumentsAsAnObject
    caught_by = frozenset({"test_calls_of_tools_have_their_arguments_as_text"})


class CountsFreshTokensOnly(InprocProvider):
    async def chat(self, at: Endpoint, model: str, body: Body, max_tokens: int) -> Body:
        answer = await super().chat(at, model, body, max_tokens)
        details = answer["usage"].get("prompt_tokens_details", {})
        return answer | {"usage": answer["usage"] | {"prompt_tokens": 1 + sum(details.values())}}


class TestCountsFreshTokensOnly(BrokenProvider):
    broken = CountsFreshTokensOnly
    caught_by = frozenset({"test_kinds_of_tokens_are_told_apart_as_parts_of_all"})


class TakesAnyEndForTheEnd(InprocProvider):
    async def stream(self, at: Endpoint, model: str, body: Body, max_tokens: int) -> AsyncGenerator[Body, None]:
        async with aclosing(super().stream(at, model, body, max_tokens)) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
            except Unavailable as error:
                if "outcome" not in error.details:
                    raise


class TestTakesAnyEndForTheEnd(BrokenProvider):
    broken = TakesAnyEndForTheEnd
    caught_by = frozenset({"test_a_stream_that_breaks_off_is_an_error_after_what_came"})


class TriesAgain(InprocProvider):
    async def _reached(self, body: Body) -> Answered:
        try:
            return await super()._reached(body)
        except Unavailable:
            return await super()._reached(body)


class TestTriesAgain(BrokenProvider):
    broken = TriesAgain
    caught_by = frozenset(
        {"test_a_refusal_has_its_meaning_and_is_asked_for_once", "test_one_that_is_silent_is_given_up"}
    )


class CallsEveryRefusalTheSame(InprocProvider):
    async def _reached(self, body: Body) -> Answered:
        try:
            return await super()._reached(body)
        except AgentOSError as error:
            if self.calls:
                raise Unavailable("it failed", code="upstream_error", details=error.details) from None
            raise


class TestCallsEveryRefusalTheSame(BrokenProvider):
    broken = CallsEveryRefusalTheSame
    caught_by = frozenset(
        {
            "test_a_refusal_has_its_meaning_and_is_asked_for_once",
            "test_how_long_it_wants_to_be_left_alone_is_told_within_reason",
            "test_a_prompt_that_is_too_long_is_told_as_that",
            "test_one_that_is_silent_is_given_up",
        }
    )


class SaysThatItWasAsked(InprocProvider):
    async def _reached(self, body: Body) -> Answered:
        try:
            return await super()._reached(body)
        except Unavailable as error:
            if error.details.get("sent") is False:
                error.details["outcome"] = "unknown"
            raise


class TestSaysThatItWasAsked(BrokenProvider):
    broken = SaysThatItWasAsked
    caught_by = frozenset({"test_one_that_can_not_be_reached_was_not_asked"})


class Quotes(InprocProvider):
    def refused(self, status: int, words: str, **more: Any) -> AgentOSError:  # as the base's
        error = super().refused(status, words, **more)
        error.__cause__ = ValueError(f"{words} {SECRET}")
        return error


class TestQuotes(BrokenProvider):
    broken = Quotes
    caught_by = frozenset({"test_an_error_quotes_nobody"})


class NeverLetsGo(InprocProvider):
    def _left(self, step: Answered) -> None:
        """It goes on at the provider."""


class TestNeverLetsGo(BrokenProvider):
    broken = NeverLetsGo
    caught_by = frozenset(
        {
            "test_closing_a_stream_ends_the_call_at_the_provider",
            "test_a_caller_who_leaves_ends_the_call_at_the_provider",
        }
    )


class LeavesOutWhatItDoesNotKnow(InprocProvider):
    async def _reached(self, body: Body) -> Answered:
        return await super()._reached({name: body[name] for name in ("messages", "input") if name in body})


class TestLeavesOutWhatItDoesNotKnow(BrokenProvider):
    broken = LeavesOutWhatItDoesNotKnow
    caught_by = frozenset({"test_what_can_not_be_passed_on_is_refused_before_anything_is_sent"})


class Reorders(InprocProvider):
    async def embed(self, at: Endpoint, model: str, body: Body) -> Body:
        answer = await super().embed(at, model, body)
        return answer | {"data": answer["data"][::-1]}


class TestReorders(BrokenProvider):
    broken = Reorders
    caught_by = frozenset({"test_there_is_a_vector_for_each_input_in_order"})


class SaysItTwice(InprocProvider):
    async def stream(self, at: Endpoint, model: str, body: Body, max_tokens: int) -> AsyncGenerator[Body, None]:
        async with aclosing(super().stream(at, model, body, max_tokens)) as chunks:
            async for chunk in chunks:
                yield chunk
                if chunk.get("usage"):
                    yield chunk


class TestSaysItTwice(BrokenProvider):
    broken = SaysItTwice
    caught_by = frozenset({"test_a_stream_joined_is_the_answer", "test_kinds_of_tokens_are_told_apart_as_parts_of_all"})
