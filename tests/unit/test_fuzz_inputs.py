"""What the gateway is fuzzed with can be repeated, and leaves no trace from one input to the next."""

import json
import random
from copy import deepcopy

from tests.faults import fuzz_inputs
from tests.faults.fuzz_inputs import SURFACES, drawn


def seeded() -> random.Random:
    return random.Random(7)  # noqa: S311 - choices that can be repeated


KINDS = {"valid", "structure", "bytes", "headers", "target", "framing", "noise"}


def test_the_same_seed_draws_the_same_inputs_of_every_kind() -> None:
    first, again = seeded(), seeded()
    inputs = [drawn(first, "token") for _ in range(600)]

    assert inputs == [drawn(again, "token") for _ in range(600)]
    assert {one.kind for one in inputs} == KINDS


def test_what_is_done_to_one_input_is_not_done_to_the_next() -> None:
    before = deepcopy((fuzz_inputs._TOOL, list(fuzz_inputs.ODD)))
    draw = seeded()
    for _ in range(600):
        drawn(draw, "token")

    assert (fuzz_inputs._TOOL, list(fuzz_inputs.ODD)) == before


def test_every_surface_has_a_valid_request_that_is_json() -> None:
    draw = seeded()
    for _ in range(50):
        for _, target, valid in SURFACES:
            assert target.startswith("/")
            assert valid is None or json.loads(json.dumps(valid(draw)))
