"""One test for each fault that the membership once had, named by what is right."""

from collections.abc import Callable
from typing import Any

import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.flapping import REMEMBERED_MAX, DepartureHistory
from rallypoint.core.membership import Membership
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    MemberState,
    NodeInfo,
    Outcome,
    Phase,
    Reachability,
    RunSettings,
    secret_hash,
)
from tests.core.driver import Driver, node_id


def kinds(driver: Driver) -> list[str]:
    """The kinds of the effects since the last call."""
    return [type(effect).__name__ for _, effect in driver.take()]


def meet(*names: str, **options: Any) -> Driver:
    """A run whose first round has these nodes. There is room for more only if `max` says so."""
    driver = Driver(**{"max": len(names), **options})
    driver.join(*names)
    driver.advance(driver.settings.last_call_s)
    assert driver.phase is Phase.ACTIVE
    driver.take()
    return driver


class TestResuming:
    """A connection with a member's incarnation, but without its secret, is not that member."""

    @pytest.mark.parametrize("shown", ["", "guessed", "b"], ids=["none", "another", "a peer's"])
    @pytest.mark.parametrize("where", ["active", "blip", "gathering", "suspended", "taken over"])
    def test_the_incarnation_is_not_enough(self, where: str, shown: str) -> None:
        driver = meet("a", "b")
        {
            "active": lambda: None,
            "blip": lambda: driver.disconnect("a"),
            "gathering": lambda: driver.fail("b"),
            "suspended": lambda: driver.lose_ledger(),
            "taken over": lambda: driver.fail_over(),
        }[where]()
        driver.take()
        before = driver.run.freeze()

        driver.attach("a", secret=shown)
        [(_, effect)] = driver.take()
        assert isinstance(effect, do.Refuse)
        assert effect.refusal.code is RefusalCode.NAME_TAKEN
        assert "did not show its secret" in effect.refusal.message
        # The end of the other connection does not matter either.
        driver.disconnect("a")
        assert driver.run.freeze() == before

        driver.attach("a")
        assert driver.is_connected("a")
        assert driver.run.number == 1

    def test_a_node_of_an_earlier_release_has_no_secret_and_resumes(self) -> None:
        driver = Driver(max=2)
        driver.attach("a", secret="")
        driver.attach("b")
        driver.ready("a", "b")
        for again in (driver.disconnect, driver.fail_over):
            again(*("a",) if again == driver.disconnect else ())
            driver.attach("a", secret="")
            assert driver.is_connected("a")
        assert driver.names == ["a", "b"]

    def test_the_digest_of_a_round_has_no_secret(self) -> None:
        """R2: the digest is the same with and without secrets."""
        digests = []
        for secret in ("", "s"):
            driver = Driver(max=2)
            driver.attach("a", "b", secret=secret)
            driver.ready("a", "b")
            assert driver.run.round is not None
            digests.append(driver.run.round.head.digest)
        assert digests[0] == digests[1]


class TestStandby:
    def test_a_node_silent_while_the_round_formed_gets_it_when_heard(self) -> None:
        driver = Driver(min=2, max=2, manual_commit=True)
        driver.join("a", "b", "c")
        driver.silent("c")
        driver.commit()
        assert driver.phase is Phase.ACTIVE
        assert "Notify" not in kinds(driver)
        driver.heard("c")
        assert kinds(driver) == ["Notify"]


class TestTheEndThatANodeReports:
    def test_a_report_about_a_round_formed_here_changes_nothing(self) -> None:
        """Only of a round that was taken over: else any member could charge the run's budget."""
        driver = meet("a", "b", restarts=1)
        blamed = Change(ChangeKind.WORKER_FAILED, 1, ("b",), charged=True, confirmed=True)
        bootstrap = Address("a.example", 29500)
        driver.step(on.NodeReady(node_id("a"), 1, bootstrap, 1, blamed))
        (change,) = [each.change for _, each in driver.effects if isinstance(each, do.Break)]
        assert change.kind is ChangeKind.READY_AGAIN
        assert driver.run.restart_count == 0


