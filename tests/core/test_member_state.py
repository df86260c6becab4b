"""The state of a member, item by item, and how it survives a takeover (docs/protocol.md)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import ChangeKind, MemberState, NodeInfo, Outcome, Phase, Reachability
from tests.core.driver import Driver, node_id

GRACE_S = 15.0


def met(*names: str, **options: Any) -> Driver:
    """A driver with an active round of these nodes. Its effects are taken."""
    driver = Driver(**{"min": 2, "max": len(names), "restarts": 3, **options})
    driver.join(*names)
    if driver.manual_commit:
        driver.commit()
    driver.advance(31.0)
    assert driver.names == list(names)
    driver.take()
    return driver


def of_kind(driver: Driver, kind: type[Any]) -> list[Any]:
    return [effect for _, effect in driver.effects if isinstance(effect, kind)]


def lost(driver: Driver) -> list[str]:
    return [e.node.name for e in of_kind(driver, do.Forget) if " lost: " in e.reason]


def fail_over(driver: Driver, *attaching: str) -> None:
    driver.fail_over(attach_grace_s=GRACE_S)
    driver.take()
    driver.attach(*attaching)


class TestDone:
    def test_a_done_node_that_has_gone_is_not_lost(self) -> None:
        driver = met("a", "b")
        driver.done("a")
        driver.leave("a")
        fail_over(driver, "b")
        driver.advance(3_600.0)
        assert (driver.phase, driver.run.number, lost(driver)) == (Phase.ACTIVE, 1, [])

    def test_the_run_succeeds_when_the_others_are_done_too(self) -> None:
        driver = met("a", "b", manual_commit=True)
        driver.done("a")
        driver.leave("a")
        driver.done("b")  # The close is on its way, and does not arrive.
        fail_over(driver, "b")
        driver.done("b")
        driver.commit()
        assert driver.run.close is not None
        assert driver.run.close.outcome is Outcome.SUCCEEDED

    def test_a_done_node_that_attaches_again_is_done(self) -> None:
        driver = met("a", "b", "c")
        driver.done("a")
        fail_over(driver, "a", "b", "c")
        driver.done("a")  # said again, and counted once
        member = driver.run.roster.living(node_id("a"))
        assert member is not None
        assert (member.state, member.reachability) == (MemberState.DONE, Reachability.CONNECTED)
        driver.die("a")
        driver.advance(60.0)
        assert driver.phase is Phase.ACTIVE

    def test_a_done_node_is_not_awaited(self) -> None:
        driver = met("a", "b", "c")
        driver.done("a")
        fail_over(driver, "b", "c")
        driver.disconnect("b")
        driver.advance(driver.settings.reconnect_grace_s)
        # The attach grace is over, and b is judged like any member.
        assert lost(driver) == ["b"]

    def test_after_the_first_done_node_no_newcomer_is_admitted(self) -> None:
        driver = met("a", "b", max=3)
        driver.done("a")
        fail_over(driver, "b")
        driver.join("c")
        driver.advance(60.0)
        assert driver.phase is Phase.ACTIVE

    def test_done_nodes_of_earlier_rounds_count_if_too_few_are_left(self) -> None:
        driver = met("a", "b", "c")
        driver.done("a")
        driver.fail("b")
        driver.answer("c")
        driver.ready("b", "c")
        driver.advance(31.0)
        assert (driver.run.number, driver.names) == (2, ["c", "b"])
        fail_over(driver, "b", "c")
        driver.leave("c")
        driver.advance(1.0)
        assert driver.run.close is not None
        assert driver.run.close.outcome is Outcome.NOT_ENOUGH

    def test_many_nodes_done_together_need_few_writes(self) -> None:
        names = [f"n{i}" for i in range(400)]
        driver = met(*names, manual_marks=True)
        for name in names[:399]:
            driver.done(name)
        assert len(of_kind(driver, do.WriteMarks)) == 1
        driver.marks_written()
        driver.advance(0.06)
        driver.marks_written()
        writes = of_kind(driver, do.WriteMarks)
        assert len(writes) == 2
        assert sum(byte.bit_count() for byte in writes[-1].marks.done) == 399

    def test_nodes_done_one_after_another_need_few_writes_too(self) -> None:
        names = [f"n{i}" for i in range(40)]
        driver = met(*names)
        for name in names[:39]:
            driver.done(name)
            driver.advance(driver.settings.settle_s / 10)
        # One write at once, and then one each `settle_s`.
        assert len(of_kind(driver, do.WriteMarks)) <= 1 + 4
        driver.advance(driver.settings.settle_s)
        assert sum(byte.bit_count() for byte in driver.register.marks.done) == 39

    def test_done_nodes_of_earlier_rounds_count_after_two_takeovers(self) -> None:
        driver = met("a", "b", "c", min=1)
        driver.done("a")
        driver.fail("b")
        driver.answer("c")
        driver.ready("b", "c")
        driver.advance(31.0)
        assert (driver.run.number, driver.register.marks.finished) == (2, 1)
        fail_over(driver, "b", "c")
        driver.done("b")
        driver.advance(1.0)
        assert driver.register.marks.finished == 1
        assert driver.register.marks.done != b"\0"

    def test_a_passive_node_becomes_done_later(self) -> None:
        """It hung, and a round was formed without it. Then its work was done."""
        driver = met("a", "b", "c", restarts=None)
        driver.fail("a")
        driver.answer("b", "c")
        driver.ready("a", "b")
        driver.advance(60.0)
        assert (driver.run.number, sorted(driver.names)) == (2, ["a", "b"])
        driver.done("c")
        driver.advance(1.0)
        assert driver.register.marks.finished == 1


class TestDepartingAndLeft:
    @pytest.mark.parametrize("has_left", [False, True])
    def test_a_departing_node_is_neither_lost_nor_awaited(self, has_left: bool) -> None:
        driver = met("a", "b", "c")
        driver.depart("a")
        if has_left:
            driver.leave("a")
        fail_over(driver, "b", "c")
        (change,) = {e.standing.change for e in of_kind(driver, do.Welcome)}
        assert change.kind is ChangeKind.NODE_LEFT
        driver.ready("b", "c")
        driver.advance(0.1)
        assert (driver.run.number, driver.names, lost(driver)) == (2, ["c", "b"], [])

    def test_a_departing_node_that_attaches_is_admitted(self) -> None:
        driver = met("a", "b", "c")
        driver.depart("a")
        fail_over(driver, "a", "b", "c")
        driver.depart("a")
        driver.leave("a")
        driver.ready("b", "c")
        driver.advance(0.1)
        assert (driver.run.number, driver.names, lost(driver)) == (2, ["c", "b"], [])

    def test_a_departure_while_the_round_is_written_counts(self) -> None:
        driver = Driver(min=2, max=3, manual_commit=True)
        driver.join("a", "b", "c")
        driver.depart("a")
        driver.commit()
        fail_over(driver, "b", "c")
        driver.manual_commit = False
        driver.ready("b", "c", leaving=1)
        driver.advance(0.1)
        assert (driver.run.number, driver.names, lost(driver)) == (2, ["c", "b"], [])

    def test_a_leave_while_the_round_is_written_counts(self) -> None:
        driver = Driver(min=2, max=3, manual_commit=True)
        driver.join("a", "b", "c")
        driver.leave("a")
        driver.commit()
        fail_over(driver, "b", "c")
        driver.manual_commit = False
        driver.ready("b", "c", leaving=1)
        driver.advance(0.1)
        assert (driver.run.number, driver.names, lost(driver)) == (2, ["c", "b"], [])


class TestTheEndOfARound:
    def test_a_lost_member_is_not_lost_again(self) -> None:
        driver = met("a", "b", "c")
        driver.die("a")
        driver.advance(0.1)
        fail_over(driver, "b", "c")
        driver.ready("b", "c")
        driver.advance(0.1)
        assert (driver.run.number, lost(driver)) == (2, [])

    def test_a_verdict_is_given_and_charged_once(self) -> None:
        driver = met("a", "b", "c")
        driver.fail("a")
        driver.answer("b", "c")
        driver.advance(1.0)
        assert driver.run.restart_count == 1
        fail_over(driver, "a", "b", "c")
        driver.ready("a", "b", "c")
        driver.advance(0.1)
        assert (driver.run.number, driver.run.restart_count) == (2, 1)
        assert of_kind(driver, do.Verdict) == []

    def test_a_verdict_missing_in_the_ledger_is_charged_once_by_the_successor(self) -> None:
        driver = met("a", "b", "c", manual_marks=True)
        driver.fail("a")
        driver.answer("b", "c")
        driver.advance(1.0)
        fail_over(driver, "a", "b", "c")
        driver.manual_marks = False
        driver.ready("a", "b", "c")
        driver.advance(0.1)
        assert (driver.run.number, driver.run.restart_count) == (2, 1)

    def test_an_open_case_is_opened_again(self) -> None:
        driver = met("a", "b", "c")
        driver.fail("a")
        driver.advance(0.2)
        fail_over(driver, "a", "b")
        driver.ready("a", "b")
        driver.advance(GRACE_S)
        assert lost(driver) == ["c"]
        (verdict,) = of_kind(driver, do.Verdict)
        assert verdict.change.kind is ChangeKind.NODE_LOST
        assert driver.run.restart_count == 0

    def test_members_without_the_verdict_get_it_from_the_successor(self) -> None:
        driver = met("a", "b", "c")
        driver.fail("a", message="ValueError")
        driver.advance(0.2)
        fail_over(driver, "b")
        (welcome,) = of_kind(driver, do.Welcome)
        assert welcome.standing.round == 0
        assert welcome.standing.change.failure.message == "ValueError"

    def test_members_reported_gone_are_not_awaited(self) -> None:
        """The last coordinator told its nodes, and died before it wrote any marks."""
        driver = met("a", "b", "c", manual_marks=True)
        driver.leave("a")
        fail_over(driver, "b", "c")
        driver.manual_marks = False
        assert driver.phase is Phase.ACTIVE
        driver.ready("b", "c")
        driver.advance(0.1)
        assert (driver.run.number, lost(driver)) == (2, [])

    def test_marks_of_another_round_are_ignored(self) -> None:
        """A release without marks wrote a round."""
        driver = met("a", "b")
        driver.done("a")
        marks = msgspec.structs.replace(driver.register.marks, round=7)
        driver.register = msgspec.structs.replace(driver.register, marks=marks)
        fail_over(driver, "a", "b")
        member = driver.run.roster.living(node_id("a"))
        assert member is not None
        assert member.state is MemberState.ACTIVE


class TestAGoodbyeIsAnsweredOnceItIsInTheLedger:
    def test_the_goodbye_of_a_done_node_waits_for_the_ledger(self) -> None:
        driver = met("a", "b", manual_marks=True)
        driver.done("a")
        driver.leave("a")
        (forget,) = of_kind(driver, do.Forget)
        assert forget.keeps_connection
        assert of_kind(driver, do.Dismiss) == []
        driver.marks_written()
        assert [e.connection_id for e in of_kind(driver, do.Dismiss)] == [driver._links["a"]]

    def test_a_goodbye_already_in_the_ledger_is_answered_at_once(self) -> None:
        driver = met("a", "b")
        driver.done("a")
        driver.take()
        driver.leave("a")
        (forget,) = of_kind(driver, do.Forget)
        assert not forget.keeps_connection

    def test_the_goodbye_of_a_node_without_a_round_is_answered_at_once(self) -> None:
        driver = met("a", "b", manual_marks=True)
        driver.join("c")
        driver.done("a")
        driver.leave("c")
        (forget,) = of_kind(driver, do.Forget)
        assert not forget.keeps_connection

    def test_the_goodbye_of_a_node_whose_round_is_being_written_waits_for_its_mark(self) -> None:
        """The model checker found it, in its world "depart".

        A successor would have waited for the node, and lost it.
        """
        driver = Driver(min=2, max=2, manual_commit=True, manual_marks=True)
        driver.join("a", "b")
        driver.ready("a", "b")
        assert driver.phase is Phase.COMMITTING
        driver.leave("b")
        (forget,) = of_kind(driver, do.Forget)
        assert forget.keeps_connection
        driver.commit()
        assert of_kind(driver, do.Dismiss) == []
        driver.marks_written()
        assert [e.connection_id for e in of_kind(driver, do.Dismiss)] == [driver._links["b"]]

    def test_in_memory_a_goodbye_is_answered_at_once(self) -> None:
        driver = met("a", "b", has_successor=False)
        driver.done("a")
        driver.leave("a")
        assert [e.keeps_connection for e in of_kind(driver, do.Forget)] == [False]
        assert of_kind(driver, do.WriteMarks) == []

    def test_a_close_answers_the_goodbye_if_it_comes_first(self) -> None:
        driver = met("a", "b", manual_commit=True, manual_marks=True)
        driver.done("a")
        driver.marks_written()
        driver.done("b")
        driver.leave("b")
        assert of_kind(driver, do.Dismiss) == []
        driver.commit()
        assert len(of_kind(driver, do.Dismiss)) == 1

    def test_the_next_round_waits_for_the_marks_and_answers_later_goodbyes(self) -> None:
        driver = met("a", "b", "c", manual_marks=True)
        driver.depart("c")
        driver.ready("a", "b")
        driver.advance(31.0)
        assert (driver.phase, driver.run.number) == (Phase.COMMITTING, 1)
        driver.leave("c")
        driver.marks_written()  # One write at a time: the record follows.
        assert (driver.run.number, driver.names) == (2, ["a", "b"])
        assert of_kind(driver, do.Forget)

    def test_an_answer_to_marks_is_not_taken_for_one_to_a_round(self) -> None:
        driver = met("a", "b", "c", manual_marks=True, manual_commit=True)
        driver.depart("c")
        driver.ready("a", "b")
        driver.advance(31.0)
        assert (driver.phase, of_kind(driver, do.Commit)) == (Phase.COMMITTING, [])
        driver.commit()  # of nothing: the marks are being written
        assert driver.phase is Phase.COMMITTING
        driver.marks_written()
        assert len(of_kind(driver, do.Commit)) == 1
        driver.commit()
        assert (driver.phase, driver.run.number) == (Phase.ACTIVE, 2)

    def test_during_an_outage_an_answer_to_marks_is_not_taken_for_one_to_a_round(self) -> None:
        driver = met("a", "b", "c", manual_marks=True, manual_commit=True)
        driver.depart("c")
        driver.ready("a", "b")
        driver.advance(31.0)
        driver.lose_ledger()
        driver.commit()
        driver.marks_written()
        driver.restore_ledger()
        assert len(of_kind(driver, do.Commit)) == 1
        assert driver.phase is Phase.COMMITTING

    def test_a_round_that_waited_for_marks_is_written_once_despite_an_outage(self) -> None:
        driver = met("a", "b", "c", manual_marks=True, manual_commit=True)
        driver.depart("c")
        driver.ready("a", "b")
        driver.advance(31.0)
        driver.lose_ledger()
        driver.marks_written()
        assert of_kind(driver, do.Commit) == []
        driver.restore_ledger()
        assert len(of_kind(driver, do.Commit)) == 1

    def test_a_deposed_coordinator_redirects_the_node(self) -> None:
        driver = met("a", "b", manual_marks=True)
        driver.done("a")
        driver.leave("a")
        driver.refuse_commit()
        (refuse,) = of_kind(driver, do.Refuse)
        assert refuse.refusal.code is RefusalCode.MOVED

    def test_a_goodbye_is_answered_after_an_outage(self) -> None:
        driver = met("a", "b")
        driver.lose_ledger()
        driver.done("a")
        driver.leave("a")
        assert (of_kind(driver, do.WriteMarks), of_kind(driver, do.Dismiss)) == ([], [])
        driver.restore_ledger()
        assert len(of_kind(driver, do.Dismiss)) == 1

    def test_an_answer_of_the_ledger_during_an_outage_counts(self) -> None:
        driver = met("a", "b", manual_marks=True)
        driver.done("a")
        driver.leave("a")
        driver.lose_ledger()
        driver.marks_written()
        assert len(of_kind(driver, do.Dismiss)) == 1

    def test_a_stray_answer_answers_no_goodbye(self) -> None:
        driver = met("a", "b", manual_marks=True)
        driver.done("a")
        driver.leave("a")
        driver.step(on.MarksWritten(99))
        assert of_kind(driver, do.Dismiss) == []


class TestRepeatedMessages:
    def test_a_ready_node_repeats_that_it_is_ready(self) -> None:
        driver = met("a", "b", "c")
        driver.leave("c")
        driver.ready("a")
        fail_over(driver, "a", "b")
        assert driver.run.roster.ready_count == 0
        driver.ready("a", "b")
        driver.advance(0.1)
        assert driver.names == ["a", "b"]

    def test_a_standby_gets_its_place_again(self) -> None:
        driver = met("a", "b")
        driver.join("c")
        fail_over(driver, "a", "b")
        driver.join("c")
        assert [e.node.name for e in of_kind(driver, do.Notify)] == ["c"]

    def test_a_repeat_of_an_older_ready_breaks_nothing(self) -> None:
        driver = met("a", "b")
        fail_over(driver, "a", "b")
        driver.ready("a", leaving=0)
        assert driver.phase is Phase.ACTIVE

    def test_a_takeover_forgets_how_often_a_name_was_flapping(self) -> None:
        driver = met("a", "b", max=3)
        for start in range(3):
            driver.join("c" + start * "'")
            driver.leave("c" + start * "'")
        fail_over(driver, "a", "b")
        driver.join("c" + 3 * "'")
        driver.advance(driver.settings.scale_up_delay_s + 0.1)
        assert driver.phase is Phase.GATHERING

    def test_the_older_of_two_nodes_keeps_the_name(self) -> None:
        driver = met("a", "b")
        driver.silent("a")
        driver.attach("a'")
        fail_over(driver, "a'", "b", "a")
        assert driver.is_connected("a")

    def test_a_members_row_has_everything_its_node_sent(self) -> None:
        driver = Driver(min=1, max=1)
        info = NodeInfo("a", 1, "host", ("10.0.0.1",), 2, {"zone": "z"}, 7.5)
        driver.step(on.NodeAttached(info, driver.settings, 1))
        driver.ready("a", workers=2)
        driver.fail_over(attach_grace_s=GRACE_S)
        member = driver.run.roster.get("a")
        assert member is not None
        assert member.info == info


def test_a_goodbye_after_an_outage_of_the_ledger_is_answered_without_another_event() -> None:
    """The timer of an earlier note fires during the outage, and must not delay a later one."""
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.ready("a")
    driver.lose_ledger()
    driver.advance(0.1)
    driver.restore_ledger()
    driver.take()
    driver.leave("b")
    assert of_kind(driver, do.Dismiss) == []
    driver.advance(0.1)
    assert len(of_kind(driver, do.Dismiss)) == 1
