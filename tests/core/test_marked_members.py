"""What marked lines promise about members: cases in which a small change would be wrong.

`make mutants` changes the lines that keep a rule. Each test here fails for changes that no other
test noticed. `test_marked_lines` has those of the election and of rounds.
"""

from __future__ import annotations

import pytest

from rallypoint.checkers.invariants import Checked
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core import suspicion
from rallypoint.core.effects import TimerKind
from rallypoint.core.finished import Finished
from rallypoint.core.membership import Membership
from rallypoint.core.pacing import ROUNDS_AT_ONCE
from rallypoint.core.roster import Bucket, Roster
from rallypoint.core.values import ChangeKind, CloseRecord, NodeInfo, Phase
from tests.core.driver import Driver, node_id
from tests.core.test_marked_lines import marking, member, met, record


def stand_still(driver: Driver, duration_s: float) -> None:
    """The process was starved, so no timer fired; then it learns that its lease is too old."""
    driver.now_s += duration_s
    driver.lose_ledger()


# -- name conflicts ------------------------------------------------------------------------------


@pytest.mark.parametrize("late_s", [2.0, 2.5])
def test_r8_a_name_is_free_at_once_when_the_time_was_over_before_the_outage(late_s: float) -> None:
    driver = met("a", "b")
    driver.now_s = 64.0
    driver.attach("a'")
    stand_still(driver, late_s)
    assert not driver.is_connected("a'")
    driver.restore_ledger()
    assert driver.is_connected("a'")


def test_r8_a_closed_connection_keeps_its_name_for_the_rest_of_its_grace() -> None:
    driver = met("a", "b", grace=5.0)
    driver.disconnect("a")
    driver.attach("a'")
    stand_still(driver, 7.0)
    driver.restore_ledger()
    driver.advance(2.5)
    driver.attach("a")
    assert driver.is_connected("a")


def test_r8_a_member_that_has_yet_to_attach_keeps_its_name_through_an_outage() -> None:
    driver = met("a", "b")
    driver.fail_over(attach_grace_s=6.0)
    driver.attach("a'")
    driver.advance(5.9)
    driver.lose_ledger()
    driver.advance(60.0)
    driver.restore_ledger()
    driver.advance(0.5)
    driver.attach("a")
    assert driver.is_connected("a")


# -- silence --------------------------------------------------------------------------------------


def test_r8_only_a_member_that_left_the_probe_unanswered_is_lost_when_it_falls_silent() -> None:
    driver = met("a", "b", "c")
    driver.fail("b")
    driver.answer("a")
    driver.advance(1.5)
    driver.silent("a")
    assert "a" in driver.run.roster
    driver.silent("c")
    assert "c" not in driver.run.roster


@pytest.mark.parametrize("silent_s", [5.0, 29.5])
def test_r8_a_silent_member_is_lost_in_time_after_it_was_last_heard(silent_s: float) -> None:
    driver = met("a", "b")
    driver.silent("a", silent_s=silent_s)
    driver.advance(30.0 - silent_s - 0.1)
    assert "a" in driver.run.roster
    driver.advance(0.2)
    assert "a" not in driver.run.roster


def test_r8_a_connection_that_closes_has_its_grace_however_long_it_was_silent() -> None:
    driver = met("a", "b")
    driver.silent("a", silent_s=29.5)
    driver.disconnect("a")
    driver.advance(0.9)
    assert "a" in driver.run.roster
    driver.advance(0.2)
    assert "a" not in driver.run.roster


# -- processes that end together -------------------------------------------------------------------


@pytest.mark.parametrize(("later_s", "is_longer"), [(0.5, True), (1.0, False), (1.5, False)])
def test_r8_a_burst_of_ends_has_a_bound(later_s: float, is_longer: bool) -> None:
    driver = met("a", "b", "c", "d")
    driver.now_s = 64.0
    driver.die("a")
    driver.now_s += later_s  # No timer fired meanwhile.
    driver.take()
    driver.die("b")
    timers = [each.timer.kind for _, each in driver.take() if isinstance(each, do.SetTimer)]
    assert (TimerKind.BURST in timers) is is_longer


# -- deadlines after an outage of the ledger -------------------------------------------------------

NAMES = tuple(f"n{number}" for number in range(8))


def away(driver: Driver) -> None:
    driver.lose_ledger()
    driver.advance(60.0)
    driver.restore_ledger()