class TestTwoNodesOfOneName:
    def test_an_older_node_that_resumes_has_answered(self) -> None:
        driver = meet("a", "b")
        driver.silent("a")
        driver.attach("a'")
        driver.attach("a")
        driver.advance(2.0)
        assert driver.is_connected("a")
        assert "Refuse" in kinds(driver)

    def test_any_message_of_the_older_node_is_an_answer(self) -> None:
        driver = meet("a", "b")
        driver.attach("a'")
        driver.done("a")
        driver.advance(2.0)
        assert driver.run.roster.living(node_id("a"))

    def test_the_newcomer_gets_the_name_if_the_older_node_leaves(self) -> None:
        driver = meet("a", "b")
        driver.attach("a'")
        driver.leave("a")
        assert driver.is_connected("a'")

    def test_the_newcomer_learns_that_the_run_is_closed(self) -> None:
        driver = meet("a", "b")
        driver.attach("a'")
        driver.close()
        assert kinds(driver)[-2:] == ["Announce", "Refuse"]

    def test_a_newcomer_that_reconnects_does_not_ask_again(self) -> None:
        driver = meet("a", "b")
        for _ in range(3):
            driver.attach("a'")
            driver.advance(0.4)
        assert kinds(driver).count("ProbeNode") == 1
        assert driver.is_connected("a'")

    def test_a_newcomer_that_goes_while_suspended_is_not_admitted(self) -> None:
        driver = meet("a", "b")
        driver.lose_ledger()
        driver.attach("a'")
        driver.disconnect("a'")
        driver.restore_ledger()
        driver.advance(5.0)
        assert driver.is_connected("a")

    @pytest.mark.parametrize("suspended", ["never", "while it goes"])
    @pytest.mark.parametrize("goes", [Driver.disconnect, Driver.leave])
    def test_a_newcomer_that_goes_before_the_answer_takes_no_name(
        self, goes: Callable[[Driver, str], None], suspended: str
    ) -> None:
        driver = meet("a", "b")
        driver.attach("a'")
        if suspended == "while it goes":
            driver.lose_ledger()
        goes(driver, "a'")
        if suspended == "while it goes":
            driver.restore_ledger()
        driver.advance(
            5.0
        )  # The older one does not answer, and no newcomer asks for its name any more.
        assert driver.is_connected("a")
        assert driver.run.phase is Phase.ACTIVE
        driver.take()
        driver.attach("a''")
        assert kinds(driver)[0] == "ProbeNode"

    def test_the_end_of_a_newcomers_former_connection_ends_no_wait(self) -> None:
        driver = meet("a", "b")
        driver.attach("a'")
        former = driver._links["a'"]
        driver.attach("a'")
        driver.step(on.ConnectionLost(node_id("a'"), former))
        driver.advance(1.0)
        assert driver.is_connected("a'")

    def test_another_node_that_connects_as_the_newcomer_is_refused(self) -> None:
        driver = meet("a", "b")
        driver.attach("a'")
        driver.take()
        driver.attach("a'", secret="guessed")
        assert kinds(driver) == ["Refuse"]
        driver.advance(1.0)
        assert driver.is_connected("a'")

    def test_another_node_does_not_get_the_newcomers_name_while_suspended(self) -> None:
        driver = meet("a", "b")
        driver.lose_ledger()
        driver.attach("a'")
        driver.attach("a'", secret="guessed")
        assert kinds(driver) == ["Refuse"]
        [kept] = driver.run._suspended_events
        assert isinstance(kept, on.NodeAttached)
        assert kept.secret_hash == secret_hash(b"a'")

    def test_a_broken_connection_frees_no_name_before_its_grace_is_over(self) -> None:
        """A living node loses its connection. A newcomer of its name waits, and is refused."""
        driver = meet("a", "b", grace=5.0)
        driver.disconnect("a")
        driver.advance(2.0)
        driver.attach("a'")
        driver.advance(2.9)
        assert not driver.is_connected("a'")
        assert driver.run.phase is Phase.ACTIVE
        driver.take()
        driver.attach("a")
        assert kinds(driver) == ["Refuse", "Welcome"]
        driver.advance(9.0)
        assert driver.is_connected("a")
        assert driver.run.number == 1

    def test_the_newcomer_gets_the_name_when_the_grace_is_over(self) -> None:
        driver = meet("a", "b", grace=5.0)
        driver.disconnect("a")
        driver.advance(2.0)
        driver.attach("a'")
        driver.advance(3.0)
        assert driver.is_connected("a'")

    def test_a_node_whose_connection_breaks_while_it_is_asked_has_its_grace(self) -> None:
        driver = meet("a", "b", grace=5.0)
        driver.attach("a'")
        driver.advance(0.9)
        driver.disconnect("a")
        driver.advance(4.9)
        assert not driver.is_connected("a'")
        driver.attach("a")
        assert driver.is_connected("a")
        assert driver.run.number == 1

    @pytest.mark.parametrize("is_first", [True, False], ids=["dies first", "newcomer first"])
    def test_a_restarted_node_does_not_wait_for_its_dead_predecessor(self, is_first: bool) -> None:
        driver = meet("a", "b", grace=5.0)
        if is_first:
            driver.die("a")
        driver.attach("a'")
        if not is_first:
            driver.die("a")
        driver.advance(0.1)
        assert driver.is_connected("a'")

    def test_the_mass_guard_keeps_no_name_beyond_the_grace(self) -> None:
        names = [f"n{i}" for i in range(10)]
        driver = meet(*names, grace=5.0)
        driver.disconnect(*names)
        driver.advance(1.0)
        driver.attach("n0'")
        driver.advance(3.9)
        assert not driver.is_connected("n0'")
        driver.advance(0.1)
        assert driver.is_connected("n0'")
        assert not driver.is_connected("n1")
        assert driver.run.roster.living(node_id("n1"))

    @pytest.mark.parametrize("comes", ["before", "during"])
    def test_an_outage_of_the_ledger_takes_no_time_from_the_older_node(self, comes: str) -> None:
        driver = meet("a", "b", grace=5.0)
        driver.disconnect("a")
        driver.advance(1.0)
        if comes == "before":
            driver.attach("a'")
        driver.lose_ledger()
        if comes == "during":
            driver.attach("a'")
        driver.advance(60.0)
        driver.restore_ledger()
        driver.advance(4.9)  # Its grace, counted again: it may have tried in vain meanwhile.
        assert not driver.is_connected("a'")
        driver.attach("a")
        assert driver.is_connected("a")
        assert driver.run.number == 1

    @pytest.mark.parametrize("is_done", [True, False], ids=["done", "active"])
    def test_a_takeover_frees_no_name_before_its_attach_grace_is_over(self, is_done: bool) -> None:
        driver = meet("a", "b")
        if is_done:
            driver.done("a")
        driver.fail_over(attach_grace_s=6.0)
        driver.attach("b")
        driver.attach("a'")
        driver.advance(5.9)
        assert not driver.is_connected("a'")
        driver.advance(0.2)
        assert driver.is_connected("a'")

    def test_the_end_of_the_attach_grace_does_not_end_the_grace_of_a_connection(self) -> None:
        driver = meet("a", "b", "c", grace=5.0)
        driver.fail_over(attach_grace_s=6.0)
        driver.attach("a", "b")
        driver.advance(5.0)
        driver.disconnect("a")
        driver.attach("a'")
        driver.advance(2.0)
        assert driver.run.roster.living(node_id("a"))
        assert not driver.is_connected("a'")

    def test_another_incarnation_is_no_survivor_of_the_round_being_written(self) -> None:
        driver = Driver(max=3, manual_commit=True)
        driver.join("a", "b", "c")
        driver.die("a")
        driver.advance(0.1)
        driver.join("a'")
        driver.commit()
        survivors = [member.name for member in driver.run.roster if member.survivor]
        assert survivors == ["b", "c"]


