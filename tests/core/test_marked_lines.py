"""What marked lines promise: cases in which a small change of such a line would be wrong.

`make mutants` changes the lines that keep a rule. Each test here fails for changes that no other
test noticed.
"""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import effects as do
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.blame import Blame
from rallypoint.core.committing import Committing, record_of
from rallypoint.core.election.lease import Standstill
from rallypoint.core.finished import Finished
from rallypoint.core.formation import Counts, Decision, decide
from rallypoint.core.marking import Marking, ranks_in
from rallypoint.core.membership import Membership
from rallypoint.core.orders import KeptOrders
from rallypoint.core.roster import Member, Roster
from rallypoint.core.timers import Timers
from rallypoint.core.values import (
    Address,
    ChangeKind,
    MemberState,
    NodeInfo,
    Phase,
    Reachability,
    RoundRecord,
    RunSettings,
    Stamp,
)
from tests.core.claimant import (
    CLOSE,
    TIMING,
    Claimant,
    found,
    good,
    holder,
    keep,
    moving,
    register,
    revoked,
    run_swap_of,
    serving,
)
from tests.core.driver import Driver, node_id
from tests.core.test_floor import TestFloor as Floors

# -- the election --------------------------------------------------------------------------------


def test_r5_only_a_process_that_serves_this_run_may_take_it() -> None:
    other = msgspec.structs.replace(serving(), only_run="another")
    own = msgspec.structs.replace(serving(), only_run="run")
    leases = (serving(), own, other, moving(), revoked("other"))
    assert [e.may_take(lease, "run") for lease in leases] == [True, True, False, False, False]


def test_r5_while_the_owner_serves_its_term_is_not_over() -> None:
    discovery = e.Discovery("a", TIMING, candidates=2)
    discovery.search(0.0, 0.0)
    (asked,) = discovery.tick(0.0, 0.5)
    assert isinstance(asked, e.ReadRun)
    discovery.run_read(asked, found(register(term=4)), 0.0, 0.5)
    assert discovery.floor == Stamp("ledger", 4, 0)


def test_r5_a_renewal_proves_nothing_about_the_moment_at_which_it_was_sent() -> None:
    assert not holder().was_renewed_since(-1.0)
    lease = good(1.0)
    assert lease.was_renewed_since(0.9)
    assert not lease.was_renewed_since(1.0)


@pytest.mark.parametrize(
    ("one", "is_older"),
    [
        (Stamp("ledger", 3, 5), False),
        (Stamp("ledger", 3, 4), True),
        (Stamp("ledger", 2, 9), True),
        (Stamp("ledger", 4, 0), False),
        (Stamp("another", 1, 1), False),
    ],
)
def test_r5_terms_and_rounds_are_compared_within_one_ledger(one: Stamp, is_older: bool) -> None:
    assert one.is_older_than(Stamp("ledger", 3, 5)) is is_older


@pytest.mark.parametrize(
    ("known", "seen", "since_s"),
    [
        (e.Seen("a", 1, 3.0), e.Seen("a", 1, 10.0), 3.0),
        (e.Seen("a", 1, 10.0), e.Seen("a", 1, 3.0), 3.0),
        (e.Seen("a", 1, 5.0), e.Seen("a", 2, 9.0), 9.0),
        (e.Seen("a", 2, 9.0), e.Seen("a", 1, 5.0), 9.0),
        (e.Seen("b", 1, 9.0), e.Seen("a", 2, 5.0), 5.0),
    ],
)
def test_r9_the_better_of_two_looks_at_a_lease_counts(
    known: e.Seen, seen: e.Seen, since_s: float
) -> None:
    still = Standstill()
    still.seen(known.process, known.version, known.since_s)
    still.take_over(seen)
    version = max(known.version, seen.version)
    assert still.seen("a", version, 20.0).since_s == since_s


def test_r9_a_claim_that_was_dropped_watches_the_owner_anew() -> None:
    me = Claimant()
    me.judges(serving(), 0.0)
    me.claim.deposed(0.1)
    for now_s in (1.0, 2.0, 3.0, 4.0):
        keep(me.lease, now_s)
    (elsewhere,) = me.judges(serving(), 4.0)
    assert isinstance(elsewhere, e.OwnedElsewhere)


