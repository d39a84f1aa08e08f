"""The command: `python -m tests.faults --minutes N --seed S`."""

import argparse
import asyncio
import logging
import secrets
import sys
from pathlib import Path

import msgspec

from tests.faults.driver import SHORT, Outcome, drive, long
from tests.faults.points import kill_at_points
from tests.faults.reconcile import told, told_at_the_end


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        help="how long, about; at least 3 (%(default)s). Up to twice as long where R6 has not seen enough by then",
    )
    parser.add_argument("--short", action="store_true", help="the minute that is part of the tests")
    parser.add_argument("--points", type=int, metavar="N", help="instead: N kills at each point of a run")
    parser.add_argument("--seed", type=int, default=None, help="repeats the same choices; drawn when not given")
    parser.add_argument("--json", metavar="FILE", help="write everything there as well")
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    say(f"seed {seed}")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Not on uvloop: httpx takes a socket that was reset while connecting for one of ours there, and fails on it.
    if given.points is not None:
        outcome = asyncio.run(kill_at_points(given.points, seed, say))
    else:
        outcome = asyncio.run(drive(SHORT if given.short else long(given.minutes), seed, say))
    return report(outcome, given.json)


def report(outcome: Outcome, file: str | None) -> int:
    for one in outcome.records:
        sys.stdout.write(msgspec.json.encode(one).decode() + "\n")
    sys.stdout.flush()
    if file is not None:
        Path(file).write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
    for one in outcome.records:
        say(told(one))
    say(f"seed {outcome.seed}, {len(outcome.faults)} faults: {told_at_the_end(outcome.records)}")
    return 0 if all(one.ok for one in outcome.records) else 1


def say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