class TestReady:
    def test_r4_a_repeat_does_not_count_for_the_next_round_either(self) -> None:
        driver = meet("a", "b")
        driver.ready("a")
        driver.ready("b")
        driver.advance(0.05)
        assert driver.run.number == 2
        driver.ready("a")
        driver.ready("b", leaving=1)
        driver.advance(60)
        assert driver.run.number == 2
        assert driver.phase is Phase.GATHERING

    def test_a_member_may_ask_again_while_the_close_is_written(self) -> None:
        driver = meet("a", "b")
        driver.manual_commit = True
        driver.close()
        driver.ready("a")
        driver.depart("b")
        driver.commit()
        assert driver.phase is Phase.CLOSED

    def test_hung_survivors_leave_the_minimum_a_last_call(self) -> None:
        driver = meet("a", "b", "c", "d")
        driver.leave("a")
        driver.join("x", "y")
        driver.advance(30.0)
        assert driver.names == ["x", "y"]

    def test_later_requests_come_behind_earlier_ones(self) -> None:
        driver = meet("a", "b")
        driver.attach("c", "d")
        driver.ready("d", "c")
        driver.leave("b")
        driver.ready("a")
        assert driver.names == ["a", "d"]


class TestDone:
    def test_a_repeated_done_counts_once(self) -> None:
        driver = meet("a", "b", "c")
        driver.done("a")
        driver.done("a")
        assert driver.phase is Phase.ACTIVE
        driver.leave("b")
        assert driver.run.close is not None
        assert driver.run.close.reason == "1 of at least 2 nodes remain, and 1 finished"

    def test_only_a_member_of_a_round_can_be_done(self) -> None:
        driver = meet("a", "b", max=3)
        driver.attach("x")
        driver.step(on.NodeDone(node_id("x"), 1))
        member = driver.run.roster.get("x")
        assert member is not None
        assert member.state is MemberState.IDLE

    def test_a_done_member_whose_connection_stays_closed_has_left(self) -> None:
        driver = meet("a", "b", "c")
        driver.done("a")
        driver.disconnect("a")
        driver.advance(1.0)
        assert driver.run.roster.get("a") is None
        assert driver.phase is Phase.ACTIVE

    def test_a_run_whose_members_finish_while_newcomers_come_has_succeeded(self) -> None:
        driver = meet("a", "b", max=3)
        driver.join("x")
        driver.advance(1.0)
        assert driver.phase is Phase.GATHERING
        driver.done("a", "b")
        assert driver.run.close is not None
        assert driver.run.close.outcome is Outcome.SUCCEEDED

    def test_the_end_for_too_few_nodes_waits_for_the_cause(self) -> None:
        driver = meet("a", "b", min=2)
        driver.done("a")
        driver.fail("b")
        driver.advance(0.05)
        assert driver.run.close is not None
        assert driver.run.close.outcome is Outcome.FAILED
        assert driver.run.close.cause is not None
        assert driver.run.close.cause.confirmed

    def test_the_end_for_too_few_nodes_names_the_loss_behind_a_failure(self) -> None:
        driver = meet("a", "b", "c", min=3)
        driver.done("a")
        driver.disconnect("c")
        driver.fail("b", kind="communication")
        driver.advance(2.0)
        assert driver.run.close is not None
        assert driver.run.close.outcome is Outcome.NOT_ENOUGH
        assert driver.run.close.cause is not None
        assert driver.run.close.cause.kind is ChangeKind.NODE_LOST
        assert driver.run.close.cause.nodes == ("c",)


