"""R15: a round whose workers advance is not ended as a hang; one that does not is, in time."""

import msgspec
import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.judging import JudgingClock
from rallypoint.core.progress import AGAIN_S, ASK_S, Progress
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import Change, Phase
from tests.core.driver import Driver, node_id

TIMEOUT_S = 60.0
WAITS = WorkerStack(0, place="all_reduce (train.py:4)", is_waiting=True)
LOADS = WorkerStack(1, local_rank=0, place="load (data.py:9)", text="line 1\nline 2")


def in_round(*names: str, has_successor: bool = True) -> Driver:
    driver = Driver(min=len(names), max=len(names), restarts=None, has_successor=has_successor)
    driver.join(*names)
    assert driver.phase is Phase.ACTIVE
    driver.take()
    return driver


def asked(driver: Driver) -> list[float]:
    return [at_s for at_s, effect in driver.effects if isinstance(effect, do.AskStacks)]


def broken(driver: Driver) -> list[tuple[float, Change]]:
    return [(at, each.change) for at, each in driver.effects if isinstance(each, do.Break)]


def test_R15_a_round_in_which_nobody_advances_ends() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    assert asked(driver) == [TIMEOUT_S]
    driver.stacks("a", WAITS)
    driver.stacks("b", LOADS)
    ((at_s, change),) = broken(driver)
    assert at_s == TIMEOUT_S
    failure = change.failure
    assert failure is not None
    assert failure.is_hang
    assert failure.kind_name == "hang"
    assert (change.nodes, failure.rank, change.charged, change.confirmed) == (("b",), 1, True, True)
    assert failure.last_lines == ("line 1", "line 2")
    assert driver.run.restart_count == 1


def test_R15_the_stacks_of_all_workers_are_kept_before_the_round_ends() -> None:
    driver = in_round("a", "b", "c")
    driver.progress("a", "b", "c", step=1)
    driver.advance(TIMEOUT_S)
    text = 'Current thread 0x{} (most recent call first):\n  File "{}", line 4 in all_reduce\n'
    for name, rank in (("a", 0), ("b", 2)):
        driver.stacks(
            name, msgspec.structs.replace(WAITS, rank=rank, text=text.format(rank, "t.py"))
        )
    driver.stacks("c", LOADS)
    effects = [each for _, each in driver.effects if isinstance(each, do.KeepStacks | do.Break)]
    kept, ended = effects
    assert isinstance(kept, do.KeepStacks)
    assert isinstance(ended, do.Break)
    assert [each.in_words for each in kept.groups] == [
        "2 of 3 in all_reduce (train.py:4) (ranks 0,2)",
        "c rank 1 in load (data.py:9)",
    ]
    assert [each.nodes for each in kept.groups] == [("a", "b"), ("c",)]
    assert kept.groups[0].lines[1] == '  File "t.py", line 4 in all_reduce'


def test_R15_nodes_that_do_not_answer_do_not_hold_up_the_end() -> None:
    driver = in_round("a", "b")
    driver.progress("a", step=1)
    driver.advance(TIMEOUT_S + ASK_S)
    ((at_s, change),) = broken(driver)
    assert at_s == TIMEOUT_S + ASK_S
    assert "no answer from a, b" in str(change)


def test_R15_without_a_report_nothing_ends() -> None:
    driver = in_round("a", "b")
    driver.advance(10 * TIMEOUT_S)
    assert not asked(driver)


def test_R15_a_report_without_a_timeout_ends_nothing() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1, timeout_s=None)
    driver.advance(10 * TIMEOUT_S)
    assert not asked(driver)
    assert driver.run.progress.step == 1


def test_R15_one_worker_that_advances_is_enough() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    for step in range(2, 8):
        driver.advance(TIMEOUT_S / 2)
        driver.progress("b", step=step)
    driver.advance(TIMEOUT_S - 1)
    assert not asked(driver)


def test_R15_the_quick_way_moves_the_deadline_too() -> None:
    driver = in_round("a", "b")
    driver.progress("a", step=1)
    driver.advance(TIMEOUT_S - 1)
    report = on.NodeProgressed(node_id("b"), Progress(1, 2, 0.0, TIMEOUT_S))
    assert driver.run.progressed(report, driver.now_s)
    driver.advance(TIMEOUT_S - 1)
    assert not asked(driver)
    driver.advance(1)
    assert asked(driver)
    assert not driver.run.progressed(report, driver.now_s)


