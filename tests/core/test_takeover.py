"""The members after a takeover: the state that a coordinator restores, and when it judges them."""

from __future__ import annotations

from typing import Any

import pytest

from rallypoint.core import effects as do
from rallypoint.core import takeover
from rallypoint.core.stopping import STOP_MARGIN_S
from rallypoint.core.suspicion import HOST_GRACE_S
from rallypoint.core.values import ChangeKind, Phase
from tests.core.driver import Driver, node_id

GRACE_S = 15.0


def met(*names: str, **options: Any) -> Driver:
    driver = Driver(**{"min": 1, "max": len(names), **options})
    driver.join(*names)
    driver.advance(31.0)
    assert driver.names == list(names)
    driver.take()
    return driver


def lost(driver: Driver) -> list[str]:
    return [e.node.name for _, e in driver.effects if isinstance(e, do.Forget)]


def many(count: int) -> list[str]:
    return [f"n{i:02}" for i in range(count)]


class TestTheCoordinatorsHostDiesWithItsNode:
    """The lease named the node as its host, and was not renewed."""

    def test_the_host_has_the_time_that_a_live_node_needs(self) -> None:
        driver = met("a", "b", "c")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("b", "c")
        driver.advance(HOST_GRACE_S - 0.1)
        assert (driver.phase, lost(driver)) == (Phase.ACTIVE, [])
        driver.advance(0.2)
        assert (driver.phase, lost(driver)) == (Phase.GATHERING, ["a"])

    def test_the_other_of_two_nodes_continues(self) -> None:
        driver = met("a", "b")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("b")
        driver.advance(HOST_GRACE_S)
        driver.ready("b")
        driver.advance(0.1)
        assert (driver.run.number, driver.names) == (2, ["b"])

    def test_the_grace_of_a_very_large_run_grows_with_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # R8: with 100,000 nodes, the connections of living ones wait for longer than the grace.
        monkeypatch.setattr(takeover, "ATTACH_NODES", 2)
        driver = met("a", "b", "c", "d")
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach("b", "c", "d")
        driver.advance(2 * GRACE_S - 0.1)
        assert (driver.phase, lost(driver)) == (Phase.ACTIVE, [])
        driver.advance(0.2)
        assert (driver.phase, lost(driver)) == (Phase.GATHERING, ["a"])

    @pytest.mark.parametrize("is_away", [False, True], ids=["", "after an outage"])
    def test_r8_the_hosts_time_grows_with_the_run_too(
        self, monkeypatch: pytest.MonkeyPatch, is_away: bool
    ) -> None:
        # With 10,000 nodes, a host that lives may be the last of them to attach.
        monkeypatch.setattr(takeover, "HOST_NODES", 2)
        driver = met("a", "b", "c", "d")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("b", "c")
        if is_away:
            driver.lose_ledger()
            driver.advance(10.0)
            driver.restore_ledger()
        driver.advance(2 * HOST_GRACE_S - 0.1)
        assert (driver.phase, lost(driver)) == (Phase.ACTIVE, [])
        driver.advance(0.2)
        assert (driver.phase, lost(driver)) == (Phase.GATHERING, ["a"])

    def test_the_others_have_the_whole_attach_grace(self) -> None:
        driver = met("a", "b", "c", "d")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("b", "c")
        driver.advance(GRACE_S - 0.1)
        assert lost(driver) == ["a"]
        driver.advance(0.2)
        assert lost(driver) == ["a", "d"]

    def test_a_shorter_attach_grace_applies_to_the_host_too(self) -> None:
        driver = met("a", "b")
        driver.fail_over(attach_grace_s=0.5, host="a")
        driver.attach("b")
        driver.advance(0.5)
        assert lost(driver) == ["a"]

    def test_r8_a_host_that_attaches_in_time_keeps_its_round(self) -> None:
        """Its process stalled, or only its connection to the ledger was cut."""
        driver = met("a", "b", "c")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("b", "a", "c")
        driver.advance(2 * GRACE_S)
        assert (driver.phase, lost(driver)) == (Phase.ACTIVE, [])

    def test_a_host_that_attaches_too_late_gets_the_reason(self) -> None:
        driver = met("a", "b")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("b")
        driver.advance(HOST_GRACE_S)
        driver.attach("a")
        (welcome,) = [e for _, e in driver.effects if isinstance(e, do.Welcome)][-1:]
        assert not welcome.resumed
        assert welcome.standing.change is not None
        assert welcome.standing.change.kind is ChangeKind.NODE_LOST

    def test_another_incarnation_of_the_host_is_another_node(self) -> None:
        driver = met("a", "b")
        driver.fail_over(attach_grace_s=GRACE_S, host="a'")
        driver.attach("b")
        driver.advance(GRACE_S - 0.1)
        assert lost(driver) == []

    def test_a_dead_host_is_lost_despite_outages_of_the_ledger(self) -> None:
        driver = met("a", "b", "c")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("b")
        driver.lose_ledger()
        driver.attach("c")
        driver.advance(60.0)
        assert lost(driver) == []
        driver.restore_ledger()
        driver.advance(HOST_GRACE_S)
        assert lost(driver) == ["a"]


