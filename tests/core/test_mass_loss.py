"""R8: many nodes go at once, like spot instances, or the nodes behind one switch."""

import pytest

from rallypoint.core import effects as do
from rallypoint.core.suspicion import BURST_MAX_S, BURST_S
from rallypoint.core.values import NAMES_SHOWN_MAX, RunSettings
from tests.core.driver import Driver

DEFAULTS = RunSettings()


def met(nodes: int) -> tuple[Driver, list[str]]:
    names = [f"n{number}" for number in range(nodes)]
    grace_s, mass_min = DEFAULTS.reconnect_grace_s, DEFAULTS.mass_min
    driver = Driver(min=2, max=nodes, restarts=3, grace=grace_s, mass_min=mass_min)
    driver.join(*names)
    driver.advance(1.0)
    driver.take()
    return driver, names


def when(driver: Driver, kind: type[do.Effect]) -> float:
    return next(at_s for at_s, effect in driver.effects if isinstance(effect, kind))


@pytest.mark.parametrize("nodes", [10, 100])
@pytest.mark.parametrize("percent", [10, 30, 60])
def test_a_preempted_part_of_the_run_is_reported_at_once(nodes: int, percent: int) -> None:
    driver, names = met(nodes)
    began_s, gone = driver.now_s, nodes * percent // 100
    for name in names[:gone]:  # one after another, within a second
        assert not any(isinstance(effect, do.Break) for _, effect in driver.effects)
        driver.advance(BURST_S / 2)
        driver.die(name)
    driver.advance(BURST_S)
    driver.ready(*names[gone:])
    driver.advance(1.0)
    told_s = began_s + gone * BURST_S / 2 + BURST_S
    assert when(driver, do.Break) == pytest.approx(told_s)
    assert when(driver, do.Publish) == pytest.approx(told_s + driver.settings.settle_s)
    change = next(effect.change for _, effect in driver.effects if isinstance(effect, do.Break))
    assert (change.count, change.nodes) == (gone, tuple(names[: min(gone, NAMES_SHOWN_MAX)]))
    assert sorted(driver.names) == sorted(names[gone:])


@pytest.mark.parametrize("nodes", [10, 100])
def test_workers_may_fail_before_all_losses_are_known(nodes: int) -> None:
    driver, names = met(nodes)
    gone, alive = names[: nodes * 3 // 10], names[nodes * 3 // 10 :]
    driver.fail(alive[0], kind="communication")
    driver.answer(*alive)
    began_s = driver.now_s
    driver.die(*gone)
    driver.advance(BURST_S)
    driver.ready(*alive)
    driver.advance(1.0)
    verdict = next(effect for _, effect in driver.effects if isinstance(effect, do.Verdict))
    assert verdict.change.nodes[0] == gone[0]
    assert not verdict.change.charged
    assert when(driver, do.Publish) <= began_s + BURST_S + 2 * driver.settings.settle_s


def test_losses_without_a_pause_are_reported_too() -> None:
    driver, names = met(200)
    began_s = driver.now_s
    for name in names[:150]:
        driver.die(name)
        driver.advance(BURST_S / 2)
    assert BURST_MAX_S < when(driver, do.Break) - began_s <= BURST_MAX_S + 2 * BURST_S


def test_as_many_resets_count_as_an_outage() -> None:
    """A firewall that is flushed resets the connections of living nodes."""
    driver, names = met(100)
    driver.disconnect(*names[:30])
    driver.advance(119.0)
    assert not any(isinstance(effect, do.Break) for _, effect in driver.effects)
    driver.attach(*names[:30])
    driver.advance(60.0)
    assert not any(isinstance(effect, do.Break) for _, effect in driver.effects)


def test_eight_losses_at_a_time_are_no_outage() -> None:
    driver, names = met(20)
    began_s = driver.now_s
    driver.disconnect(*names[:8])
    driver.advance(30.0)
    assert when(driver, do.Break) == began_s + DEFAULTS.reconnect_grace_s
