"""A run that ends each of its rounds at once is slowed, then closed. An honest run is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core import pacing
from rallypoint.core.membership import Membership
from rallypoint.core.values import CloseRecord, Outcome, Phase
from tests.core import driver as checked

ROUND_TRIP_S = 0.005
"""The time from the start of a round until the coordinator is told of its end."""


class Driver(checked.Driver):
    """A run without checks after each step, as there are many thousands of steps."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.checked = self  # type: ignore[assignment]
        self.membership = Membership("run")

    def step(self, *events: on.Event) -> list[do.Effect]:
        self.said.clear()
        found: list[do.Effect] = []
        queue = list(events)
        while queue:
            effects = self.membership.step(queue.pop(0), self.now_s)
            found += effects
            for effect in effects:
                self._execute(effect, queue)
        return found


def rounds(driver: Driver) -> list[float]:
    """When rounds were given to the ledger, since the last call."""
    return [
        at_s
        for at_s, effect in driver.take()
        if isinstance(effect, do.Commit) and not isinstance(effect.record, CloseRecord)
    ]


def two(**settings: Any) -> Driver:
    driver = Driver(**{"min": 2, "max": 2, "restarts": None, "last_call": 0.0, **settings})
    driver.join("good", "evil")
    return driver


def names() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"evil{number}"


# -- storms: each gives a run, and what its bad member does as soon as it is in a round ------------

Storm = Callable[[], tuple[Driver, Callable[[], None]]]


def asks_again() -> tuple[Driver, Callable[[], None]]:
    driver = two()

    def end_round() -> None:
        driver.ready("evil")
        driver.ready("good")

    return driver, end_round


def fails() -> tuple[Driver, Callable[[], None]]:
    driver = two(settle=0.0, probe=0.0)

    def end_round() -> None:
        driver.fail("evil")
        driver.ready("evil", "good")
        driver.answer("good")

    return driver, end_round


def under_new_names(end: Callable[[Driver, str], None]) -> Storm:
    def storm() -> tuple[Driver, Callable[[], None]]:
        driver, names_left = two(), names()
        driver.leave("evil")
        now = [next(names_left)]
        driver.ready("good")
        driver.join(now[0])

        def end_round() -> None:
            end(driver, now[0])
            now[0] = next(names_left)
            driver.join(now[0])
            driver.ready("good")

        return driver, end_round

    return storm


def newcomer_is_admitted() -> tuple[Driver, Callable[[], None]]:
    """In a run whose settings say so, nothing delays a newcomer."""
    driver = Driver(min=1, max=2, last_call=0.0, scale_up=0.0, settle=0.0)
    driver.join("good")
    names_left = names()

    def end_round() -> None:
        name = next(names_left)
        driver.join(name)
        driver.advance(0.0)
        driver.leave(name)
        driver.ready("good")

    return driver, end_round


def goes_while_it_is_written() -> tuple[Driver, Callable[[], None]]:
    driver = Driver(min=2, max=2, manual_commit=True)
    driver.join("good", "evil")
    names_left = names()
    now = ["evil"]

    def end_round() -> None:
        if driver.phase is Phase.COMMITTING and not isinstance(driver.run.committing, CloseRecord):
            driver.leave(now[0])
            driver.commit()
            now[0] = next(names_left)
            driver.join(now[0])
        elif driver.phase is Phase.COMMITTING:
            driver.commit()

    return driver, end_round


def _departs(driver: Driver, name: str) -> None:
    driver.depart(name)
    driver.leave(name)


STORMS: dict[str, Storm] = {
    "asks again": asks_again,
    "fails": fails,
    "leaves and comes": under_new_names(lambda driver, name: driver.leave(name)),
    "departs and comes": under_new_names(_departs),
    "dies and comes": under_new_names(lambda driver, name: driver.die(name)),
    "is admitted": newcomer_is_admitted,
    "goes while it is written": goes_while_it_is_written,
}


@pytest.mark.parametrize("name", STORMS)
def test_a_storm_is_slowed_and_then_closed(name: str) -> None:
    driver, end_round = STORMS[name]()
    given: list[float] = []
    held_back = 0
    while driver.phase is not Phase.CLOSED and driver.now_s < 60:
        if driver.phase is not Phase.GATHERING:
            end_round()
        driver.advance(ROUND_TRIP_S)
        given += rounds(driver)
        waiting = driver.run.waiting(driver.now_s)
        if waiting is not None and waiting.held_back_s:
            held_back += 1
            assert "held back" in str(waiting)
    assert held_back, "it was never slowed"
    assert driver.run.close is not None
    assert driver.run.close.outcome is Outcome.FAILED
    assert "rounds of this run ended within" in driver.run.close.reason
    assert "held back" in driver.run.close.reason
    assert len(given) < pacing.ROUNDS_AT_ONCE + 100
    # The last ones come no faster than the limit.
    last = given[-pacing.BRIEF_ROUNDS_MAX :]
    assert len(last) - 1 <= (last[-1] - last[0]) * pacing.ROUNDS_PER_S + 0.1