class TestTheAttachGraceIsOver:
    def test_the_attach_grace_ends_when_all_have_attached(self) -> None:
        driver = met("a", "b", "c")
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach("a", "b", "c")
        driver.disconnect("c")
        driver.advance(1.0)
        assert lost(driver) == ["c"]

    def test_with_half_of_the_round_there_is_no_mass_guard(self) -> None:
        names = many(10)
        driver = met(*names)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach(*names[:5])
        driver.advance(GRACE_S)
        assert lost(driver) == names[5:]

    def test_with_fewer_than_half_the_mass_guard_is_raised(self) -> None:
        names = many(20)
        driver = met(*names)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach(*names[:9])
        driver.advance(GRACE_S + 100.0)
        assert lost(driver) == []
        driver.advance(driver.settings.mass_grace_s)
        assert lost(driver) == names[9:]

    def test_a_member_that_attaches_again_counts_once(self) -> None:
        first, *others = many(10)
        driver = met(first, *others)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach(first)
        for _ in others:
            driver.disconnect(first)
            driver.attach(first)
        driver.advance(GRACE_S + 1.0)
        assert lost(driver) == []

    @pytest.mark.parametrize("late_s", [7.0, 7.5])
    def test_r8_it_is_over_at_once_if_it_was_over_before_an_outage(self, late_s: float) -> None:
        driver = met("a", "b")
        driver.now_s = 64.0
        driver.fail_over(attach_grace_s=6.0)
        driver.attach("b")
        driver.now_s += late_s  # The process was starved, so no timer fired.
        driver.lose_ledger()
        assert lost(driver) == []
        driver.restore_ledger()
        assert lost(driver) == ["a"]

    def test_r8_it_does_not_begin_again_after_an_outage(self) -> None:
        """The last member to attach has the grace once more, as without an outage."""
        names = many(10)
        driver = met(*names)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach(*names[:4])
        driver.advance(GRACE_S + 0.5)
        driver.lose_ledger()
        driver.advance(60.0)
        driver.restore_ledger()
        assert not driver.checked.membership._takeover.is_grace_on
        driver.attach(*names[4:9])
        driver.advance(0.9)
        assert lost(driver) == []
        driver.advance(0.2)
        assert lost(driver) == names[9:]

    def test_r8_a_member_that_got_the_grace_once_more_keeps_it_through_an_outage(self) -> None:
        """It has its own deadline then, and the end of the attach grace is not judged again."""
        names = many(20)
        driver = met(*names, mass_min=8, grace=5.0)
        grace_s = driver.settings.reconnect_grace_s
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach(*names[:9])
        driver.advance(GRACE_S)
        driver.attach(*names[9:12])  # The mass guard ends, so the other eight have the grace.
        driver.advance(grace_s - 1.0)
        driver.lose_ledger()
        driver.advance(60.0)
        driver.restore_ledger()
        driver.advance(grace_s - 0.1)
        assert lost(driver) == []
        driver.advance(0.2)
        assert lost(driver) == names[12:]

    def test_before_the_grace_ends_missing_members_raise_no_guard(self) -> None:
        names = many(20)
        driver = met(*names)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach(*names[:12])
        driver.disconnect(names[0])
        driver.advance(driver.settings.reconnect_grace_s)
        assert lost(driver) == [names[0]]

    def test_the_host_and_absent_members_are_judged_under_the_guard_too(self) -> None:
        names = many(40)
        driver = met(*names)
        driver.fail_over(attach_grace_s=GRACE_S, host=names[39])
        driver.attach(*names[:38])
        for name in names[:10]:
            driver.silent(name)
        driver.advance(GRACE_S)
        assert lost(driver) == [names[39], names[38]]