def test_R15_an_old_report_does_not_shorten_the_deadline() -> None:
    driver = in_round("a", "b")
    driver.progress("a", step=1)
    driver.progress("a", "b", step=1, ago_s=TIMEOUT_S - 1)
    driver.advance(TIMEOUT_S - 1)
    assert not asked(driver)


def test_R15_the_longest_timeout_counts() -> None:
    driver = in_round("a", "b")
    driver.progress("a", step=1, timeout_s=5.0)
    driver.progress("b", step=1, timeout_s=TIMEOUT_S)
    driver.progress("a", step=1, timeout_s=5.0)
    driver.advance(TIMEOUT_S - 1)
    assert not asked(driver)
    driver.advance(1)
    assert asked(driver)


def test_R15_a_worker_that_advances_while_stacks_are_asked_for_goes_on() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    driver.stacks("a", WAITS, progress=Progress(1, 2, 0.5, TIMEOUT_S))
    driver.stacks("b", LOADS)
    driver.advance(TIMEOUT_S - 1)
    assert not broken(driver)
    assert asked(driver) == [TIMEOUT_S]
    driver.advance(0.5)
    assert asked(driver) == [TIMEOUT_S, 2 * TIMEOUT_S - 0.5]


@pytest.mark.parametrize("serial", [0, 2])
def test_R15_an_answer_to_another_question_does_not_count(serial: int) -> None:
    driver = in_round("a")
    driver.progress("a", step=1)
    driver.advance(TIMEOUT_S)
    driver.stacks("a", LOADS, serial=serial)
    assert not broken(driver)


def test_R15_reports_about_another_round_do_not_count() -> None:
    driver = in_round("a", "b")
    driver.progress("a", step=1, number=7)
    driver.advance(2 * TIMEOUT_S)
    assert not asked(driver)


def test_R15_the_deadline_ends_with_the_round() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    driver.fail("b")
    driver.ready("a", "b")
    driver.advance(TIMEOUT_S)
    assert driver.phase is Phase.ACTIVE
    assert len(broken(driver)) == 1
    assert len(asked(driver)) == 1


def test_R15_the_time_of_an_outage_does_not_count() -> None:
    driver = in_round(
        "a",
        "b",
    )
    driver.progress("a", "b", step=1)
    driver.advance(20)
    driver.lose_ledger(SuspensionCause.LEASE)
    driver.advance(10 * TIMEOUT_S)
    driver.progress("a", step=1, ago_s=20 + 10 * TIMEOUT_S)
    driver.restore_ledger(SuspensionCause.LEASE)
    driver.advance(39)
    assert not asked(driver)
    driver.advance(1)
    assert asked(driver)


def test_R15_after_an_outage_all_are_asked_anew() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    driver.stacks("a", WAITS)
    driver.lose_ledger(SuspensionCause.LEASE)
    driver.stacks("b", LOADS)
    driver.advance(10)
    driver.restore_ledger(SuspensionCause.LEASE)
    driver.advance(0)
    assert not broken(driver)
    assert len(asked(driver)) == 2


def test_R15_a_round_is_not_judged_while_a_member_cannot_be_heard() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S - 10)
    driver.silent("b")
    driver.advance(15)
    assert not asked(driver)
    driver.heard("b")
    driver.advance(AGAIN_S)
    assert asked(driver)


@pytest.mark.parametrize("left_s", [30.0, 10.5])
def test_R15_a_round_in_which_a_node_drains_is_not_judged(left_s: float) -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S - 10)
    driver.draining("b", left_s=left_s)
    driver.advance(left_s - 0.25)  # The last part of a second counts, too.
    assert not asked(driver)
    driver.advance(0.25)
    assert asked(driver)


def test_R15_after_a_takeover_the_deadline_counts_from_what_is_known() -> None:
    driver = in_round("a", "b", has_successor=True)
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S - 10)
    driver.fail_over()
    driver.attach("a")
    driver.progress("a", step=1, ago_s=TIMEOUT_S - 10)
    driver.advance(3)
    driver.attach("b")
    driver.progress("b", step=2, ago_s=20.0)
    driver.advance(TIMEOUT_S - 20.1)
    assert not asked(driver)
    driver.advance(0.2)
    assert asked(driver)