class TestSuspended:
    def test_kept_events_count_at_once(self) -> None:
        driver = Driver(max=4)
        driver.attach("a", "b", "c", "d")
        driver.ready("a", "b")
        driver.lose_ledger()
        driver.advance(30.0)
        driver.ready("c")
        driver.ready("d")
        driver.restore_ledger()
        assert driver.names == ["a", "b", "c", "d"]

    def test_the_mass_guard_holds_for_the_rest_of_its_time(self) -> None:
        driver = meet("a", "b", "c", "d")
        driver.disconnect("a", "b", "c")
        driver.lose_ledger()
        driver.advance(500.0)
        driver.restore_ledger()
        driver.advance(119.0)
        assert len(driver.run.roster) == 4
        driver.advance(2.0)
        assert len(driver.run.roster) == 1

    def test_an_unanswered_probe_is_repeated(self) -> None:
        driver = meet("a", "b", "c", restarts=None)
        driver.silent("c")
        driver.fail("a")
        driver.lose_ledger()
        driver.advance(9.0)
        driver.restore_ledger()
        assert len(driver.run.roster) == 3
        driver.advance(1.0)
        assert len(driver.run.roster) == 2

    def test_r5_a_deposed_coordinator_stays_deposed(self) -> None:
        driver = Driver(manual_commit=True, max=2)
        driver.join("a", "b")
        driver.refuse_commit()
        driver.take()
        driver.restore_ledger()
        assert driver.phase is Phase.SUSPENDED
        assert driver.take() == []


