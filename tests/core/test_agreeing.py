"""R14: all workers of a round agree on the step after which a draining node leaves."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.agreeing import CLEAR_S
from rallypoint.core.agreement import NO_STEP
from rallypoint.core.effects import Effect
from tests.core.driver import Driver, node_id

E = TypeVar("E", bound=Effect)


def told(driver: Driver, kind: type[E]) -> list[E]:
    return [effect for _, effect in driver.take() if isinstance(effect, kind)]


def agreeing(*, manual_marks: bool = False, **settings: Any) -> Driver:
    """A round of a, b and c, whose workers take part."""
    settings = {"min": 2, "max": 3, "restarts": None, "has_successor": True} | settings
    driver = Driver(manual_marks=manual_marks, **settings)
    driver.join("a", "b", "c")
    driver.take_part("a", "b", "c")
    driver.take()
    return driver


def test_each_member_hears_of_a_drain_once_and_of_the_step_once() -> None:
    driver = agreeing()
    driver.draining("b")
    driver.promise("a", "b", "c", step=4)
    effects = [effect for _, effect in driver.take()]
    assert [type(each) for each in effects] == [do.TellDrain, do.WriteMarks, do.TellStep]
    driver.draining("b")
    driver.promise("a", step=4)
    driver.take_part("a")
    assert driver.take() == []


def test_the_step_is_above_every_promise_and_in_the_ledger_before_it_is_told() -> None:
    driver = agreeing(manual_marks=True)
    driver.draining("b")
    for name, step in (("a", 3), ("b", 9)):
        driver.promise(name, step=step)
    assert not told(driver, do.WriteMarks)
    driver.promise("c", step=5)
    effects = [effect for _, effect in driver.take()]
    assert [each.marks.step for each in effects if isinstance(each, do.WriteMarks)] == [10]
    assert not [each for each in effects if isinstance(each, do.TellStep)]
    driver.marks_written()
    assert [each.step for each in told(driver, do.TellStep)] == [10]


def test_nobody_is_asked_while_one_member_does_not_take_part() -> None:
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.take_part("a", "b")
    driver.draining("a")
    assert [each.drain.is_asked for each in told(driver, do.TellDrain)] == [False]
    driver.promise("a", "b", "c", step=1)
    assert not told(driver, do.TellStep)
    driver.take_part("c")
    assert [each.drain.is_asked for each in told(driver, do.TellDrain)] == [True]


def test_a_member_whose_workers_have_finished_is_not_waited_for() -> None:
    driver = agreeing()
    driver.draining("b")
    driver.promise("a", "b", step=4)
    assert not told(driver, do.TellStep)
    driver.done("c")
    assert [each.step for each in told(driver, do.TellStep)] == [5]


def test_reports_about_another_round_count_for_nothing() -> None:
    driver = agreeing()
    driver.step(on.NodeDraining(node_id("a"), 7, "late", 5.0))
    driver.step(on.StepPromised(node_id("a"), 0, 99))
    driver.draining("b")
    driver.promise("a", "b", "c", step=4)
    assert [each.step for each in told(driver, do.TellStep)] == [5]


def test_the_end_of_the_round_ends_the_agreement() -> None:
    driver = agreeing()
    driver.draining("b")
    driver.promise("a", "b", step=4)
    driver.fail("c")
    driver.ready("a", "b", "c")
    driver.advance(0.1)
    assert driver.run.number == 2
    driver.take()
    driver.take_part("a", "b", "c")
    driver.promise("a", "b", "c", step=2)
    assert not told(driver, do.TellDrain)
    assert not told(driver, do.TellStep)


def test_a_member_that_has_finished_drains_and_promises_nothing_any_more() -> None:
    driver = agreeing()
    driver.done("c")
    driver.take()
    driver.draining("c")
    driver.promise("c", step=50)
    assert not told(driver, do.TellDrain)
    driver.draining("b")
    driver.promise("a", "b", step=4)
    driver.advance(0.1)
    assert [each.step for each in told(driver, do.TellStep)] == [5]


def test_a_step_that_was_decided_stays_and_is_told_once() -> None:
    driver = agreeing()
    driver.draining("b")
    driver.promise("a", "b", "c", step=4)
    assert [each.step for each in told(driver, do.TellStep)] == [5]
    driver.promise("a", step=9)
    driver.draining("a")
    driver.done("c")
    driver.advance(1.0)
    effects = [effect for _, effect in driver.take()]
    assert not [each for each in effects if isinstance(each, do.TellStep)]
    assert {each.marks.step for each in effects if isinstance(each, do.WriteMarks)} == {5}
    assert driver.run.agreement.step == 5


def test_marks_that_were_formed_before_the_step_do_not_have_it() -> None:
    driver = agreeing(manual_marks=True)
    driver.drain("c")
    driver.draining("b")
    driver.promise("a", "b", "c", step=4)
    driver.marks_written()
    assert not told(driver, do.TellStep)
    driver.advance(0.1)
    driver.marks_written()
    assert [each.step for each in told(driver, do.TellStep)] == [5]


def test_who_attaches_before_the_ledger_has_the_step_is_told_none() -> None:
    driver = agreeing(manual_marks=True)
    driver.draining("b")
    driver.attach("c")
    driver.promise("a", "b", "c", step=4)
    driver.attach("c")
    assert not told(driver, do.TellStep)
    driver.marks_written()
    driver.attach("c")
    assert [each.to for each in told(driver, do.TellStep)] == [None, node_id("c")]


def test_a_step_of_a_round_that_has_ended_meanwhile_is_not_told() -> None:
    driver = agreeing(manual_marks=True)
    driver.draining("b")
    driver.promise("a", "b", "c", step=4)
    driver.fail("a")
    driver.marks_written()
    assert not told(driver, do.TellStep)


def test_while_the_ledger_is_away_nothing_is_decided() -> None:
    driver = agreeing()
    driver.draining("b")
    driver.lose_ledger()
    driver.promise("a", "b", "c", step=4)
    assert not [e for _, e in driver.take() if isinstance(e, do.WriteMarks | do.TellStep)]
    driver.restore_ledger()
    driver.advance(0.1)
    assert [each.step for each in told(driver, do.TellStep)] == [5]


def test_a_deposed_coordinator_tells_no_step() -> None:
    driver = agreeing(manual_marks=True)
    driver.draining("b")
    driver.promise("a", "b", "c", step=4)
    driver.refuse_commit()
    driver.marks_written()
    assert not told(driver, do.TellStep)


@pytest.mark.parametrize("is_written", [True, False])
def test_a_successor_keeps_a_step_that_the_ledger_has_and_asks_anew_otherwise(
    is_written: bool,
) -> None:
    driver = agreeing(manual_marks=True)
    driver.draining("b")
    driver.promise("a", "b", "c", step=4)
    if is_written:
        driver.marks_written()
    driver.take()
    driver.fail_over()
    driver.attach("a", "b", "c")
    assert [each.step for each in told(driver, do.TellStep)] == [5] * 3 * is_written
    driver.take_part("a", "b", "c")
    driver.promise("a", "b", "c", step=4)
    driver.draining("b")
    driver.advance(0.1)
    if not is_written:
        driver.marks_written()
        assert [each.step for each in told(driver, do.TellStep)] == [5]


def test_a_successor_tells_nobody_that_a_member_takes_no_part_before_it_could_say_so() -> None:
    """Else the draining node would leave at once, and the steps since the checkpoint were lost."""
    driver = agreeing()
    driver.take()
    driver.fail_over()
    driver.attach("b")
    driver.take_part("b")
    driver.draining("b")
    driver.attach("a", "c")
    driver.take_part("a")
    assert not told(driver, do.TellDrain)
    driver.advance(0.5)
    driver.take_part("c")
    assert [each.drain.is_asked for each in told(driver, do.TellDrain)] == [True]


def test_a_successor_tells_in_time_that_a_member_takes_no_part() -> None:
    driver = agreeing()
    driver.fail_over()
    driver.attach("b")
    driver.take_part("b")
    driver.draining("b")
    driver.advance(3.0)
    driver.attach("a", "c")
    driver.take_part("a")
    driver.advance(CLEAR_S - 0.1)
    assert not told(driver, do.TellDrain)
    driver.advance(0.1)
    assert [each.drain.is_asked for each in told(driver, do.TellDrain)] == [False]


def test_the_time_to_say_so_begins_with_the_last_that_attaches() -> None:
    driver = agreeing()
    driver.fail_over()
    driver.attach("b")
    driver.take_part("b")
    driver.draining("b")
    driver.attach("a")
    driver.advance(CLEAR_S - 0.1)
    driver.attach("c")
    driver.advance(CLEAR_S - 0.1)
    assert not told(driver, do.TellDrain)
    driver.advance(0.2)
    assert [each.drain.is_asked for each in told(driver, do.TellDrain)] == [False]


def test_without_a_takeover_nodes_that_attach_again_put_off_no_news() -> None:
    """A second draining node was told alone at first, and the others hear of it soon."""
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.draining("a")
    driver.draining("b")
    driver.take()
    driver.advance(CLEAR_S - 0.1)
    driver.attach("c")
    driver.take()
    driver.advance(0.2)
    [news] = told(driver, do.TellDrain)
    assert news.drain.count == 2


def test_a_draining_node_that_finishes_does_not_leave_the_others_waiting() -> None:
    """They have promised, so each of them waits. Now none has to stop, and all go on."""
    driver = agreeing()
    driver.draining("b")
    driver.promise("a", step=4)
    driver.take()
    driver.done("b")
    driver.advance(0.1)
    assert [each.step for each in told(driver, do.TellStep)] == [NO_STEP]
    driver.promise("c", step=4)
    driver.draining("c")
    assert [each.drain.is_asked for each in told(driver, do.TellDrain)] == [False]
    driver.attach("a")
    assert [each.step for each in told(driver, do.TellStep)] == [NO_STEP]


def test_a_successor_releases_who_has_promised_for_a_node_that_has_finished() -> None:
    driver = agreeing(manual_marks=True)
    driver.draining("b")
    driver.promise("a", step=4)
    driver.fail_over()
    driver.attach("a", "b", "c")
    driver.take_part("a", "c")
    driver.promise("a", step=4)
    driver.take()
    driver.done("b")
    driver.marks_written()
    driver.advance(CLEAR_S - 0.1)
    driver.marks_written()
    assert not told(driver, do.TellStep)
    driver.advance(0.2)
    driver.marks_written()
    assert [each.step for each in told(driver, do.TellStep)] == [NO_STEP]


def test_a_draining_node_that_finishes_before_anybody_is_asked_is_forgotten() -> None:
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.take_part("a", "b")
    driver.draining("b")
    driver.done("b")
    driver.take()
    driver.take_part("c")
    driver.promise("a", "c", step=4)
    assert not told(driver, do.TellDrain)
    assert not told(driver, do.TellStep)


def test_many_nodes_that_drain_at_once_cost_one_message_each_and_a_few_to_all() -> None:
    """A scheduler signals all nodes of a job at its end."""
    names = [f"n{index:03}" for index in range(200)]
    driver = Driver(min=2, max=len(names))
    driver.join(*names)
    driver.take_part(*names)
    driver.take()
    driver.draining(*names, left_s=30.0)
    driver.draining(names[7], left_s=9.0)
    each_of = told(driver, do.TellDrain)
    assert [each.to for each in each_of] == [None, *(node_id(name) for name in names[1:])]
    driver.promise(*names, step=4)
    driver.advance(0.1)
    assert [each.step for each in told(driver, do.TellStep)] == [5]
    driver.advance(CLEAR_S)
    (last,) = told(driver, do.TellDrain)
    assert (last.to, last.drain.count, last.drain.is_asked) == (None, len(names), True)
    driver.advance(10 * CLEAR_S)
    assert not told(driver, do.TellDrain)


def test_the_soonest_deadline_is_told_also_when_that_node_has_finished() -> None:
    driver = agreeing()
    driver.draining("a", left_s=30.0, reason="late")
    driver.draining("b", left_s=5.0, reason="soon")
    driver.advance(CLEAR_S)
    told_last = told(driver, do.TellDrain)[-1].drain
    assert (told_last.reason, told_last.left_s) == ("soon", 4.0)
    driver.done("b")
    driver.attach("c")
    told_last = told(driver, do.TellDrain)[-1].drain
    assert (told_last.reason, told_last.left_s, told_last.nodes) == ("late", 29.0, ("a",))


def test_a_node_on_standby_that_nobody_hears_delays_no_answer() -> None:
    driver = agreeing()
    driver.fail_over()
    driver.attach("a", "b", "c")
    driver.join("d")
    driver.silent("d")
    driver.take_part("b")
    driver.draining("b")
    driver.advance(CLEAR_S)
    assert [each.drain.is_asked for each in told(driver, do.TellDrain)] == [False]
