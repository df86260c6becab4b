"""The names that are most like another one, found with little work whatever the names are."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from rallypoint.coordinator.nearest import CHARACTERS_MAX, LOOKED_AT_MAX, nearest

LINES_MAX = 100_000
"""How many lines of Python an answer may take. difflib is written in it."""


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("job-4", ["other", "job-42", "job-43"], ["job-43", "job-42"]),
        ("rnu", ["fast", "run"], ["run"]),
        ("run", ["quite-different"], []),
        (
            "team-llama-pretraning-of-the-large-model-7",
            [
                "team-llama-pretraining-of-the-large-model-7",
                "another-name-that-has-the-same-length-as-it",
            ],
            ["team-llama-pretraining-of-the-large-model-7"],
        ),
        ("x", [], []),
    ],
)
def test_the_nearest_names_come_first(name: str, known: list[str], found: list[str]) -> None:
    assert sorted(nearest(name, known)) == sorted(found)


def test_a_misspelled_name_is_found_among_thousands() -> None:
    known = [f"team-{i:04d}" for i in range(1_000)]
    assert nearest("team-O123", known)[0] == "team-0123"


@pytest.mark.parametrize("length", [3, 32, 33, 64, 128, 250])
@pytest.mark.parametrize("letters", ["a", "ab", "abcd"])
def test_the_work_is_bounded_whatever_the_names_are(letters: str, length: int) -> None:
    """1,000 names of 128 letters of two kinds once took 2 s, in which no heartbeat was read."""
    words = itertools.product(letters, repeat=length)
    known = ["".join(each) for each in itertools.islice(words, 2_000)]
    many = [f"{i:04d}{each[4:]}" for i, each in enumerate(known * (2_000 // len(known)))]
    name = (letters * length)[1 : length + 1]
    assert lines_of(lambda: nearest(name, many)) <= LINES_MAX


def test_a_name_of_any_length_takes_few_names() -> None:
    taken = 0

    def endless(name: str) -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield name

    nearest("x" * 100, endless("x" * 100))
    assert taken <= CHARACTERS_MAX // 100 + 1
    taken = 0
    nearest("x" * 100_000, endless("x"))
    assert taken <= LOOKED_AT_MAX


def lines_of(work: Any) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