class TestLosses:
    def test_a_second_report_of_a_closed_connection_gives_no_second_grace(self) -> None:
        driver = meet("a", "b", "c")
        driver.disconnect("a")
        driver.advance(0.6)
        driver.disconnect("a")
        driver.advance(0.4)
        assert driver.run.roster.get("a") is None

    def test_any_message_of_a_suspect_ends_the_suspicion(self) -> None:
        driver = meet("a", "b", "c")
        driver.silent("a")
        driver.answer("a")
        driver.advance(60.0)
        assert driver.is_connected("a")

    def test_trouble_is_dated_from_when_the_node_fell_silent(self) -> None:
        driver = meet("a", "b", "c")
        driver.silent("a")
        driver.advance(3.0)
        driver.disconnect("a")
        driver.advance(1.0)
        broken = next(effect for _, effect in driver.take() if isinstance(effect, do.Break))
        assert broken.change.kind is ChangeKind.NODE_LOST
        assert broken.change.since_s == 9.0

    def test_a_passive_node_that_resumes_gets_the_reason_of_its_rounds_end(self) -> None:
        driver = meet("a", "b", "c", mass_min=9, grace=100.0)
        driver.disconnect("c")
        driver.ready("a", "b")
        driver.advance(30.0)
        assert driver.names == ["a", "b"]
        driver.take()
        driver.attach("c")
        welcome = next(effect for _, effect in driver.take() if isinstance(effect, do.Welcome))
        assert welcome.standing.change is not None
        assert welcome.standing.change.kind is ChangeKind.READY_AGAIN
        member = driver.run.roster.get("c")
        assert member is not None
        assert member.reachability is Reachability.CONNECTED

    def test_a_done_node_that_resumes_later_gets_its_own_round(self) -> None:
        driver = meet("a", "b", "c")
        driver.done("c")
        driver.ready("a", "b")
        driver.advance(1.0)
        assert driver.run.number == 2
        driver.take()
        driver.attach("c")
        welcome = next(effect for _, effect in driver.take() if isinstance(effect, do.Welcome))
        assert welcome.standing.round == 1


class TestGathering:
    def test_each_gathering_has_its_own_last_call(self) -> None:
        driver = Driver()
        driver.attach("watcher")
        driver.join("a", "b")
        driver.leave("b")
        driver.advance(30.0)
        driver.leave("a")
        driver.join("c", "d")
        assert driver.phase is Phase.GATHERING
        driver.advance(30.0)
        assert driver.names == ["c", "d"]

    def test_the_close_names_the_last_round(self) -> None:
        driver = Driver(max=2, manual_commit=True)
        driver.join("a", "b")
        driver.close()
        driver.take()
        driver.commit()
        assert "Publish" not in kinds(driver)
        driver.commit()
        assert driver.run.close is not None
        assert driver.run.close.round == 1


class TestDepartures:
    def test_short_stays_double_the_delay_and_a_long_one_resets_it(self) -> None:
        departures = DepartureHistory()
        driver = meet("a", "b")
        driver.leave("a")
        assert driver.run.case is not None
        change = driver.run.case.change
        delays = []
        for _ in range(8):
            departures.remember("a", change, stayed_s=1.0, is_done=False)
            delays.append(departures.delay_s("a", 1.0, 1.0))
        assert delays == [2, 4, 8, 16, 32, 64, 64, 64]
        departures.remember("a", change, stayed_s=60.0, is_done=False)
        assert departures.delay_s("a", 1.0, 1.0) == 1.0

    def test_the_number_of_remembered_names_is_bounded(self) -> None:
        departures = DepartureHistory()
        driver = meet("a", "b")
        driver.leave("a")
        assert driver.run.case is not None
        for number in range(REMEMBERED_MAX + 1):
            change = driver.run.case.change
            departures.remember(f"n{number}", change, stayed_s=0.0, is_done=False)
        assert departures.change("n0") is None
        assert departures.change("n1") is not None


def test_the_reason_of_an_outage_has_its_duration() -> None:
    """By the coordinator's own clock (R9), and longer as time passes."""
    driver = meet("a", "b")
    driver.step(on.LedgerLost("no answer", 2.5))
    driver.advance(10.0)
    waiting = driver.run.waiting(driver.now_s)
    assert waiting is not None
    assert waiting.ledger_away_s == 12.5
    assert str(waiting) == "suspended: ledger unreachable for 12.5 s: no answer"
    driver.step(on.CommitRefused("term 2 has begun"))
    waiting = driver.run.waiting(driver.now_s)
    assert waiting is not None
    assert waiting.ledger_away_s is None


def test_waiting_counts_from_the_arrival_of_the_first_node() -> None:
    """Not from the beginning of the coordinator's clock."""
    run = Membership("run")
    settings = RunSettings(min_nodes=2, max_nodes=2)
    run.step(on.NodeAttached(NodeInfo("a", 1, "h"), settings, 1), 1_000.0)
    waiting = run.waiting(1_003.0)
    assert waiting is not None
    assert waiting.since_s == 3.0
