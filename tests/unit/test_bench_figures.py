"""The arithmetic of the benches, and what their tables show."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.bench.engine import SMOKE, parse, ratios
from tests.bench.figures import medians, percentile, ratio, shown, spreads
from tests.bench.gateway import REQUEST_BYTES, request_body
from tests.bench.harness import at_least_one
from tests.bench.upstream import IN_CHUNKS, INSTANT, PACED, TOKEN, TOKENS, chunks, pieces

FINITE = st.floats(allow_nan=False, allow_infinity=False)


class TestPercentile:
    def test_it_is_a_value_that_was_measured(self) -> None:
        assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0

    def test_of_a_hundred_values_one_lies_above_the_99th(self) -> None:
        assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0

    def test_of_a_few_values_the_99th_is_the_largest(self) -> None:
        assert percentile([1.0, 5.0, 3.0], 0.99) == 5.0

    @given(st.lists(FINITE, min_size=1), st.floats(min_value=0.001, max_value=1))
    def test_at_least_its_share_of_the_values_never_exceeds_it(self, values: list[float], share: float) -> None:
        found = percentile(values, share)

        assert sum(value <= found for value in values) >= share * len(values)

    def test_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            percentile([], 0.5)

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.1, 99.0])
    def test_a_share_outside_its_range_is_refused(self, share: float) -> None:
        with pytest.raises(ValueError, match="a share"):
            percentile([1.0], share)


class TestRounds:
    def test_each_figure_has_its_own_median(self) -> None:
        rounds = [{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 7.0}, {"a": 2.0, "b": 8.0}]

        assert medians(rounds) == {"a": 2.0, "b": 8.0}

    def test_one_bad_round_of_three_does_not_move_the_median_beyond_the_others(self) -> None:
        assert medians([{"a": 10.0}, {"a": 11.0}, {"a": 500.0}]) == {"a": 11.0}

    def test_the_spread_shows_the_bad_round(self) -> None:
        assert spreads([{"a": 10.0}, {"a": 11.0}, {"a": 500.0}]) == {"a": (10.0, 500.0)}

    def test_rounds_that_measured_different_things_are_refused(self) -> None:
        with pytest.raises(ValueError, match="the same figures"):
            medians([{"a": 1.0}, {"b": 1.0}])

    def test_no_rounds_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no rounds"):
            medians([])


class TestRatio:
    def test_it_relates_a_part_to_the_whole(self) -> None:
        assert ratio(1.0, 4.0) == 0.25

    def test_nothing_to_relate_to_is_no_figure(self) -> None:
        with pytest.raises(ValueError, match="can't relate"):
            ratio(1.0, 0.0)

    def test_the_engine_is_related_to_its_reference_by_transactions(self) -> None:
        found = {
            "reference_commits_per_s": 4_000.0,
            "runs_per_s": 100.0,
            "commits_per_run": 16.0,
            "writes_per_run": 10.0,
        }

        assert ratios(found) == {"ratio": 0.4, "writes_ratio": 0.25}


class TestShown:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0"),
            (0.001234, "0.00123"),
            (0.5, "0.500"),
            (9.876, "9.88"),
            (45.67, "45.7"),
            (123.4, "123"),
            (23_456.0, "23,500"),
            (-1.239, "-1.24"),
        ],
    )
    def test_three_digits_count(self, value: float, text: str) -> None:
        assert shown(value) == text


class TestArguments:
    @pytest.mark.parametrize("text", ["0", "-3"])
    def test_a_count_below_one_is_refused(self, text: str) -> None:
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            at_least_one(text)

    def test_a_smoke_run_may_still_write_its_record(self) -> None:
        options = parse(["--smoke", "--json", "record.json"])

        assert options == replace(SMOKE, json="record.json")


class TestLoad:
    @pytest.mark.parametrize("model", [INSTANT, IN_CHUNKS, PACED])
    @pytest.mark.parametrize("stream", [True, False])
    def test_every_request_is_of_the_size_that_is_told(self, model: str, stream: bool) -> None:
        assert len(request_body(model, stream=stream).encode()) == REQUEST_BYTES

    def test_a_stream_has_its_first_token_in_its_first_piece_and_one_in_each_but_the_last(self) -> None:
        counts = [piece.count(TOKEN.encode()) for piece in pieces()]

        assert counts == [1] * TOKENS + [0]

    def test_a_stream_in_chunks_has_each_token_in_one_of_its_own(self) -> None:
        counts = [chunk.count(TOKEN.encode()) for chunk in chunks()]

        assert counts == [0, *[1] * TOKENS, 0, 0, 0]
        assert b"".join(chunks()) == b"".join(pieces())