def test_r8_the_guard_may_end_while_a_member_has_more_time_after_an_outage() -> None:
    """The last member to return has the grace once more, as without an outage."""
    driver = met(*NAMES)
    driver.disconnect(*NAMES[:4])
    driver.advance(
        1.5
    )  # All are past their deadline by half a second, and the guard protects them.
    away(driver)
    driver.attach(*NAMES[1:4])
    driver.advance(0.9)
    assert "n0" in driver.run.roster
    driver.advance(0.2)
    assert "n0" not in driver.run.roster


def test_r8_a_member_has_the_rest_of_its_grace_when_the_guard_is_over() -> None:
    driver = met(*NAMES, mass_grace=5.0)
    driver.disconnect(*NAMES[:4])
    driver.advance(3.8)
    driver.disconnect("n4")
    driver.advance(1.1)  # The guard protects it since 0.1 s, and for 0.1 s more.
    away(driver)
    driver.advance(0.5)
    assert not set(NAMES[:4]) & {member.name for member in driver.run.roster}
    assert "n4" in driver.run.roster
    driver.advance(0.5)
    assert "n4" not in driver.run.roster


@pytest.mark.parametrize(("later_s", "left_s"), [(0.5, 0.5), (1.0, 1.0), (1.5, 1.0)])
def test_r8_only_a_member_whose_time_is_over_has_it_once_more(
    later_s: float, left_s: float
) -> None:
    """When the guard ends. Deadlines that have not come yet stand."""
    driver = met(*NAMES)
    driver.now_s = 64.0
    driver.disconnect(*NAMES[:4])
    driver.now_s += later_s  # No timer fired meanwhile.
    driver.attach(*NAMES[1:4])
    driver.advance(left_s - 0.1)
    assert "n0" in driver.run.roster
    driver.advance(0.2)
    assert "n0" not in driver.run.roster


def test_r8_members_that_have_yet_to_attach_keep_their_time_when_the_guard_ends() -> None:
    driver = met(*NAMES)
    driver.fail_over(attach_grace_s=6.0)
    driver.attach(*NAMES[:6])
    driver.disconnect(*NAMES[:4])
    driver.advance(2.0)
    driver.attach(*NAMES[:4])
    driver.advance(3.9)
    assert set(NAMES) <= {member.name for member in driver.run.roster}
    driver.advance(0.2)
    assert not set(NAMES[6:]) & {member.name for member in driver.run.roster}


def test_r8_closed_connections_queue_up_after_an_outage_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suspicion, "QUEUE_NODES", 2)
    driver = met(*NAMES, mass_min=8)
    driver.disconnect(*NAMES[:6])
    driver.advance(0.9)
    away(driver)
    driver.advance(2.9)
    assert set(NAMES) <= {member.name for member in driver.run.roster}
    driver.advance(0.2)
    assert not set(NAMES[:6]) & {member.name for member in driver.run.roster}


def test_r8_silent_members_do_not_queue_up_after_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suspicion, "QUEUE_NODES", 2)
    driver = met(*NAMES, mass_min=8)
    driver.silent(*NAMES[:6], silent_s=29.5)
    driver.advance(0.4)
    away(driver)
    driver.advance(0.9)
    assert set(NAMES) <= {member.name for member in driver.run.roster}
    driver.advance(0.2)
    assert not set(NAMES[:6]) & {member.name for member in driver.run.roster}


# -- the probe of a case -------------------------------------------------------------------------


@pytest.mark.parametrize("late_s", [2.0, 2.5])
def test_r8_a_suspect_is_lost_at_once_when_its_time_was_over_before_the_outage(
    late_s: float,
) -> None:
    driver = met("a", "b", "c")
    driver.now_s = 64.0
    driver.silent("a")
    driver.fail("b")
    stand_still(driver, late_s)
    assert "a" in driver.run.roster
    driver.restore_ledger()
    assert "a" not in driver.run.roster


def test_r8_a_suspect_has_its_whole_time_to_answer_after_an_outage() -> None:
    driver = met("a", "b", "c")
    driver.silent("a")
    driver.fail("b")
    driver.advance(0.5)
    driver.lose_ledger()
    driver.advance(60.0)
    driver.restore_ledger()
    driver.advance(0.95)
    assert "a" in driver.run.roster
    driver.advance(0.1)
    assert "a" not in driver.run.roster


# -- marks ---------------------------------------------------------------------------------------


def test_r10_a_goodbye_does_not_wait_for_marks_of_an_earlier_round() -> None:
    marks, (a, b) = marking(2)
    marks.gone(a.id, 0.0)
    marks.begin(record(2, b), Finished(), None, (), 0.0)
    assert not marks.farewell(b.id, 1, "b")


# -- the ledger ----------------------------------------------------------------------------------


