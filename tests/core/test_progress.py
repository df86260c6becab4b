"""What people see of the workers' steps: their pace, and who was behind when it reported."""

from __future__ import annotations

import pytest

from rallypoint.core.progress import PACE_S, NodeProgress, Pace, pace_of
from tests.core.driver import Driver


def after(*reports: tuple[int, float]) -> Pace:
    pace = None
    for step, at_s in reports:
        pace = pace_of(pace, step, at_s)
    assert pace is not None
    return pace


def test_one_report_has_no_pace_and_two_have() -> None:
    assert after((5, 1.0)).steps_per_s is None
    assert after((5, 1.0), (9, 3.0)).steps_per_s == 2.0


def test_a_repeat_changes_nothing() -> None:
    once = after((5, 1.0), (9, 3.0))
    assert pace_of(once, 9, 30.0) == once


def test_the_pace_is_that_of_the_last_seconds() -> None:
    slow = [(step, float(step)) for step in range(100)]
    quick = [(100 + 10 * second, 100.0 + second) for second in range(int(2 * PACE_S) + 1)]
    assert after(*slow).steps_per_s == pytest.approx(1.0)
    assert after(*slow, *quick).steps_per_s == pytest.approx(10.0, rel=0.1)


def test_rare_steps_have_the_pace_of_the_last_two() -> None:
    assert after((1, 0.0), (2, 100.0), (3, 160.0)).steps_per_s == pytest.approx(1 / 60)


def told(driver: Driver) -> dict[str, NodeProgress]:
    return driver.run.progress.nodes


def test_a_node_is_behind_if_others_were_further_when_it_reported() -> None:
    driver = Driver(min=2, max=2, restarts=None)
    driver.join("a", "b")
    driver.progress("a", step=10)
    driver.advance(1.0)
    driver.progress("b", step=20)
    # It has only not reported since.
    assert (told(driver)["a"].steps_behind, told(driver)["b"].steps_behind) == (0, 0)
    driver.progress("a", step=14)
    assert told(driver)["a"].steps_behind == 6


def test_a_new_round_begins_with_no_pace() -> None:
    driver = Driver(min=2, max=2, restarts=None)
    driver.join("a", "b")
    driver.progress("a", step=10)
    assert driver.run.progress.pace is not None
    driver.ready("a", "b")
    assert driver.run.progress.pace is None
    driver.progress("a", step=1)
    assert told(driver)["a"].steps_behind == 0