@pytest.mark.parametrize("floor", [e.Floor(e.FORMAT, 0, 5), e.Floor(e.FORMAT, 1, 0)])
def test_r13_a_run_that_began_beside_the_floor_is_lifted_above_it(floor: e.Floor) -> None:
    """By its term alone, or by its number alone, its token could have been used before."""
    floors = Floors()
    claim, swap = floors.begins(None)
    checked = floors.floor(claim.run_swapped(swap, e.Swapped(8), 0.3))
    lift = e.decode_run(run_swap_of(claim.floor_read(checked, floors.there(floor), 0.4)).value)
    assert lift.term > floor.term
    assert lift.number >= floor.number


def test_r13_a_closed_run_is_sealed_without_the_floor() -> None:
    me = Claimant()
    me.claim.answers_floor = False
    (asked,) = me.sees(register("", 3, close=CLOSE), 0.1)
    assert isinstance(asked, e.SwapRun)


def test_r5_a_resignation_waits_for_a_good_lease() -> None:
    me = Claimant()
    me.wins()
    assert me.claim.resign(2.6) == []
    keep(me.lease, 2.7)
    run_swap_of(me.claim.tick(3.2))


# -- a round that is formed, written and begun ---------------------------------------------------


def test_r7_the_last_call_begins_while_members_have_yet_to_attach() -> None:
    counts = Counts(minimum=1, maximum=3, absent=1, newcomers=1)
    assert decide(counts) is Decision.LAST_CALL


def member(roster: Roster, name: str, workers: int = 1) -> Member:
    made = roster.add(NodeInfo(name, 1, name, (), workers), 1, 0.0)
    made.bootstrap = Address(name, 1)
    return made


def record(number: int, *members: Member) -> RoundRecord:
    return record_of(
        members,
        number=number,
        term=1,
        rank_policy="stable",
        previous=None,
        restart_count=0,
    )


def test_r2_the_loss_of_a_member_concerns_the_record_that_is_written_now() -> None:
    roster = Roster()
    a, b = member(roster, "a"), member(roster, "b")
    committing = Committing()
    committing.begin(record(1, a))
    committing.member_went(b, ChangeKind.NODE_LOST, "")
    assert committing.interrupted is None
    committing.finish()
    committing.begin(record(2, b))
    committing.member_went(b, ChangeKind.NODE_LOST, "")
    assert committing.interrupted is not None


def test_r1_a_run_that_is_taken_over_before_its_first_round_begins_above_its_floor() -> None:
    run = Membership("run")
    run.restore(e.RunState(2, RunSettings(), floor=40), attach_grace_s=1.0, now_s=0.0)
    assert run.number == 40


# -- closed runs ---------------------------------------------------------------------------------

AGAIN = "under this one"


def closed(
    *, has_round: bool = False, has_successor: bool = False, by_operator: bool = False
) -> Driver:
    driver = Driver(min=1, max=1, has_successor=has_successor)
    driver.attach("a")
    if has_round:
        driver.ready("a")
    driver.close(by_operator=by_operator)
    assert driver.phase is Phase.CLOSED
    return driver


@pytest.mark.parametrize(
    ("has_round", "has_successor", "may"),
    [(False, False, True), (True, False, False), (False, True, False), (True, True, False)],
)
def test_r6_only_a_run_in_memory_that_never_had_a_round_begins_again(
    has_round: bool, has_successor: bool, may: bool
) -> None:
    driver = closed(has_round=has_round, has_successor=has_successor)
    others = msgspec.structs.replace(driver.settings, max_nodes=9)
    assert driver.run.may_begin_again(others, driver.now_s) is may
    assert driver.run.may_begin_again(driver.settings, driver.now_s + 60.0) is may
    assert not driver.run.may_begin_again(driver.settings, driver.now_s)
    driver.take()
    driver.attach("b")
    (refused,) = (each for _, each in driver.take() if isinstance(each, do.Refuse))
    assert (AGAIN in refused.refusal.hint) is may


