"""Numbers of nodes in words."""

from __future__ import annotations

import pytest

from rallypoint.core.printable import are_ready, size_of, some
from tests.core.driver import Driver


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((1, 3, 3), "1 of 3 nodes ready"),
        ((0, 1, 1), "0 of 1 node ready"),
        ((0, 1, 4), "0 of at least 1 node ready (at most 4)"),
        ((1, 2, 4), "1 of at least 2 nodes ready (at most 4)"),
        # Nobody reads "3 of at least 2 nodes": the minimum is there.
        ((3, 2, 4), "3 of at most 4 nodes ready (at least 2)"),
        ((4, 2, 4), "4 of at most 4 nodes ready (at least 2)"),
        # Nor "5 of at most 4 nodes": the others will be on standby.
        ((5, 2, 4), "5 nodes ready for 4 places"),
        ((2, 1, 1), "2 nodes ready for 1 place"),
    ],
)
def test_how_many_are_ready(counts: tuple[int, int, int], text: str) -> None:
    assert are_ready(*counts) == text


def test_the_size_of_a_round() -> None:
    assert [size_of(3, 3), size_of(1, 1), size_of(2, 4)] == ["3 nodes", "1 node", "2:4 nodes"]


def test_names_that_are_not_known() -> None:
    assert [some((), 0), some((), 1), some((), 2)] == ["a node", "1 node", "2 nodes"]


def test_no_time_to_stop_is_told_when_nobody_stops() -> None:
    driver = Driver(min=3, max=3)
    driver.join("a", "b", "c")
    driver.die("c")
    driver.advance(2.0)
    stopping = driver.run.waiting(driver.now_s)
    assert stopping is not None
    assert (stopping.stopping_count, stopping.stop_left_s > 0) == (2, True)
    driver.ready("a", "b")
    waiting = driver.run.waiting(driver.now_s)
    assert waiting is not None
    assert (waiting.ready, waiting.stopping_count, waiting.stop_left_s) == (2, 0, 0.0)
