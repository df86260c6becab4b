"""The loss of a member says why, as far as that is known."""

from __future__ import annotations

from rallypoint.core import effects as do
from rallypoint.core.reasons import NOT_RESUMED
from tests.core.driver import Driver

REVOKED = "its token t1 was revoked by ann@host7"


def met() -> Driver:
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.take()
    return driver


def breaks(driver: Driver) -> list[str]:
    return [str(each.change) for _, each in driver.take() if isinstance(each, do.Break)]


def test_a_node_whose_right_was_taken_is_lost_for_that_reason() -> None:
    driver = met()
    driver.disconnect("a", why=REVOKED)
    driver.advance(10.0)
    assert breaks(driver) == [f"a lost: {REVOKED}"]


def test_the_reason_is_forgotten_when_the_node_is_back() -> None:
    driver = met()
    driver.disconnect("a", why=REVOKED)
    driver.attach("a")
    driver.disconnect("a")
    driver.advance(10.0)
    assert breaks(driver) == [f"a lost: {NOT_RESUMED}"]


def test_the_reason_outlives_an_outage_of_the_ledger() -> None:
    driver = met()
    driver.lose_ledger()
    driver.disconnect("a", why=REVOKED)
    driver.restore_ledger()
    driver.advance(10.0)
    assert breaks(driver) == [f"a lost: {REVOKED}"]


def test_a_node_that_is_lost_beside_it_has_a_reason_of_its_own() -> None:
    driver = met()
    driver.disconnect("b")
    driver.disconnect("a", why=REVOKED)
    driver.advance(10.0)
    gone = [str(each.change) for _, each in driver.take() if isinstance(each, do.Forget)]
    assert sorted(gone) == [f"a lost: {REVOKED}", f"b lost: {NOT_RESUMED}"]
