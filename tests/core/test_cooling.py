"""Nodes that break too many rounds stay out: for how long, with whom, and across takeovers."""

from __future__ import annotations

import msgspec

from rallypoint.core import effects as do
from rallypoint.core.blame import (
    OFFENDERS_MAX,
    Blame,
    KeptBlame,
    Offender,
    cooldown_s,
)
from rallypoint.core.formation import Call, Counts, Decision, decide
from rallypoint.core.roster import Bucket
from rallypoint.core.values import ChangeKind, Phase, RunSettings
from tests.core.driver import Driver

SETTINGS = RunSettings(max_restarts_per_node=1, cooldown_s=60.0, cooldown_max_s=200.0)


def names_of(driver: Driver, kind: type) -> list[str]:
    found = [effect for _, effect in driver.take() if isinstance(effect, kind)]
    return [getattr(each, "name", "") or each.node.name for each in found]  # type: ignore[attr-defined]


def met(*nodes: str, least: int = 2, most: int = 3, per_node: int = 0) -> Driver:
    driver = Driver(min=least, max=most, restarts=None, per_node=per_node, last_call=1.0)
    driver.join(*nodes)
    driver.advance(1.1)
    return driver


def break_by(driver: Driver, node: str) -> None:
    """A worker of this node fails, and all others are ready first."""
    inside = driver.names
    driver.fail(node, message="ECC error")
    driver.answer(*inside)
    driver.advance(0.06)
    driver.ready(*(each for each in inside if each != node), node)
    driver.advance(0.06)


def test_a_cooldown_doubles_up_to_its_maximum() -> None:
    assert [cooldown_s(above, SETTINGS) for above in (-1, 0, 1, 2, 3, 99, 10**6)] == [
        *(0.0, 0.0, 60.0, 120.0),
        *(200.0, 200.0, 200.0),
    ]


def test_a_node_is_forgiven_when_it_breaks_no_round_for_a_while_after_its_cooldown() -> None:
    kept = KeptBlame()
    assert kept.broke("b", "x", SETTINGS, 0.0).rounds == 1
    assert kept.broke("b", "x", SETTINGS, 100.0).left_s(100.0) == 60.0
    assert kept.broke("b", "x", SETTINGS, 300.0).rounds == 3
    # Its cooldown ends at 420 s, and 200 s later all is forgiven.
    assert kept.broke("b", "x", SETTINGS, 619.9).rounds == 4
    assert kept.broke("b", "x", SETTINGS, 9_999.0).rounds == 1


def test_the_restart_window_also_says_when_a_node_is_forgiven() -> None:
    settings = RunSettings(max_restarts_per_node=5, restart_window_s=10.0)
    kept = KeptBlame()
    assert [kept.broke("b", "x", settings, at_s).rounds for at_s in (0.0, 9.0, 18.0, 29.0)] == [
        *(1, 2, 3),
        1,
    ]


def test_a_node_that_is_forgotten_stays_out_no_longer() -> None:
    nodes = [f"n{at}" for at in range(OFFENDERS_MAX + 3)]
    driver = met(*nodes, most=len(nodes))
    for each in nodes:
        driver.fail(each, message="ECC error")
        driver.answer(*nodes)
        driver.advance(0.06)
        driver.ready(*nodes)
        driver.advance(0.1)
        while driver.run.phase is not Phase.ACTIVE and driver.run._gathering.pause_left_s(0.0):
            driver.advance(1.0)
    known = driver.run._blame.names()
    out = [each.name for each in driver.run.roster if each.is_cooling]
    assert len(known) == OFFENDERS_MAX
    assert set(out) <= set(known)
    driver.advance(SETTINGS.cooldown_max_s * 20)
    assert not [each.name for each in driver.run.roster if each.is_cooling]


def test_the_memory_of_nodes_is_bounded_and_keeps_those_that_stay_out() -> None:
    kept = KeptBlame()
    for _ in range(2):
        kept.broke("bad", "x", SETTINGS, 0.0)
    for at in range(9 * OFFENDERS_MAX):
        kept.broke(f"n{at}", "x", SETTINGS, 0.0)
    assert len(kept.names()) <= OFFENDERS_MAX
    assert kept.offence("bad") is not None


def test_what_a_successor_is_told_of_a_node_is_what_is_left() -> None:
    kept, other = KeptBlame(), KeptBlame()
    for _ in range(2):
        kept.broke("b", "ECC error", SETTINGS, 0.0)
    told = kept.now(2, SETTINGS, 45.0)
    assert told.offenders == (Offender("b", 2, 15.0, 200.0, "ECC error"),)
    other.restore(told, 2, SETTINGS, 7_000.0)
    offence = other.offence("b")
    assert offence is not None
    assert offence.left_s(7_000.0) == 15.0
    assert other.now(2, SETTINGS, 7_000.0) == told