def test_r6_a_closed_run_is_not_suspended_when_another_coordinator_has_it() -> None:
    driver = met("a", "b")
    driver.close()
    driver.refuse_commit()
    assert driver.phase is Phase.CLOSED
    assert not driver.run.suspension


def test_r6_a_verdict_that_ends_the_run_forms_no_round() -> None:
    driver = Driver(min=2, max=2, restarts=0)
    driver.join("a", "b")
    driver.fail("a")
    driver.take()
    driver.ready("a", "b")
    records = [each.record for _, each in driver.take() if isinstance(each, do.Commit)]
    assert [type(each) for each in records] == [CloseRecord]


# -- timers --------------------------------------------------------------------------------------

OF_GATHERINGS = (TimerKind.SETTLE, TimerKind.LAST_CALL, TimerKind.STOP, TimerKind.PACE)


def test_r7_each_timer_of_a_gathering_names_the_round_that_waits_for_it() -> None:
    driver = Driver(min=1, max=4, restarts=None, last_call=1.0)
    driver.join("a", "b", "c")
    driver.advance(1.0)
    driver.ready("a", "b", "c")
    driver.advance(1.0)
    driver.ready("a")
    driver.advance(7.0)
    pace = driver.run._gathering.pace
    for _ in range(ROUNDS_AT_ONCE + 4):
        pace.round_ended(1.0, driver.now_s)
    driver.ready("a", "b", "c")
    driver.advance(1.0)
    expected = 1
    seen = set()
    for _, effect in driver.take():
        match effect:
            case do.SetTimer(timer=timer) if timer.kind in OF_GATHERINGS:
                assert timer.round == expected, timer
                seen.add(timer.kind)
            case do.Publish(record=record):
                expected = record.head.number + 1
    assert seen == set(OF_GATHERINGS)


# -- members that go -----------------------------------------------------------------------------


def test_r7_a_member_that_departs_while_the_round_is_written_keeps_no_place() -> None:
    driver = Driver(min=2, max=3, manual_commit=True)
    driver.join("a", "b", "c")
    driver.depart("c")
    driver.commit()
    kept = {member.name: member.survivor for member in driver.run.roster}
    assert kept == {"a": True, "b": True, "c": False}


def test_r13_a_loss_that_ends_no_round_is_told_as_a_loss() -> None:
    driver = met("a", "b")
    driver.manual_commit = True
    driver.close()
    driver.take()
    driver.die("a")
    driver.advance(0.1)
    (forgotten,) = (each for _, each in driver.take() if isinstance(each, do.Forget))
    assert forgotten.loss is not None
    assert forgotten.loss.kind is ChangeKind.NODE_LOST


def test_r10_a_lost_member_waits_for_no_marks() -> None:
    driver = met("a", "b")
    driver.take()
    driver.disconnect("a")
    driver.advance(2.0)
    (forgotten,) = (each for _, each in driver.take() if isinstance(each, do.Forget | do.Dismiss))
    assert isinstance(forgotten, do.Forget)
    assert not forgotten.keeps_connection


def test_r6_the_first_of_two_closes_counts() -> None:
    driver = Driver(min=2, max=2, manual_commit=True)
    driver.join("a", "b")
    driver.close(reason="first")
    driver.close(reason="second")
    driver.commit()
    driver.commit()
    assert driver.run.close is not None
    assert driver.run.close.reason == "first"


# -- the table of a round ------------------------------------------------------------------------


def test_r2_a_row_is_kept_until_the_member_has_another_number_of_workers() -> None:
    made = member(Roster(), "a")
    row = made.row()
    assert made.row() is row
    made.workers = 3
    assert made.row().workers == 3
    assert made.row() is made.row()


@pytest.mark.parametrize(
    ("own", "shown", "is_proved"),
    [
        (b"", b"", True),
        (b"", b"s", True),
        (b"s", b"s", True),
        (b"s", b"", False),
        (b"s", b"t", False),
    ],
)
def test_r5_only_its_secret_proves_that_a_connection_is_the_members(
    own: bytes, shown: bytes, is_proved: bool
) -> None:
    info = NodeInfo("a", 1, "host", (), 1)
    assert Roster().add(info, 1, 0.0, own).is_proved_by(shown) is is_proved


def test_r1_a_member_that_names_a_round_below_the_floor_is_a_member_all_the_same() -> None:
    driver = Driver(min=2, max=2)
    driver.checked = Checked(Membership("run", floor=40))
    driver.join("a", "b")
    assert driver.run.number == 41
    assert driver.step(on.NodeDone(node_id("a"), 5)) == []
    driver.done("a")
    assert driver.run.roster.count(Bucket.DONE) == 1