def test_r6_a_run_that_an_operator_closed_is_not_begun_again() -> None:
    driver = closed(by_operator=True)
    assert not driver.run.may_begin_again(driver.settings, driver.now_s + 60.0)


def test_r6_an_open_run_is_not_begun_again() -> None:
    driver = Driver(has_successor=False)
    driver.attach("a")
    others = msgspec.structs.replace(driver.settings, max_nodes=9)
    assert not driver.run.may_begin_again(others, 100.0)


def test_r6_a_closed_run_that_was_taken_over_without_settings_stays_closed() -> None:
    run = Membership("run", has_successor=False)
    run.restore(e.RunState(2, close=CLOSE), attach_grace_s=1.0, now_s=0.0)
    assert not run.may_begin_again(RunSettings(), 100.0)


# -- requests of nodes ---------------------------------------------------------------------------


def met(*names: str, **settings: object) -> Driver:
    driver = Driver(min=len(names), max=len(names) + 1, scale_up=0.0, **settings)  # type: ignore[arg-type]
    driver.join(*names)
    driver.advance(31.0)
    assert driver.phase is Phase.ACTIVE
    return driver


def test_r4_only_members_of_the_round_may_read_its_table() -> None:
    driver = Driver()
    driver.attach("a")
    assert not driver.run.is_of_last_round(node_id("a"))
    driver = met("a", "b")
    driver.attach("c")
    asked = ("a", "b", "c", "d", "a'")
    assert [driver.run.is_of_last_round(node_id(each)) for each in asked] == [
        *(True, True),
        *(False, False, False),
    ]


def state_of(driver: Driver, name: str) -> MemberState:
    found_there = driver.run.roster.get(name)
    assert found_there is not None
    return found_there.state


def test_r4_an_old_request_of_a_survivor_is_ignored() -> None:
    driver = met("a", "b")
    driver.ready("a", "b")
    driver.advance(1.0)
    assert driver.run.number == 2
    driver.fail("b")
    driver.ready("a", leaving=1)
    assert state_of(driver, "a") is MemberState.ACTIVE
    driver.ready("a", leaving=2)
    assert state_of(driver, "a") is MemberState.READY


def test_r4_a_request_to_leave_another_round_ends_none() -> None:
    driver = met("a", "b")
    driver.ready("a", leaving=5)
    assert driver.phase is Phase.ACTIVE


def test_r4_a_newcomer_may_name_a_round_that_it_missed() -> None:
    driver = Driver()
    driver.attach("a")
    driver.ready("a", leaving=3)
    assert state_of(driver, "a") is MemberState.READY


def test_r4_a_failure_of_an_earlier_round_ends_nothing() -> None:
    driver = met("a", "b")
    driver.ready("a", "b")
    driver.advance(1.0)
    assert driver.run.number == 2
    driver._rounds["a"] = 1
    driver.fail("a")
    assert driver.phase is Phase.ACTIVE


def test_r4_a_failure_of_a_stranger_ends_nothing() -> None:
    driver = met("a", "b")
    driver._rounds["z"] = 1
    driver.fail("z")
    assert driver.phase is Phase.ACTIVE


def test_r11_a_repeated_request_does_not_move_the_node_in_the_queue() -> None:
    driver = Driver(min=3, max=3)
    driver.join("a", "b")
    driver.ready("a")
    assert [each.name for each in driver.run.roster.newcomers()] == ["a", "b"]


def test_r11_only_a_member_of_a_round_can_be_done() -> None:
    driver = Driver()
    driver.attach("a")
    driver.done("a")
    assert state_of(driver, "a") is MemberState.IDLE


@pytest.mark.parametrize("state", [MemberState.READY, MemberState.DEPARTING])
def test_r11_a_late_report_that_a_node_is_done_changes_nothing(state: MemberState) -> None:
    driver = met("a", "b")
    if state is MemberState.READY:
        driver.ready("a")
    else:
        driver.depart("a")
    driver.done("a")
    assert state_of(driver, "a") is state


