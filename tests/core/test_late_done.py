"""A node whose workers finished while it could not be heard, and was lost, is done (R7, R11)."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core import finished
from rallypoint.core.finished import REMEMBERED_MAX, Finished
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import ChangeKind, MemberState, NodeId, Outcome, Phase
from tests.core.driver import Driver, node_id
from tests.core.test_member_state import fail_over, met, of_kind


def without(*lost: str, regroup: bool = True, **options: object) -> Driver:
    """Nodes a, b, c met in round 1, and these were lost. The others are in round 2."""
    driver = met("a", "b", "c", **options)
    driver.disconnect(*lost)
    driver.advance(2.0)
    rest = [name for name in ("a", "b", "c") if name not in lost]
    if regroup:
        driver.ready(*rest)
        driver.advance(31.0)
    driver.take()
    return driver


def done_late(driver: Driver, *tokens: str) -> None:
    """The nodes are back, and their workers have finished in the round that they were given."""
    driver.attach(*tokens)
    driver.done(*tokens)


def test_a_lost_node_that_has_finished_is_done() -> None:
    driver = without("a")
    done_late(driver, "a")
    member = driver.run.roster.living(node_id("a"))
    assert member is not None
    assert member.state is MemberState.DONE
    assert (driver.phase, sorted(driver.names)) == (Phase.ACTIVE, ["b", "c"])


def test_r7_a_run_that_cannot_reach_its_minimum_without_it_ends() -> None:
    """Else it would wait for the others, and they for it."""
    driver = without("a", "b", regroup=False)
    driver.ready("c")
    driver.advance(60.0)
    assert driver.phase is Phase.GATHERING
    done_late(driver, "a")
    assert driver.run.close is not None
    assert driver.run.close.outcome is Outcome.NOT_ENOUGH
    assert "1 finished" in driver.run.close.reason


def test_the_run_succeeds_when_all_nodes_of_the_round_have_finished_after_all() -> None:
    driver = without("a", regroup=False, min=1)
    done_late(driver, "a")
    driver.done("b", "c")
    assert driver.run.close is not None
    assert driver.run.close.outcome is Outcome.SUCCEEDED


def test_r10_a_successor_knows_that_it_is_done() -> None:
    driver = without("a")
    done_late(driver, "a")
    driver.advance(1.0)
    fail_over(driver, "b", "c")
    driver.fail("b")
    driver.leave("c")
    driver.advance(60.0)
    assert driver.run.close is not None
    assert driver.run.close.outcome is Outcome.NOT_ENOUGH


@pytest.mark.parametrize("regroups", [False, True], ids=["its-round", "a-later-round"])
def test_r11_it_is_counted_once_however_often_it_comes_back(regroups: bool) -> None:
    driver = without("a", regroup=regroups)
    for _ in range(3):
        done_late(driver, "a")
        assert driver.run._finished.count == 1
        driver.done("a")
        driver.disconnect("a")
        driver.advance(10.0)
        assert driver.run.roster.living(node_id("a")) is None


def test_r11_a_done_node_that_was_removed_and_returns_is_done_and_counted_once() -> None:
    driver = met("a", "b", "c")
    driver.done("a")
    driver.disconnect("a")
    driver.advance(10.0)
    done_late(driver, "a")
    assert driver.run._finished.count == 1
    fail_over(driver, "b", "c")
    done_late(driver, "a")
    assert driver.run._finished.count == 1
    member = driver.run.roster.living(node_id("a"))
    assert member is not None
    assert member.state is MemberState.DONE


def test_r11_marks_of_the_round_count_more_nodes_than_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finished, "REMEMBERED_MAX", 1)
    driver = met("a", "b", "c", "d")
    driver.done("a", "b")  # of which b is remembered
    driver.disconnect("a")
    driver.advance(10.0)
    done_late(driver, "a")
    assert driver.run._finished.count == 2


def test_r11_a_done_node_that_has_left_is_counted_once_under_a_successor_too() -> None:
    driver = met("a", "b", "c")
    driver.done("a")
    driver.leave("a")
    fail_over(driver, "a", "b", "c")
    driver.leave("a")
    assert driver.run.roster.living(node_id("a")) is None
    done_late(driver, "a")
    assert driver.run._finished.count == 1


@pytest.mark.parametrize("takeovers", [1, 2])
@pytest.mark.parametrize("late", [True, False], ids=["lost-before", "done-in-its-round"])
def test_r11_a_successor_does_not_count_a_node_of_an_earlier_round_again(
    late: bool, takeovers: int
) -> None:
    if late:
        driver = without("a")
        done_late(driver, "a")
    else:
        driver = met("a", "b", "c")
        driver.done("a")
        driver.fail("b")
        driver.ready("b", "c")
        driver.advance(31.0)
    assert (driver.phase, sorted(driver.names)) == (Phase.ACTIVE, ["b", "c"])
    driver.advance(1.0)
    for _ in range(takeovers):
        fail_over(driver, "b", "c")
    done_late(driver, "a")
    assert driver.run._finished.count == 1
    driver.leave("b")
    driver.advance(60.0)
    assert driver.run.close is not None
    assert "1 finished" in driver.run.close.reason


def test_a_head_of_a_release_that_did_not_write_which_nodes_have_finished() -> None:
    driver = without("a")
    done_late(driver, "a")
    driver.advance(1.0)
    marks = msgspec.structs.replace(driver.register.marks, finished_nodes=b"")
    driver.register = msgspec.structs.replace(driver.register, marks=marks)
    fail_over(driver, "b", "c")
    assert driver.run._finished.count == 1


def test_only_the_last_nodes_that_have_finished_are_remembered() -> None:
    finished = Finished()
    for number in range(REMEMBERED_MAX + 1):
        finished.add(NodeId("a", number), is_in_round=False)
    successor = Finished(earlier=finished.count, known=finished.known)
    assert successor.count == REMEMBERED_MAX + 1
    for each in (finished, successor):
        assert [each.knows(NodeId("a", number)) for number in (0, 1, REMEMBERED_MAX)] == [
            False,
            True,
            True,
        ]


@pytest.mark.parametrize("number", [1, 3])
def test_r4_a_member_is_not_done_with_a_round_that_is_not_its_last(number: int) -> None:
    driver = met("a", "b", "c")
    driver.ready("a", "b", "c")
    driver.advance(31.0)
    assert driver.run.number == 2
    driver.step(on.NodeDone(node_id("a"), number))
    member = driver.run.roster.living(node_id("a"))
    assert member is not None
    assert member.state is MemberState.ACTIVE


def test_r4_a_lost_node_is_not_done_with_a_round_that_has_not_been() -> None:
    driver = without("a", regroup=False)
    driver.attach("a")
    driver.step(on.NodeDone(node_id("a"), 2))
    assert driver.run._finished.count == 0


def test_r4_a_node_that_was_in_no_round_is_not_done() -> None:
    driver = without("a", regroup=False)
    driver.attach("x")
    for number in (1, 2, 7):
        driver.step(on.NodeDone(node_id("x"), number))
    driver.attach("a'")
    driver.step(on.NodeDone(node_id("a'"), 1))
    assert driver.run._finished.count == 0


def test_its_goodbye_ends_no_round() -> None:
    driver = without("a")
    done_late(driver, "a")
    driver.leave("a")
    assert driver.phase is Phase.ACTIVE
    assert driver.run._finished.count == 1
    assert [each.change.kind for each in of_kind(driver, do.Break)] == []


def test_a_node_of_a_run_that_was_removed_learns_it() -> None:
    """Another run has the id now, and its rounds are above those of the first one (R1)."""
    driver = Driver(min=2, max=2)
    driver.run._floor = 5
    driver.attach("a", "b")
    driver.take()
    driver.step(on.NodeDone(node_id("a"), 5))
    (refused,) = of_kind(driver, do.Refuse)
    assert refused.refusal.code is RefusalCode.RUN_LOST
    assert "was removed" in refused.refusal.message
    assert refused.refusal.hint
    assert driver.run._finished.count == 0
    assert ChangeKind.NODE_LOST not in [each.change.kind for each in of_kind(driver, do.Break)]
