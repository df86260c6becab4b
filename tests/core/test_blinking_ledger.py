"""R8 with a ledger that comes and goes: deadlines count the time in which it was there."""

from __future__ import annotations

import pytest

from rallypoint.core import effects as do
from rallypoint.core.judging import JudgingClock
from rallypoint.core.values import ChangeKind, Phase
from tests.core.driver import Driver

PERIODS_S = [(0.4, 0.1), (0.9, 0.1), (0.9, 30.0), (4.5, 0.5), (19.5, 0.5), (29.0, 3.0)]
"""How long the ledger is there, and how long it is away, in turns."""
blinking = pytest.mark.parametrize(("there_s", "away_s"), PERIODS_S)
LIMIT_S = 1_000.0
GRACE_S, LOST_S, PROBE_S, ATTACH_S, MASS_S = 1.0, 30.0, 1.0, 6.0, 120.0
MORE_S = 1.0
"""What a member gets in addition, to answer after an outage: once, and not after each."""


def met(count: int, **settings: object) -> Driver:
    driver = Driver(min=2, max=count, mass_min=2, restarts=None, **settings)  # type: ignore[arg-type]
    driver.join(*(f"n{number}" for number in range(count)))
    driver.advance(31.0)
    assert driver.phase is Phase.ACTIVE
    driver.take()
    return driver


def blink(driver: Driver, there_s: float, away_s: float, name: str) -> float:
    """Wait until the node is not a member any more. Returns how long the ledger was there."""
    passed_s = 0.0
    while passed_s < LIMIT_S:
        since_s = driver.now_s
        while driver.now_s < since_s + there_s:
            before_s = driver.now_s
            driver.advance(min(0.05, since_s + there_s - driver.now_s))
            passed_s += driver.now_s - before_s
            if name not in driver.run.roster:
                return passed_s
        driver.lose_ledger()
        driver.advance(away_s)
        assert name in driver.run.roster, "nobody is judged without the ledger"
        driver.restore_ledger()
        if name not in driver.run.roster:
            return passed_s
    return passed_s


def in_time(passed_s: float, bound_s: float) -> bool:
    return bound_s - 0.1 <= passed_s <= bound_s + MORE_S + 0.1


@blinking
def test_a_closed_connection_has_its_grace_despite_outages(there_s: float, away_s: float) -> None:
    driver = met(8)
    driver.disconnect("n0")
    assert in_time(blink(driver, there_s, away_s, "n0"), GRACE_S)


@blinking
def test_a_connection_closed_in_an_outage_has_its_grace(there_s: float, away_s: float) -> None:
    driver = met(8)
    driver.lose_ledger()
    driver.disconnect("n0")
    driver.advance(60.0)
    driver.restore_ledger()
    assert "n0" in driver.run.roster
    assert in_time(blink(driver, there_s, away_s, "n0"), GRACE_S)


@blinking
def test_a_silent_node_is_lost_despite_outages(there_s: float, away_s: float) -> None:
    driver = met(8)
    driver.silent("n0")
    assert in_time(blink(driver, there_s, away_s, "n0"), LOST_S - 5.0)


@blinking
def test_a_node_that_answers_no_probe_of_a_case_is_lost_despite_outages(
    there_s: float, away_s: float
) -> None:
    driver = met(8)
    driver.silent("n0")
    driver.fail("n1")
    driver.answer(*(f"n{number}" for number in range(1, 8)))
    assert in_time(blink(driver, there_s, away_s, "n0"), PROBE_S)
    verdicts = [each for _, each in driver.effects if isinstance(each, do.Verdict)]
    assert [each.change.kind for each in verdicts] == [ChangeKind.NODE_LOST]


@blinking
def test_a_node_that_does_not_attach_is_lost_despite_outages(there_s: float, away_s: float) -> None:
    driver = met(8)
    driver.fail_over(attach_grace_s=ATTACH_S)
    driver.attach(*(f"n{number}" for number in range(1, 8)))
    assert in_time(blink(driver, there_s, away_s, "n0"), ATTACH_S)


@blinking
def test_many_nodes_that_disconnect_together_are_lost_despite_outages(
    there_s: float, away_s: float
) -> None:
    driver = met(8)
    driver.disconnect("n0", "n1", "n2", "n3")
    assert in_time(blink(driver, there_s, away_s, "n0"), MASS_S)


@blinking
def test_a_node_that_does_not_answer_loses_its_name_despite_outages(
    there_s: float, away_s: float
) -> None:
    driver = met(8)
    driver.attach("n0'")
    passed_s, since_s = 0.0, driver.now_s
    while not driver.is_connected("n0'") and passed_s < LIMIT_S:
        driver.advance(min(there_s, PROBE_S + MORE_S))
        passed_s += driver.now_s - since_s
        driver.lose_ledger()
        driver.advance(away_s)
        driver.restore_ledger()
        since_s = driver.now_s
    assert driver.is_connected("n0'")
    assert passed_s <= PROBE_S + MORE_S + there_s


def test_a_node_that_is_heard_gets_its_whole_time_again() -> None:
    driver = met(8)
    driver.silent("n0")
    driver.advance(20.0)
    driver.lose_ledger()
    driver.heard("n0")
    driver.silent("n0")
    driver.restore_ledger()
    driver.advance(LOST_S - 5.0 - 0.1)
    assert "n0" in driver.run.roster
    driver.advance(0.2)
    assert "n0" not in driver.run.roster


def test_a_node_may_resume_after_an_outage_that_began_before_its_deadline() -> None:
    driver = met(8)
    driver.disconnect("n0")
    driver.advance(GRACE_S - 0.01)
    driver.lose_ledger()
    driver.advance(600.0)
    driver.restore_ledger()
    driver.advance(MORE_S - 0.1)
    assert "n0" in driver.run.roster
    driver.attach("n0")
    driver.advance(600.0)
    assert driver.phase is Phase.ACTIVE


def test_deadlines_pause_while_the_ledger_is_away() -> None:
    clock = JudgingClock()
    clock.stop(10.0)
    clock.stop(11.0)
    assert clock.is_stopped
    assert clock.at(50.0) == 10.0
    clock.go_on(60.0)
    clock.go_on(61.0)
    assert clock.at(65.0) == 15.0
    # The time that was left, at least `least_s`, and at most `least_s` beyond the deadline.
    assert clock.left_s(25.0, 1.0, 65.0) == 10.0
    assert clock.left_s(15.5, 1.0, 65.0) == 1.0
    assert clock.left_s(14.5, 1.0, 65.0) == 0.5
    assert clock.left_s(13.0, 1.0, 65.0) <= 0.0
