"""What of a worker's output is progress: patterns that match, grow, or take too long."""

from __future__ import annotations

import pytest

from rallypoint.launch.progress_rule import SLOW_MAX, OutputReader
from rallypoint.settings.values import parse_hang

YEARS = ("a" * 60 + "b\n").encode()
"""Each way to part the letters is tried: more than 10**12 of them."""
SLOW = "^(?:a|aa)+$"


def reader(pattern: str) -> OutputReader:
    return OutputReader(parse_hang(pattern))


def test_a_number_must_grow() -> None:
    found = reader(r"step=(\d+)")
    fed = [found.feed(1, line) for line in (b"step=1\n", b"step=1\n", b"step=3\nst", b"ep=2\n")]
    assert fed == [True, False, True, False]
    assert (found.step, found.went_back, found.matched) == (3, (2, 3), 4)


def test_a_pattern_that_takes_too_long_is_given_up_and_any_output_counts() -> None:
    found = reader(SLOW)
    assert found.feed(1, b"aaa\n")
    for _ in range(SLOW_MAX - 1):
        assert not found.feed(1, YEARS)
    assert found.too_slow == ""
    assert found.feed(1, YEARS)
    assert found.too_slow == YEARS.decode().strip()
    assert found.feed(2, b"no line yet")
    assert not found.feed(2, b"")


def test_the_lines_of_one_read_after_a_pattern_was_given_up_cost_nothing() -> None:
    found = reader(SLOW)
    assert found.feed(1, YEARS * 10_000)  # An hour, if each had its tenth of a second.
    assert found.too_slow


@pytest.mark.parametrize("pattern", ["(", "[", "*", "\\", "(?P<n>a"])
def test_a_pattern_that_does_not_compile_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="does not compile"):
        parse_hang(pattern)
