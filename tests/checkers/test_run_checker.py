"""A run that changes its coordinator keeps its checker: the rules hold across terms, too."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from rallypoint.checkers.run_checker import RunChecker
from rallypoint.checkers.violations import InvariantViolation
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunState
from rallypoint.core.values import NodeId, NodeInfo, Phase
from tests.core.driver import Driver
from tests.core.walks import random_run, stride
from tests.kinds import seeds

GRACE_S = 6.0


def met() -> Driver:
    """Round 1 of a, b and c."""
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    assert driver.names == ["a", "b", "c"]
    return driver


@pytest.mark.parametrize("tens", seeds(4, verify=10, long=100))
def test_every_rule_holds_over_many_takeovers(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        random = Random(seed)
        driver = random_run(random)
        for _ in range(150):
            if random.random() < 0.04:
                host = random.choice(["", *driver.names])
                driver.fail_over(is_written=random.random() < 0.5, host=host)
            else:
                stride(driver, random)


def test_a_round_continues_through_many_coordinators() -> None:
    driver = met()
    for term in range(2, 6):
        driver.fail_over()
        driver.attach("a", "b", "c")
        driver.advance(60.0)
        assert (driver.phase, driver.run.term, driver.run.number) == (Phase.ACTIVE, term, 1)
    driver.leave("c")
    driver.ready("a", "b")
    driver.advance(31.0)
    assert (driver.run.number, driver.names) == (2, ["a", "b"])


def test_a_write_is_in_the_ledger_or_it_is_not() -> None:
    for is_written in (False, True):
        driver = Driver(min=2, max=2, manual_commit=True)
        driver.join("a", "b")
        driver.fail_over(is_written=is_written)
        assert driver.run.number == is_written
        driver.manual_commit = False
        driver.join("a", "b")
        driver.advance(31.0)
        assert (driver.phase, driver.run.number) == (Phase.ACTIVE, 1)


def test_a_member_that_does_not_attach_is_lost_after_the_attach_grace() -> None:
    driver = met()
    driver.fail_over(attach_grace_s=GRACE_S)
    driver.attach("a", "b")
    driver.advance(GRACE_S - 0.01)
    assert driver.phase is Phase.ACTIVE
    driver.advance(0.02)
    assert driver.phase is not Phase.ACTIVE
    assert driver.run.roster.get("c") is None


def test_an_outage_restarts_the_attach_grace() -> None:
    driver = met()
    driver.fail_over(attach_grace_s=GRACE_S)
    driver.attach("a", "b")
    driver.lose_ledger()
    driver.advance(2 * GRACE_S)
    driver.restore_ledger()
    driver.advance(GRACE_S - 0.01)
    assert driver.run.roster.get("c") is not None
    driver.advance(0.02)
    assert driver.run.roster.get("c") is None


# -- the checker finds a bad coordinator ----------------------------------------------------------


def a_register(driver: Driver, **changes: object) -> RunState:
    return msgspec.structs.replace(driver.register, term=2, **changes)


def taken_over(driver: Driver, register: RunState) -> RunChecker:
    checker = driver.checked.checker
    checker.restored(register, attach_grace_s=GRACE_S, now_s=driver.now_s, effects=[])
    return checker


def broken_rule(driver: Driver, register: RunState) -> str:
    with pytest.raises(InvariantViolation) as told:
        taken_over(driver, register)
    assert told.value.history
    return told.value.rule


def test_a_ledger_that_forgets_is_found() -> None:
    driver = met()
    assert broken_rule(driver, a_register(driver, round=None)) == "R1"
    record = driver.run.round
    assert record is not None
    head = msgspec.structs.replace(record.head, digest="another")
    other = msgspec.structs.replace(record, head=head)
    assert broken_rule(driver, a_register(driver, round=other)) == "R2"
    assert broken_rule(driver, msgspec.structs.replace(driver.register, term=1)) == "R5"
    closed = met()
    closed.close()
    assert broken_rule(closed, a_register(closed, close=None)) == "R6"
    assert broken_rule(met(), RunState(2)) == "R1"


def test_a_coordinator_that_judges_too_early_is_found() -> None:
    """R8."""
    driver = met()
    checker = taken_over(driver, a_register(driver))
    lost = [do.Forget(NodeId("c", 1), "lost")]
    heard = on.NodeHeard(NodeId("a", 1))
    for connection_id, name in enumerate("ab"):
        attach = on.NodeAttached(NodeInfo(name, 1, name), driver.settings, connection_id)
        welcome = do.Welcome(connection_id, NodeId(name, 1), True, do.Standing(1))
        checker.note(attach, 0.0, [welcome])
    with pytest.raises(InvariantViolation, match="R8: c was declared lost before"):
        checker.note(heard, GRACE_S - 0.1, lost)
    checker.note(heard, GRACE_S, lost)


def test_a_coordinator_that_decides_first_is_found() -> None:
    driver = met()
    record = driver.run.round
    assert record is not None
    with pytest.raises(InvariantViolation, match="R5: a coordinator began with more"):
        driver.checked.checker.restored(
            a_register(driver), attach_grace_s=0.0, now_s=0.0, effects=[do.Publish(record)]
        )


def test_a_token_that_does_not_grow_is_found() -> None:
    """R13. (term, number) is the fencing token: a round of an old term cannot follow."""
    driver = met()
    checker = driver.checked.checker
    checker._token = (9, 1)
    driver.leave("c")
    driver.ready("a", "b")
    with pytest.raises(InvariantViolation, match=r"R13: \(term, number\) \(1, 2\) was given"):
        driver.advance(31.0)
