"""Thousands of seeds in four files, which run beside each other: a file is run by one process.

A part that fails names its seeds: `python -m rallypoint.simulation --seed N` shows what happened.
"""

from __future__ import annotations

from rallypoint.simulation.seeds import play_slice
from tests.kinds import seeds

FILES = 4
PART = 50
"""How many seeds are one test."""
PARTS = seeds(0, 8, 160)
"""The tests of one file."""


def must_hold(file: int, part: int) -> None:
    """Play a part of the seeds of a file. Raises AssertionError if one breaks a rule."""
    first = (FILES * part + file) * PART
    played = play_slice(range(first, first + PART))
    found = [f"--seed {each.seed}: {each.problems}" for each in played.findings]
    assert not found, "\n".join(found)
    assert played.steps > 100 * PART