@pytest.mark.parametrize("ago_s", [TIMEOUT_S + 1, TIMEOUT_S])
def test_R15_news_from_before_the_deadline_does_not_end_the_question(ago_s: float) -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S + 1)
    driver.progress("a", step=2, ago_s=ago_s)
    driver.advance(ASK_S - 1)
    assert broken(driver)


def test_R15_news_of_just_after_the_deadline_ends_the_question() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    driver.progress("a", step=2, ago_s=TIMEOUT_S - 0.5)
    driver.advance(0.4)
    assert len(asked(driver)) == 1
    driver.advance(0.2)
    assert len(asked(driver)) == 2
    driver.advance(ASK_S - 1)
    assert not broken(driver)


def test_R4_a_report_of_a_node_that_is_not_there_is_not_heard() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.progress("c", step=9, number=1)
    assert driver.run.progress.step == 1


def test_R4_a_report_about_another_round_takes_nothing_away() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S / 2)
    driver.progress("a", step=9, number=7)
    driver.advance(TIMEOUT_S / 2)
    assert asked(driver) == [TIMEOUT_S]


def test_R15_the_timer_is_set_again_for_the_last_part_of_a_second() -> None:
    driver = in_round("a", "b")
    driver.progress("a", step=1)
    driver.advance(0.5)
    driver.progress("b", step=1)
    driver.advance(TIMEOUT_S - 0.25)
    assert not asked(driver)
    driver.advance(0.25)
    assert asked(driver) == [TIMEOUT_S + 0.5]


def test_R15_a_round_is_not_judged_while_members_have_yet_to_attach() -> None:
    driver = in_round("a", "b", has_successor=True)
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S - 1)
    driver.fail_over(attach_grace_s=20.0)
    driver.attach("a")
    driver.progress("a", step=1, ago_s=TIMEOUT_S - 1)
    driver.advance(10.0)
    assert not asked(driver)
    driver.attach("b")
    driver.advance(AGAIN_S)
    assert asked(driver)


def test_R15_an_answer_of_a_node_that_is_not_there_is_not_heard() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    driver.stacks("c", WAITS)
    assert not broken(driver)
    driver.stacks("a", WAITS)
    driver.stacks("b", LOADS)
    assert broken(driver)


def test_R15_a_repeat_of_an_older_report_does_not_make_a_node_look_slower() -> None:
    driver = in_round("a", "b")
    driver.progress("a", step=1)
    driver.progress("a", step=1, ago_s=5.0)
    assert driver.run.progress.nodes["a"].advanced_s == driver.now_s


def test_R15_a_timeout_may_be_less_than_a_second() -> None:
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1, timeout_s=0.5)
    driver.advance(0.5)
    assert asked(driver) == [0.5]


def test_R15_of_the_seconds_before_now_those_of_an_outage_do_not_count() -> None:
    clock = JudgingClock()
    clock.stop(10.0)
    clock.go_on(20.0)
    ago_s = (5.0, 10.0, 15.0, 25.0)
    assert [clock.counted_s(each, 30.0) for each in ago_s] == [5.0, 10.0, 10.0, 15.0]
    clock.stop(40.0)
    assert [clock.counted_s(each, 50.0) for each in (5.0, 15.0)] == [0.0, 5.0]


def test_R15_the_node_of_the_guilty_rank_has_broken_the_round() -> None:
    driver = Driver(min=2, max=2, restarts=None, per_node=0)
    driver.join("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    driver.stacks("a", WAITS)
    driver.stacks("b", LOADS)
    guilty = driver.run.roster.get("b")
    assert guilty is not None
    assert (guilty.rounds_broken, guilty.stays_out) == (1, True)


def test_R15_while_a_member_falls_silent_during_the_question_the_round_does_not_end() -> None:
    """It may be lost, and then that is why nobody advances."""
    driver = in_round("a", "b")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S)
    assert asked(driver)
    driver.stacks("a", WAITS)
    driver.silent("b")
    driver.advance(ASK_S)
    assert not broken(driver)
    driver.heard("b")
    driver.advance(AGAIN_S + ASK_S)
    assert len(asked(driver)) == 2
    assert len(broken(driver)) == 1


def test_R15_a_node_on_standby_that_nobody_hears_delays_nothing() -> None:
    driver = in_round("a", "b")
    driver.join("c")
    driver.progress("a", "b", step=1)
    driver.advance(TIMEOUT_S - 1)
    driver.silent("c")
    driver.advance(1)
    assert asked(driver) == [TIMEOUT_S]