def test_r7_a_spare_takes_the_place_of_a_node_that_stays_out() -> None:
    driver = met("a", "b", "c", "d")
    driver.fail("b", message="ECC error")
    driver.answer("a", "b", "c")
    driver.advance(0.06)
    # Nothing waits for b, which may take long to stop its workers.
    driver.ready("a", "c")
    assert sorted(driver.names) == ["a", "c", "d"]
    driver.ready("b")
    assert driver.run.roster.count(Bucket.COOLING) == 1
    driver.advance(100.0)
    assert driver.run.roster.count(Bucket.NEWCOMER) == 1


def test_r7_below_the_minimum_the_one_with_the_least_blame_is_let_in_first() -> None:
    driver = met("a", "b", "c", least=2, most=3)
    for node in ("b", "b", "c"):
        break_by(driver, node)
    # Each of them was let in with a, the first time alone.
    assert driver.names == ["a", "c"] or sorted(driver.names) == ["a", "c"]
    driver.take()
    driver.die("a")
    driver.advance(0.1)
    driver.ready("c", "b")
    driver.advance(2.0)
    assert sorted(driver.names) == ["b", "c"]
    assert sorted(names_of(driver, do.LetBackIn)) == ["b", "c"]


def test_r7_a_round_with_a_node_that_stays_out_waits_no_longer_than_without_that_rule() -> None:
    """The counts decide as if it was ready: only who is chosen differs."""
    for call in Call:
        for held in range(2):
            for is_settled in (False, True):
                free = Counts(
                    minimum=3,
                    maximum=4,
                    ready_survivors=3,
                    stopping=held,
                    call=call,
                    settled=is_settled,
                )
                changes = {"ready_survivors": 2, "cooling_survivors": 1}
                assert decide(free) is decide(msgspec.structs.replace(free, **changes))


def test_r3_those_that_stay_out_fill_the_minimum_and_no_more() -> None:
    def chosen(ready: int, out: int) -> int:
        return Counts(minimum=3, maximum=4, ready_survivors=ready, cooling=out).chosen

    assert [chosen(ready, 5) for ready in range(6)] == [3, 3, 3, 3, 4, 4]
    assert chosen(1, 1) == 2
    assert decide(Counts(minimum=3, maximum=4, ready_survivors=1, cooling=1)) is Decision.TOO_FEW


def test_r7_all_that_were_started_are_there_though_one_stays_out() -> None:
    counts = Counts(minimum=2, maximum=9, expected=4, newcomers=3, cooling=1)
    assert decide(counts) is Decision.FORM_EXPECTED
    assert counts.chosen == 3


def test_a_common_loss_is_nobodys_fault() -> None:
    driver = Driver(min=1, max=4, restarts=None, per_node=0, last_call=1.0, mass_min=9)
    driver.join("a", "b", "c", "d")
    driver.take()
    driver.die("b", "c")
    driver.advance(0.1)
    assert not names_of(driver, do.StayOut)


def test_an_eviction_is_not_the_nodes_fault() -> None:
    driver = met("a", "b", "c")
    driver.take()
    driver.evict("b")
    assert not names_of(driver, do.StayOut)


def test_r9_a_takeover_keeps_who_stays_out() -> None:
    driver = met("a", "b", "c", "d")
    driver.fail("b", message="ECC error")
    driver.answer("a", "b", "c")
    driver.advance(0.06)
    driver.ready("a", "c", "b")
    driver.advance(30.0)
    driver.fail_over()
    driver.attach("a", "c", "d", "b")
    driver.ready("b", leaving=0)
    driver.advance(20.0)
    assert sorted(driver.names) == ["a", "c", "d"]
    assert driver.run.roster.count(Bucket.COOLING) == 1
    driver.advance(60.0)
    assert driver.run.roster.count(Bucket.NEWCOMER) == 1


def test_a_successor_of_a_gathering_run_does_not_wait_for_a_node_that_stays_out() -> None:
    driver = met("a", "b", "c", "d")
    driver.fail("b", message="ECC error")
    driver.answer("a", "b", "c")
    driver.advance(0.2)
    driver.fail_over()
    driver.attach("a", "c", "d")
    driver.ready("a", "c")
    driver.ready("d", leaving=0)
    assert driver.phase is Phase.ACTIVE
    assert sorted(driver.names) == ["a", "c", "d"]


def test_a_node_on_standby_is_told_why_and_that_it_is_over() -> None:
    driver = met("a", "b", "c", "d")
    break_by(driver, "b")
    told = [each for _, each in driver.take() if isinstance(each, do.Notify)]
    assert "it broke 1 round" in told[-1].reason
    driver.attach("b")
    again = [each for _, each in driver.take() if isinstance(each, do.Notify)]
    assert "it broke 1 round" in again[-1].reason
    driver.advance(70.0)
    over = [each for _, each in driver.take() if isinstance(each, do.Notify)]
    assert over[-1].reason == ""