def test_the_reason_names_who_ended_the_last_round() -> None:
    driver, end_round = asks_again()
    while driver.phase is not Phase.CLOSED:
        if driver.phase is Phase.ACTIVE:
            end_round()
        driver.advance(ROUND_TRIP_S)
    assert driver.run.close is not None
    assert "evil asked for a new round" in driver.run.close.reason
    assert driver.run.close.cause is not None
    assert driver.run.close.cause.nodes == ("evil",)


def test_a_slow_member_is_slowed_but_not_closed() -> None:
    """Its rounds last longer than those of a storm, so it is only slowed."""
    driver = two()
    given: list[float] = []
    while driver.now_s < 300:
        while driver.phase is Phase.GATHERING:
            driver.advance(ROUND_TRIP_S)
        driver.advance(2 * pacing.BRIEF_S)
        driver.ready("evil", "good")
        given += rounds(driver)
    assert driver.phase is not Phase.CLOSED
    assert len(given) <= pacing.ROUNDS_AT_ONCE + 2 + 300 * pacing.ROUNDS_PER_S


# -- what honest runs do ---------------------------------------------------------------------------


def is_slowed(driver: Driver) -> bool:
    return any(timer.kind is do.TimerKind.PACE for timer in driver.fired)


def test_endless_restarts_do_not_slow_a_run() -> None:
    """A worker that cannot start, and an agent that may restart it any number of times."""
    driver = two()
    for _ in range(2_000):
        driver.advance(0.2)
        driver.fail("evil")
        driver.advance(0.05)
        driver.ready("evil", "good")
        driver.answer("good")
        driver.advance(0.05)
    assert not is_slowed(driver)
    assert driver.phase is Phase.ACTIVE


def test_nodes_lost_one_by_one_slow_no_run() -> None:
    """Each loss ends a round, as fast as rounds can be formed (`settle_s`)."""
    nodes = [f"n{number}" for number in range(2 * pacing.ROUNDS_AT_ONCE)]
    driver = Driver(min=1, max=len(nodes), settle=0.05, mass_min=1_000)
    driver.join(*nodes)
    left = list(nodes)
    while len(left) > 1:
        driver.leave(left.pop())
        driver.ready(*left)
        driver.advance(0.05)
        assert driver.phase is Phase.ACTIVE
    assert not is_slowed(driver)


def test_flapping_names_are_delayed_before_the_run_is_slowed() -> None:
    driver = Driver(min=1, max=8, last_call=0.0)
    driver.join("good")
    starts = dict.fromkeys(("a", "b", "c"), 0)
    for _ in range(5_000):
        for name in starts:
            driver.join(name + "'" * starts[name])
        driver.advance(1.0)
        for name in starts:
            driver.leave(name + "'" * starts[name])
            starts[name] = 1 - starts[name]
        if driver.phase is not Phase.ACTIVE:
            driver.ready("good")
        driver.advance(0.1)
    assert not is_slowed(driver)
    assert driver.phase is Phase.ACTIVE


def test_a_long_round_forgives_the_short_ones() -> None:
    driver, end_round = asks_again()
    while driver.run.waiting(driver.now_s) is None:
        end_round()
    driver.advance(120.0)
    driver.fired.clear()
    for _ in range(pacing.RECOVERED_ROUNDS):
        end_round()
        driver.advance(ROUND_TRIP_S)
    assert not is_slowed(driver)
    assert driver.phase is Phase.ACTIVE


def test_a_slowed_run_continues_after_an_outage_of_the_ledger() -> None:
    driver, end_round = asks_again()
    while driver.run.waiting(driver.now_s) is None:
        end_round()
    driver.lose_ledger()
    driver.advance(10.0)
    driver.restore_ledger()
    driver.advance(1.0)
    assert driver.phase is Phase.ACTIVE


def test_only_brief_rounds_in_a_row_are_a_storm() -> None:
    pace = pacing.Pace()
    for _ in range(pacing.ROUNDS_AT_ONCE):
        pace.round_ended(0.0, 0.0)
    assert pace.wait_s(0.0) > 0
    for _ in range(pacing.BRIEF_ROUNDS_MAX - 1):
        pace.round_ended(0.0, 0.0)
    pace.round_ended(pacing.BRIEF_S, 0.0)
    for _ in range(pacing.BRIEF_ROUNDS_MAX - 1):
        pace.round_ended(0.0, 0.0)
    assert not pace.is_storm
    pace.round_ended(0.0, 0.0)
    assert pace.is_storm