class TestTheNameOfAMemberThatHasNotAttached:
    def test_the_newcomer_is_refused_once_the_older_has_attached(self) -> None:
        driver = met("a", "b")
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach("a'")
        driver.advance(5.0)
        driver.attach("b", "a")
        assert driver.is_connected("a")
        assert [type(e) for _, e in driver.effects if isinstance(e, do.Refuse)] == [do.Refuse]
        assert driver.phase is Phase.ACTIVE

    def test_the_newcomer_gets_the_name_after_the_attach_grace(self) -> None:
        driver = met("a", "b")
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach("b", "a'")
        driver.advance(GRACE_S - 0.1)
        assert driver.run.roster.living(node_id("a'")) is None
        driver.advance(0.2)
        assert driver.is_connected("a'")

    def test_the_newcomer_gets_the_name_when_another_member_reports_the_loss(self) -> None:
        driver = met("a", "b", "c")
        driver.manual_marks = True
        driver.die("c")
        driver.advance(0.1)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.attach("c'", "a", "b")
        assert driver.run.roster.living(node_id("c'")) is None
        driver.ready("a")
        assert driver.is_connected("c'")

    def test_a_restarted_host_does_not_wait_for_its_name(self) -> None:
        driver = met("a", "b")
        driver.fail_over(attach_grace_s=GRACE_S, host="a")
        driver.attach("a'")
        driver.attach("b")
        driver.advance(HOST_GRACE_S)
        assert driver.is_connected("a'")


class TestPlacesAfterATakeover:
    """A live member that stops its workers is in the next round, under any coordinator."""

    def newcomers_wait(self, driver: Driver, duration_s: float) -> None:
        driver.advance(duration_s)
        assert (driver.phase, driver.run.number) == (Phase.GATHERING, 1)

    def test_a_member_that_has_not_attached_keeps_its_place(self) -> None:
        driver = met("a", "b", min=2, max=4, last_call=1.0)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.join("c")
        driver.attach("a")
        driver.ready("a")
        self.newcomers_wait(driver, GRACE_S - 1.0)
        driver.join("b")
        driver.advance(0.1)
        assert driver.names == ["a", "b", "c"]

    def test_the_stop_time_is_stored_and_begins_when_the_node_is_notified(self) -> None:
        driver = Driver(min=2, max=4, last_call=1.0)
        driver.attach("a")
        driver.attach("b", stop_s=20.0)
        driver.ready("a", "b")
        driver.advance(1.0)
        driver.fail_over(attach_grace_s=GRACE_S)
        driver.join("c")
        driver.attach("a")
        driver.ready("a")
        driver.advance(GRACE_S - 1.0)
        driver.attach("b", stop_s=20.0)
        self.newcomers_wait(driver, 20.0 + STOP_MARGIN_S - 0.1)
        driver.advance(0.2)
        assert driver.names == ["a", "c"]

    def test_a_member_that_reconnects_gets_no_second_stop_time(self) -> None:
        driver = met("a", "b", min=2, max=4, last_call=1.0)
        driver.join("c", "d")
        driver.advance(1.0)
        for _ in range(7):
            driver.advance(1.0)
            driver.disconnect("a")  # b keeps its place all the time
            driver.attach("a")
        assert (driver.phase, driver.names) == (Phase.GATHERING, ["a", "b"])
        driver.advance(1.1)
        assert driver.names == ["c", "d"]

    def test_a_node_gets_the_stop_time_of_the_slowest_member(self) -> None:
        driver = Driver(min=2, max=4, last_call=1.0, grace=5.0)
        driver.attach("a")
        driver.attach("b", stop_s=20.0)
        driver.ready("a", "b")
        driver.advance(1.0)
        driver.disconnect("a")
        driver.join("c")
        driver.advance(1.0)
        assert driver.phase is Phase.GATHERING
        driver.attach("a")  # gets it only now, and has less to stop
        waiting = driver.run.waiting(driver.now_s)
        assert waiting is not None
        assert waiting.stop_left_s == 20.0 + STOP_MARGIN_S


class TestAStandbyWhileTheLedgerIsAway:
    @pytest.mark.parametrize("ready_again", [True, False])
    def test_a_standby_gets_its_place_again(self, ready_again: bool) -> None:
        driver = met("a", "b")
        driver.join("c")
        driver.lose_ledger()
        driver.disconnect("c")
        driver.take()
        driver.attach("c")
        if ready_again:
            driver.ready("c")
        driver.advance(1.0)
        driver.restore_ledger()
        driver.advance(60.0)
        told = [e.standing.standby for _, e in driver.effects if isinstance(e, do.Welcome)]
        assert told == [True]

    def test_a_standby_that_came_in_an_outage_gets_its_place_afterwards(self) -> None:
        driver = met("a", "b")
        driver.attach("c")
        driver.lose_ledger()
        driver.ready("c")
        driver.restore_ledger()
        assert [e.node.name for _, e in driver.effects if isinstance(e, do.Notify)] == ["c"]