def test_without_the_setting_nobody_stays_out() -> None:
    driver = Driver(min=2, max=3, restarts=None, last_call=1.0)
    driver.join("a", "b", "c")
    driver.take()
    for _ in range(5):
        break_by(driver, "b")
    assert not names_of(driver, do.StayOut)
    assert driver.register.blame == Blame()


def test_r7_a_node_whose_check_fails_stays_out_until_it_passes() -> None:
    driver = Driver(min=2, max=3, restarts=None, last_call=1.0)
    driver.attach("a", "b", "c")
    driver.ready("a", "b")
    driver.ready("c", unfit="GPU 3 fell off")
    driver.advance(1.1)
    assert sorted(driver.names) == ["a", "b"]
    told = [each for _, each in driver.take() if isinstance(each, do.Notify)]
    assert told[-1].reason == "its check failed: GPU 3 fell off"
    driver.advance(9.0)
    assert driver.phase is Phase.ACTIVE
    driver.ready("c")
    driver.advance(1.1)
    driver.ready("a", "b")
    driver.advance(1.1)
    assert sorted(driver.names) == ["a", "b", "c"]


def test_r7_an_unfit_node_is_let_in_after_those_that_only_broke_rounds() -> None:
    driver = met("a", "b", "c", least=2, most=3)
    driver.fail("b", message="ECC error")
    driver.answer("a", "b", "c")
    driver.advance(0.06)
    driver.die("a")
    driver.advance(0.1)
    driver.ready("c", unfit="GPU 3 fell off")
    driver.ready("b")
    driver.join("d")
    driver.advance(2.0)
    assert sorted(driver.names) == ["b", "d"]


def test_r7_all_nodes_are_unfit_and_the_run_goes_on() -> None:
    driver = Driver(min=2, max=2, restarts=None)
    driver.attach("a", "b")
    driver.ready("a", "b", unfit="the driver is too old")
    assert sorted(driver.names) == ["a", "b"]
    assert sorted(names_of(driver, do.LetBackIn)) == ["a", "b"]


def test_r7_a_newcomer_takes_the_place_of_an_unfit_node_that_was_let_in() -> None:
    driver = Driver(min=2, max=2, restarts=None)
    driver.attach("a", "b")
    driver.ready("a")
    driver.ready("b", unfit="GPU 3 fell off")
    assert (driver.phase, set(driver.names)) == (Phase.ACTIVE, {"a", "b"})
    driver.join("c")
    driver.advance(10.0)
    changes = [each.change for _, each in driver.effects if isinstance(each, do.Break)]
    assert [(each.kind, each.nodes) for each in changes] == [(ChangeKind.NODES_JOINED, ("c",))]
    driver.ready("a")
    driver.ready("b", unfit="GPU 3 fell off")
    driver.advance(1.0)
    assert (driver.phase, set(driver.names)) == (Phase.ACTIVE, {"a", "c"})
    # Fit again, it is a newcomer like any other, and there is no free place.
    driver.ready("b")
    driver.join("d")
    driver.advance(60.0)
    assert len([each for _, each in driver.effects if isinstance(each, do.Break)]) == 1


def test_r7_another_unfit_node_takes_no_place() -> None:
    driver = Driver(min=2, max=2, restarts=None)
    driver.attach("a", "b", "c")
    driver.ready("a")
    driver.ready("b", unfit="GPU 3 fell off")
    driver.ready("c", unfit="the driver is too old")
    driver.advance(60.0)
    assert not [each for _, each in driver.effects if isinstance(each, do.Break)]


def test_a_successor_learns_from_the_node_that_it_is_unfit() -> None:
    driver = Driver(min=1, max=3, restarts=None, last_call=1.0)
    driver.attach("a", "b")
    driver.ready("a")
    driver.ready("b", unfit="GPU 3 fell off")
    driver.advance(1.1)
    driver.fail_over()
    driver.attach("a", "b")
    driver.ready("b", leaving=0, unfit="GPU 3 fell off")
    driver.advance(9.0)
    assert driver.names == ["a"]


def test_r7_no_round_waits_for_a_node_that_stays_out_and_cannot_be_heard() -> None:
    driver = met("a", "b", "c", least=2, most=4)
    driver.fail("b", message="ECC error")
    driver.answer("a", "b", "c")
    driver.advance(0.06)
    driver.ready("b")
    driver.disconnect("b")
    driver.ready("a", "c")
    # The settle time, and not the last call.
    driver.advance(0.06)
    assert sorted(driver.names) == ["a", "c"]