def test_r8_a_full_run_takes_its_members_back() -> None:
    run = Membership("run", members_max=1)
    a = NodeInfo("a", 1, "a", (), 1)
    run.step(on.NodeAttached(a, RunSettings(), 1, b"s"), 0.0)
    run.step(on.ConnectionLost(node_id("a"), 1), 1.0)
    (welcome, *_) = run.step(on.NodeAttached(a, RunSettings(), 2, b"s"), 1.5)
    assert isinstance(welcome, do.Welcome)
    assert welcome.resumed


def test_r5_an_end_is_not_adopted_while_the_close_is_written() -> None:
    driver = met("a", "b")
    driver.fail("b")
    told = driver._told
    driver = met("a", "b")
    driver.fail_over()
    driver.attach("a")
    driver.manual_commit = True
    driver.close()
    driver.step(on.NodeReady(node_id("a"), 1, Address("a", 1), 1, told))
    assert driver.phase is Phase.COMMITTING


def test_r8_a_member_that_is_disconnected_does_not_fall_silent() -> None:
    driver = met("a", "b")
    driver.disconnect("a")
    driver.silent("a")
    gone = driver.run.roster.get("a")
    assert gone is not None
    assert gone.reachability is Reachability.DISCONNECTED


def test_r8_a_name_is_free_when_its_member_has_not_attached_though_many_are_missing() -> None:
    """The mass guard protects members from a loss, but no name beyond the attach grace."""
    driver = met("a", "b", "c", "d", "e", "f")
    driver.fail_over()
    driver.attach("a'")
    driver.advance(7.0)
    assert driver.is_connected("a'")


def test_r7_a_node_that_attaches_again_has_no_workers_to_stop() -> None:
    driver = Driver()
    driver.attach("a")
    driver.disconnect("a")
    driver.attach("a")
    waiting = driver.run.waiting(driver.now_s)
    assert waiting is not None
    assert (waiting.stop_left_s, waiting.stopping_count) == (0.0, 0)
    assert driver.run._gathering.stopping.next_end_s() is None


# -- marks ---------------------------------------------------------------------------------------


def marking(size: int) -> tuple[Marking, list[Member]]:
    roster = Roster()
    members = [member(roster, f"n{index:02}") for index in range(size)]
    made = Marking(Timers())
    made.begin(record(1, *members), Finished(), None, (), 0.0)
    return made, members


def written(marks: Marking, now_s: float) -> do.WriteMarks:
    (write,) = marks.write(0.0, 0, now_s, KeptOrders(), Blame)
    assert isinstance(write, do.WriteMarks)
    return write


def test_r10_each_member_is_marked_once_and_by_its_own_rank() -> None:
    marks, members = marking(20)
    for rank, each in enumerate(members):
        now_s = float(rank)
        marks.gone(each.id, now_s)
        write = written(marks, now_s)
        assert ranks_in(write.marks.gone) == frozenset(range(rank + 1))
        assert marks.written(write.serial)
        marks.gone(each.id, now_s)
        assert marks.due_s is None


def test_r1_marks_are_written_one_write_at_a_time() -> None:
    marks, (a, b) = marking(2)
    marks.gone(a.id, 0.0)
    first = written(marks, 0.0)
    marks.gone(b.id, 0.0)
    assert marks.write(0.0, 0, 1.0, KeptOrders(), Blame) == []
    assert marks.written(first.serial)
    assert not marks.written(first.serial)
    assert ranks_in(written(marks, 2.0).marks.gone) == {0, 1}


def test_r10_each_goodbye_is_answered_once_and_by_the_write_that_has_its_mark() -> None:
    marks, (a, b) = marking(2)
    marks.gone(a.id, 0.0)
    assert marks.farewell(a.id, 1, "a")
    first = written(marks, 0.0)
    marks.gone(b.id, 0.0)
    assert marks.farewell(b.id, 2, "b")
    assert marks.written(first.serial)
    assert marks.answered_farewells() == [do.Dismiss(1, "a")]
    assert marks.answered_farewells() == []
    second = written(marks, 1.0)
    assert marks.written(second.serial)
    assert marks.answered_farewells() == [do.Dismiss(2, "b")]
    assert marks.answered_farewells() == []
