"""Leases, claims, resignation and discovery, one idea in each test."""

from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.core import election as e
from rallypoint.core.values import (
    Address,
    CloseRecord,
    NodeId,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Stamp,
)

TIMING = e.Timing(ttl_s=3.0, margin_s=0.5, renew_s=1.0, retry_s=0.5)
HERE = (Address("me", 1),)
THERE = (Address("other", 2),)
CLOSE = CloseRecord(Outcome.SUCCEEDED, "trained")


def holder(process: str = "me", node: NodeId | None = None) -> e.LeaseHolder:
    return e.LeaseHolder(process, (Address(process, 1),), TIMING, node=node)


def good(now_s: float = 0.0, process: str = "me", node: NodeId | None = None) -> e.LeaseHolder:
    """A lease that was taken now."""
    taken = holder(process, node)
    taken.swapped(swap_of(taken.tick(now_s)), e.Swapped(1), now_s)
    assert taken.may_decide(now_s)
    return taken


def keep(lease: e.LeaseHolder, now_s: float) -> None:
    """The lease is renewed and lets its process decide at this time."""
    version = lease.beat + 1
    lease.swapped(swap_of(lease.tick(now_s)), e.Swapped(version), now_s)
    assert lease.may_decide(now_s)


def swap_of(actions: list[e.Action]) -> e.SwapLease:
    (swap,) = actions
    assert isinstance(swap, e.SwapLease)
    return swap


def run_swap_of(actions: list[e.Action]) -> e.SwapRun:
    (swap,) = actions
    assert isinstance(swap, e.SwapRun)
    return swap


def lease_in(swap: e.SwapLease) -> e.Lease:
    return e.decode_lease(swap.value)


def revoked(process: str = "me", beat: int = 1, by: str = "other") -> e.Lease:
    return e.Lease(e.FORMAT, process, beat, e.LeaseState.REVOKED, (), by, ttl_s=TIMING.ttl_s)


def serving(process: str = "other", beat: int = 1) -> e.Lease:
    return e.Lease(e.FORMAT, process, beat, addresses=(Address(process, 2),), ttl_s=TIMING.ttl_s)


def moving(process: str = "other", beat: int = 2) -> e.Lease:
    return e.Lease(e.FORMAT, process, beat, e.LeaseState.MOVING, (Address(process, 2),))


def register(owner: str = "other", term: int = 4, **changes: Any) -> e.RunRegister:
    return e.RunRegister(e.FORMAT, "ledger", "run", term, owner, **changes)


def a_round(number: int, *names: str, term: int = 4) -> RoundHead:
    return RoundHead(number, term, len(names), len(names), Address("host", 1), "digest")


def a_table(*names: str) -> e.Table:
    return e.Table(rows=tuple(RoundMember(name, 1, "host", (), 1) for name in names))


def found(value: e.Lease | e.RunRegister, version: int = 7) -> e.Versioned:
    return e.Versioned(e.encode(value), version)


class TestTiming:
    def test_the_defaults_fit_together(self):
        assert e.Timing().renew_s < e.Timing().ttl_s - e.Timing().margin_s

    @pytest.mark.parametrize(
        "wrong",
        [
            {"renew_s": 2.5},
            {"renew_s": 0.0},
            {"margin_s": 0.0},
            {"margin_s": 2.0},
            {"ttl_s": 1.0},
            {"ttl_s": float("nan")},
            {"margin_s": float("nan")},
            {"retry_s": 0.0},
            {"retry_s": float("inf")},
        ],
    )
    def test_what_does_not_fit_is_refused(self, wrong: dict[str, float]):
        with pytest.raises(ValueError, match=r"must be (renewed|more than 0)"):
            msgspec.structs.replace(TIMING, **wrong)


class TestTakingAndRenewing:
    def test_a_lease_is_taken_where_there_is_none(self):
        swap = swap_of(holder().tick(10.0))
        assert swap.expected is None
        assert lease_in(swap) == e.Lease(e.FORMAT, "me", 1, addresses=HERE, ttl_s=TIMING.ttl_s)

    def test_nothing_may_be_decided_before_it_is_taken(self):
        lease = holder()
        lease.tick(0.0)
        assert not lease.may_decide(0.0)

    def test_it_is_renewed_a_renewal_after_the_last_one_was_sent(self):
        lease = good(0.0)
        assert lease.next_tick_s(0.5) == 1.0
        assert lease.tick(0.9) == []
        swap = swap_of(lease.tick(1.0))
        assert (swap.expected, lease_in(swap).beat) == (1, 2)

    def test_it_lets_decide_from_when_the_renewal_was_sent_not_answered(self):
        lease = holder()
        swap = swap_of(lease.tick(0.0))
        lease.swapped(swap, e.Swapped(1), 2.0)
        assert lease.may_decide(2.4)
        assert not lease.may_decide(2.5)

    def test_of_several_tries_the_first_one_counts(self):
        lease = holder()
        lease.tick(0.0)
        swap = swap_of(lease.tick(0.5))
        lease.swapped(swap, e.Swapped(1), 0.6)
        assert not lease.may_decide(2.5)

    def test_after_a_stall_it_renews_before_it_decides(self):
        lease = good(0.0)
        assert not lease.may_decide(20.0)
        swap = swap_of(lease.tick(20.0))
        assert not lease.may_decide(20.0)
        lease.swapped(swap, e.Swapped(2), 20.1)
        assert lease.may_decide(20.1)


class TestUnknownOutcomes:
    def test_the_same_bytes_are_tried_again_and_no_others(self):
        lease = good(0.0)
        first = swap_of(lease.tick(1.0))
        lease.swapped(first, e.Unknown("timeout"), 1.2)
        assert lease.tick(1.4) == []
        assert lease.tick(1.5) == [first]
        assert lease.tick(9.0) == [first]

    def test_own_bytes_in_a_conflict_are_a_success(self):
        lease = good(0.0)
        swap = swap_of(lease.tick(1.0))
        lease.swapped(swap, e.Conflict(e.Versioned(swap.value, 5)), 1.1)
        assert not lease.is_lost
        assert swap_of(lease.tick(2.0)).expected == 5

    def test_a_late_or_repeated_answer_changes_nothing(self):
        lease = good(0.0)
        old = swap_of(lease.tick(1.0))
        lease.swapped(old, e.Swapped(2), 1.0)
        out = swap_of(lease.tick(2.0))
        for late in (
            e.Swapped(9),
            e.Conflict(None),
            e.Conflict(found(revoked())),
            e.Unknown("late"),
        ):
            assert lease.swapped(old, late, 2.1) == []
        lease.swapped(out, e.Swapped(3), 2.2)
        assert swap_of(lease.tick(3.0)).expected == 3

    def test_a_renewal_that_is_known_too_late_lets_nobody_decide(self):
        lease = good(0.0)
        swap = swap_of(lease.tick(1.0))
        lease.swapped(swap, e.Swapped(2), 21.0)
        assert not lease.may_decide(21.0)


class TestLosing:
    def lose(self, current: e.Versioned | None) -> e.LeaseHolder:
        lease = good(0.0)
        lease.swapped(swap_of(lease.tick(1.0)), e.Conflict(current), 1.1)
        return lease

    def test_a_revoked_lease_is_lost_for_good(self):
        lease = self.lose(found(revoked()))
        assert lease.is_lost
        assert not lease.may_decide(1.1)
        assert lease.tick(100.0) == []
        assert lease.hand_over(100.0) == []

    def test_who_lost_it_has_nothing_more_to_do(self):
        assert self.lose(found(revoked())).next_tick_s(5.0) is None

    @pytest.mark.parametrize(
        ("current", "why"),
        [
            (found(revoked(by="other")), "its lease was revoked by other"),
            (found(revoked(by="")), "its lease was revoked by somebody"),
            (None, "its lease is gone"),
            (e.Versioned(b"x", 2), "its lease was overwritten: this is not a lease"),
            (found(serving("me")), "by another process with the name me"),
        ],
    )
    def test_it_says_why(self, current: e.Versioned | None, why: str):
        assert why in self.lose(current).lost_reason

    def test_a_name_that_was_used_before_is_lost_at_once(self):
        lease = holder()
        first = lease.tick(0.0)
        lease.swapped(swap_of(first), e.Conflict(found(serving("me", 40))), 0.1)
        assert lease.is_lost

    def test_late_answers_do_not_bring_it_back(self):
        lease = good(0.0)
        swap = swap_of(lease.tick(1.0))
        lease.swapped(swap, e.Conflict(found(revoked())), 1.1)
        lease.swapped(swap, e.Swapped(2), 1.2)
        assert lease.is_lost
        assert not lease.may_decide(1.2)


class TestHandingOver:
    def test_it_writes_that_it_moves_and_decides_no_more(self):
        lease = good(0.0)
        swap = swap_of(lease.hand_over(0.5))
        moved = e.Lease(e.FORMAT, "me", 2, e.LeaseState.MOVING, HERE, ttl_s=TIMING.ttl_s)
        assert lease_in(swap) == moved
        assert not lease.may_decide(0.5)

    def test_it_is_renewed_no_more(self):
        lease = good(0.0)
        lease.swapped(swap_of(lease.hand_over(0.5)), e.Swapped(2), 0.6)
        assert lease.has_moved
        assert not lease.may_decide(0.6)
        assert lease.next_tick_s(0.6) is None
        assert lease.tick(50.0) == []
        assert lease.hand_over(50.0) == []

    def test_while_a_renewal_is_out_it_waits_for_the_outcome(self):
        lease = good(0.0)
        renewal = swap_of(lease.tick(1.0))
        assert lease.hand_over(1.1) == []
        assert not lease.may_decide(1.1)
        assert lease.tick(1.5) == [renewal]
        swap = swap_of(lease.swapped(renewal, e.Swapped(2), 1.6))
        assert (swap.expected, lease_in(swap).state) == (2, e.LeaseState.MOVING)

    def test_once_more_changes_nothing(self):
        lease = good(0.0)
        swap = swap_of(lease.hand_over(0.5))
        assert lease.hand_over(0.6) == []
        assert lease.tick(1.0) == [swap]

    def test_who_never_had_a_lease_has_nothing_to_say(self):
        lease = holder()
        assert lease.hand_over(0.0) == []
        assert lease.has_moved
        assert lease.tick(1.0) == []

    def test_a_lease_that_is_lost_meanwhile_ends_it(self):
        lease = good(0.0)
        lease.swapped(swap_of(lease.hand_over(0.5)), e.Conflict(found(revoked())), 0.6)
        assert lease.is_lost
        assert not lease.has_moved


class _UnderNoFloor(e.Claim):
    """A ledger without removed runs: a question for the floor is answered at once."""

    answers_floor = True

    def _ask(self, state: e.ClaimState, question: Any, now_s: float) -> list[e.Action]:
        asked = super()._ask(state, question, now_s)
        if isinstance(question, e.ReadFloor) and self.answers_floor:
            return self.floor_read(question, None, now_s)
        return asked


class Claimant:
    """A claim and the lease of its process. The test gives the answers."""

    def __init__(self, process: str = "me", lease: e.LeaseHolder | None = None) -> None:
        self.lease = lease or good(0.0, process)
        self.claim = _UnderNoFloor("run", "ledger", self.lease)

    def read_run(self, now_s: float) -> e.ReadRun:
        """Begin, or look again."""
        idle = self.claim.state is e.ClaimState.IDLE
        (asked,) = self.claim.begin(now_s) if idle else self.claim.tick(now_s)
        assert isinstance(asked, e.ReadRun)
        return asked

    def sees(self, value: e.RunRegister | None, now_s: float, version: int = 7) -> list[e.Action]:
        """Read the head, and find this."""
        there = None if value is None else found(value, version)
        return self.claim.run_read(self.read_run(now_s), there, now_s)

    def judges(
        self,
        owner: e.Lease | None,
        now_s: float,
        version: int = 3,
        run: e.RunRegister | None = None,
    ) -> list[e.Action]:
        """Read the head, and find this lease of its owner."""
        (asked,) = self.sees(run or register(), now_s)
        assert isinstance(asked, e.ReadLease)
        there = None if owner is None else found(owner, version)
        return self.claim.lease_read(asked, there, now_s)

    def wins(self, now_s: float = 0.0, run: e.RunRegister | None = None) -> e.RunRegister:
        """Become the owner of the run."""
        swap = run_swap_of(self.sees(run, now_s))
        (won,) = self.claim.run_swapped(swap, e.Swapped(8), now_s)
        assert isinstance(won, e.Elected)
        assert won == e.Elected(e.decode_run(swap.value), 8)
        return won.register


class TestAdopting:
    def test_a_run_that_is_not_there_begins_in_term_1(self):
        swap = run_swap_of(Claimant().sees(None, 0.0))
        assert swap.expected is None
        assert e.decode_run(swap.value) == register("me", 1)

    def test_who_swaps_first_has_won(self):
        me = Claimant()
        assert me.wins() == register("me", 1)
        assert me.claim.state is e.ClaimState.OWNED
        assert (me.claim.register, me.claim.version) == (register("me", 1), 8)
        assert me.claim.next_tick_s() is None

    def test_the_seal_takes_over_all_that_was_committed(self):
        left = register(
            "",
            4,
            sequence=9,
            round=a_round(3, "a"),
            close=CLOSE,
            restarts=2,
            settings=RunSettings(),
        )
        swap = run_swap_of(Claimant().sees(left, 0.0))
        assert swap.expected == 7
        assert e.decode_run(swap.value) == msgspec.structs.replace(
            left, term=5, owner="me", sequence=0
        )

    def test_its_own_run_is_sealed_anew(self):
        # What it had tried in its former reign may still be under way: R5.
        swap = run_swap_of(Claimant().sees(register("me", 4, sequence=2), 0.0))
        assert e.decode_run(swap.value) == register("me", 5)

    @pytest.mark.parametrize("owner", [None, revoked("other"), moving()])
    def test_whose_owner_is_gone_revoked_or_moving_is_adopted_at_once(self, owner):
        swap = run_swap_of(Claimant().judges(owner, 0.0))
        assert swap.expected == 7
        assert e.decode_run(swap.value) == register("me", 5)

    def test_an_unknown_outcome_is_followed_by_the_same_bytes(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        assert me.claim.run_swapped(swap, e.Unknown("timeout"), 0.2) == []
        assert me.claim.tick(0.5) == [swap]
        assert me.claim.tick(1.0) == [swap]
        (won,) = me.claim.run_swapped(swap, e.Conflict(e.Versioned(swap.value, 4)), 1.1)
        assert won == e.Elected(register("me", 1), 4)

    def test_of_two_that_race_the_slower_one_learns_of_the_other(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        there = e.Conflict(found(register("other", 1), 1))
        (asked,) = me.claim.run_swapped(swap, there, 0.1)
        assert isinstance(asked, e.ReadLease)
        actions = me.claim.lease_read(asked, found(serving()), 0.2)
        assert actions == [e.OwnedElsewhere(THERE, "other")]

    def test_without_a_good_lease_nothing_is_adopted(self):
        me = Claimant(lease=holder())
        assert me.sees(None, 0.0) == []
        assert me.claim.state is e.ClaimState.WAITING

    def test_it_goes_on_as_soon_as_its_lease_is_good(self):
        me = Claimant(lease=holder())
        take = swap_of(me.lease.tick(0.0))
        me.sees(None, 0.1)
        assert me.claim.tick(0.15) == []
        me.lease.swapped(take, e.Swapped(1), 0.2)
        run_swap_of(me.sees(None, 0.2))

    def test_a_swap_is_not_repeated_while_its_lease_is_not_good(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        assert me.claim.tick(5.0) == []
        keep(me.lease, 5.1)
        assert me.claim.tick(5.6) == [swap]

    def test_an_adoption_that_is_known_too_late_is_not_won(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        assert me.claim.run_swapped(swap, e.Swapped(1), 10.0) == []
        assert not me.claim.may_decide(10.0)
        keep(me.lease, 10.1)
        again = run_swap_of(me.sees(register("me", 1), 10.2, 1))
        assert e.decode_run(again.value).term == 2

    def test_an_adoption_that_succeeds_after_its_lease_was_revoked_is_not_won(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        renewal = swap_of(me.lease.tick(1.0))
        me.lease.swapped(renewal, e.Conflict(found(revoked())), 1.1)
        assert me.claim.run_swapped(swap, e.Swapped(1), 1.2) == []
        assert me.claim.tick(50.0) == []
        assert me.claim.state is e.ClaimState.IDLE
        assert me.claim.begin(50.0) == []


class TestAnOwnerThatLives:
    def test_its_nodes_attach_there(self):
        me = Claimant()
        assert me.judges(serving(), 0.0) == [e.OwnedElsewhere(THERE, "other")]
        assert me.claim.state is e.ClaimState.ELSEWHERE

    def test_it_is_looked_at_again_three_times_per_ttl(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        assert me.claim.next_tick_s() == pytest.approx(1.0)

    def test_as_long_as_it_renews_nothing_is_taken(self):
        me = Claimant()
        for beat in range(1, 20):
            if beat > 1:
                keep(me.lease, float(beat))
            actions = me.judges(serving(beat=beat), float(beat), version=beat)
            assert actions == [e.OwnedElsewhere(THERE, "other")]


HOSTED = msgspec.structs.replace(serving(), node=NodeId("n", 5))


class TestAnOwnerThatStandsStill:
    def stands_still(self, me: Claimant, until_s: float, version: int = 3) -> list[e.Action]:
        """Look whenever the claim asks to, and find the owner's lease unchanged."""
        actions = me.judges(serving(), 0.0, version)
        while (now_s := me.claim.next_tick_s() or 0.0) <= until_s:
            keep(me.lease, now_s)
            actions = me.judges(serving(), now_s, version)
        return actions

    def test_after_the_ttl_on_the_readers_own_clock_it_is_revoked(self):
        me = Claimant()
        swap = swap_of(self.stands_still(me, 3.0))
        assert (swap.process, swap.expected) == ("other", 3)
        assert lease_in(swap) == revoked("other", by="me")

    def test_not_before(self):
        me = Claimant()
        assert self.stands_still(me, 2.9) == [e.OwnedElsewhere(THERE, "other")]

    def test_it_is_looked_at_just_when_the_ttl_is_over(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        for now_s in (1.3, 2.4):
            keep(me.lease, now_s)
            me.judges(serving(), now_s)
        assert me.claim.next_tick_s() == pytest.approx(3.0)

    def test_the_winner_learns_which_node_its_process_ran_in(self):
        node = NodeId("n", 5)
        hosted = msgspec.structs.replace(serving(), node=node)
        me = Claimant()
        me.judges(hosted, 0.0)
        keep(me.lease, 3.0)
        swap = swap_of(me.judges(hosted, 3.0))
        adopt = run_swap_of(me.claim.lease_swapped(swap, e.Swapped(4), 3.1))
        (won,) = me.claim.run_swapped(adopt, e.Swapped(8), 3.2)
        assert won == e.Elected(e.decode_run(adopt.value), 8, node)

    @pytest.mark.parametrize(
        ("owner", "own_node", "former_host"),
        [
            (e.revoked_by(HOSTED, "a sweeper"), None, NodeId("n", 5)),
            (e.revoked_by(HOSTED, "a sweeper"), NodeId("n", 5), None),
            (msgspec.structs.replace(HOSTED, state=e.LeaseState.MOVING), None, None),
            (e.revoked_by(serving(), "a sweeper"), None, None),
            (None, None, None),
        ],
        ids=["revoked", "its own", "handed over", "serve", "no lease"],
    )
    def test_only_a_node_whose_lease_was_revoked_has_gone(
        self, owner: e.Lease | None, own_node: NodeId | None, former_host: NodeId | None
    ):
        me = Claimant(lease=good(0.0, node=own_node))
        adopt = run_swap_of(me.judges(owner, 0.0))
        (won,) = me.claim.run_swapped(adopt, e.Swapped(8), 0.1)
        assert isinstance(won, e.Elected)
        assert won.former_host == former_host

    def test_once_revoked_the_run_is_adopted_with_the_next_term(self):
        me = Claimant()
        swap = swap_of(self.stands_still(me, 3.0))
        adopt = run_swap_of(me.claim.lease_swapped(swap, e.Swapped(4), 3.1))
        assert adopt.expected == 7
        assert e.decode_run(adopt.value) == register("me", 5)

    def test_own_bytes_in_a_conflict_are_a_revocation(self):
        me = Claimant()
        swap = swap_of(self.stands_still(me, 3.0))
        run_swap_of(me.claim.lease_swapped(swap, e.Conflict(e.Versioned(swap.value, 4)), 3.1))

    def test_an_unknown_revocation_is_tried_again_with_the_same_bytes(self):
        me = Claimant()
        swap = swap_of(self.stands_still(me, 3.0))
        assert me.claim.lease_swapped(swap, e.Unknown("timeout"), 3.2) == []
        assert me.claim.tick(3.5) == [swap]

    def test_a_renewal_that_was_faster_is_believed(self):
        me = Claimant()
        swap = swap_of(self.stands_still(me, 3.0))
        (asked,) = me.claim.lease_swapped(swap, e.Conflict(found(serving(beat=2), 4)), 3.1)
        assert isinstance(asked, e.ReadRun)
        (judge,) = me.claim.run_read(asked, found(register()), 3.2)
        assert isinstance(judge, e.ReadLease)
        actions = me.claim.lease_read(judge, found(serving(beat=2), 4), 3.2)
        assert actions == [e.OwnedElsewhere(THERE, "other")]

    def test_another_that_revoked_first_and_died_leaves_the_run_to_whoever_comes(self):
        me = Claimant()
        swap = swap_of(self.stands_still(me, 3.0))
        me.claim.lease_swapped(swap, e.Conflict(found(revoked("other", by="third"), 4)), 3.1)
        asked = me.claim.tick(3.6)[0]
        assert isinstance(asked, e.ReadRun)
        (judge,) = me.claim.run_read(asked, found(register()), 3.7)
        assert isinstance(judge, e.ReadLease)
        run_swap_of(me.claim.lease_read(judge, found(revoked("other", by="third"), 4), 3.7))

    def test_another_process_at_the_same_version_is_another_lease(self):
        me = Claimant()
        self.stands_still(me, 2.5, version=3)
        run = register("third", 5)
        actions = me.judges(serving("third"), 3.0, version=3, run=run)
        assert actions == [e.OwnedElsewhere((Address("third", 2),), "third")]

    def test_without_a_good_lease_nobody_is_revoked(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        assert me.judges(serving(), 3.5) == []
        assert me.claim.state is e.ClaimState.WAITING


class TestLateAnswers:
    """An answer to another question than the open one changes nothing."""

    def states(self) -> dict[str, Claimant]:
        made = {each: Claimant() for each in ("idle", "reading", "judging", "sealing", "owned")}
        made["reading"].read_run(0.0)
        made["judging"].sees(register(), 0.0)
        made["sealing"].sees(None, 0.0)
        made["owned"].wins()
        made["elsewhere"] = Claimant()
        made["elsewhere"].judges(serving(), 0.0)
        made["waiting"] = Claimant(lease=holder())
        made["waiting"].sees(None, 0.0)
        made["committing"] = Claimant()
        won = made["committing"].wins()
        made["committing"].claim.commit(msgspec.structs.replace(won, close=CLOSE), 0.0)
        made["resigning"] = Claimant()
        made["resigning"].wins()
        made["resigning"].claim.resign(0.0)
        made["revoking"] = Claimant()
        TestAnOwnerThatStandsStill().stands_still(made["revoking"], 3.0)
        made["checking"] = Claimant()
        made["checking"].claim.answers_floor = False
        made["checking"].sees(None, 0.0)
        return made

    @pytest.mark.parametrize("name", [*sorted(e.ClaimState), "committing"])
    def test_they_are_ignored_in_every_state(self, name: str):
        claim = self.states()[name].claim
        before = (claim.state, claim.register, claim.version, claim.next_tick_s())
        another = e.SwapLease("third", 3, b"x")
        mine = e.SwapRun(3, e.encode(register("me", 9)))
        given: list[e.Action] = [
            *claim.run_read(e.ReadRun(99), found(register("me", 9)), 3.0),
            *claim.run_read(e.ReadRun(99), None, 3.0),
            *claim.floor_read(e.ReadFloor(99), None, 3.0),
            *claim.lease_read(e.ReadLease("other", 99), None, 3.0),
            *claim.lease_read(e.ReadLease("other", 99), found(revoked("other")), 3.0),
            *claim.lease_swapped(another, e.Swapped(4), 3.0),
            *claim.lease_swapped(another, e.Conflict(None), 3.0),
            *claim.run_swapped(mine, e.Swapped(4), 3.0),
            *claim.run_swapped(mine, e.Conflict(None), 3.0),
        ]
        assert given == []
        assert (claim.state, claim.register, claim.version, claim.next_tick_s()) == before

    def test_a_repeated_answer_is_ignored(self):
        me = Claimant()
        asked = me.read_run(0.0)
        swap = run_swap_of(me.claim.run_read(asked, None, 0.1))
        assert me.claim.run_read(asked, None, 0.2) == []
        assert len(me.claim.run_swapped(swap, e.Swapped(1), 0.3)) == 1
        assert me.claim.run_swapped(swap, e.Swapped(1), 0.4) == []
        assert me.claim.run_swapped(swap, e.Conflict(None), 0.4) == []

    def test_an_answer_to_the_reading_before_is_not_one_to_this(self):
        me = Claimant()
        old = me.read_run(0.0)
        me.claim.deposed(0.1)
        me.read_run(0.2)
        assert me.claim.run_read(old, None, 0.3) == []

    def test_a_slow_engine_is_asked_the_same_again(self):
        # An answer that takes longer than retry_s must not be late for ever.
        me = Claimant()
        asked = me.read_run(0.0)
        assert me.claim.tick(0.5) == [asked]
        run_swap_of(me.claim.run_read(asked, None, 0.7))


class TestLookingAgain:
    def test_an_owner_that_dies_later_is_found_out_by_ticks_alone(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        keep(me.lease, 1.0)
        me.judges(serving(beat=2), 1.0, version=4)
        for now_s in (2.0, 3.0):
            keep(me.lease, now_s)
            assert me.judges(serving(beat=2), now_s, version=4)
        keep(me.lease, 4.0)
        swap = swap_of(me.judges(serving(beat=2), 4.0, version=4))
        assert swap.expected == 4

    def test_an_owner_that_lets_go_is_followed(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        swap = run_swap_of(me.sees(register("", 4, sequence=3), 1.0))
        assert e.decode_run(swap.value) == register("me", 5)

    def test_nothing_is_looked_at_unasked(self):
        claim = Claimant().claim
        assert claim.next_tick_s() is None
        assert claim.tick(100.0) == []


class TestCommitting:
    def owner(self) -> tuple[Claimant, e.RunRegister]:
        me = Claimant()
        return me, me.wins()

    def test_it_names_the_version_and_counts(self):
        me, won = self.owner()
        following = msgspec.structs.replace(won, round=a_round(1, "a"), restarts=1)
        swap = run_swap_of(me.claim.commit(following, 0.1))
        assert swap.expected == 8
        assert me.claim.is_committing
        assert me.claim.state is e.ClaimState.OWNED
        written = msgspec.structs.replace(following, sequence=1)
        assert e.decode_run(swap.value) == written
        assert me.claim.run_swapped(swap, e.Swapped(9), 0.2) == [e.RegisterWritten(written, 9)]
        assert not me.claim.is_committing

    def test_the_next_commit_builds_on_it(self):
        me, won = self.owner()
        one = msgspec.structs.replace(won, round=a_round(1, "a"))
        me.claim.run_swapped(run_swap_of(me.claim.commit(one, 0.1)), e.Swapped(9), 0.1)
        two = msgspec.structs.replace(one, round=a_round(2, "a"))
        swap = run_swap_of(me.claim.commit(two, 0.2))
        assert (swap.expected, e.decode_run(swap.value).sequence) == (9, 2)

    def test_an_unknown_outcome_is_followed_by_the_same_bytes(self):
        me, won = self.owner()
        closed = msgspec.structs.replace(won, close=CLOSE)
        swap = run_swap_of(me.claim.commit(closed, 0.1))
        assert me.claim.run_swapped(swap, e.Unknown("timeout"), 0.3) == []
        assert me.claim.commit(closed, 0.4) == []
        assert me.claim.tick(0.6) == [swap]
        (committed,) = me.claim.run_swapped(swap, e.Conflict(e.Versioned(swap.value, 9)), 0.7)
        assert isinstance(committed, e.RegisterWritten)

    def test_another_while_the_outcome_is_unknown_is_a_mistake(self):
        me, won = self.owner()
        me.claim.commit(msgspec.structs.replace(won, close=CLOSE), 0.1)
        with pytest.raises(AssertionError, match="outcome of another commit is not known"):
            me.claim.commit(msgspec.structs.replace(won, round=a_round(1, "a")), 0.2)

    def test_a_conflict_deposes(self):
        me, won = self.owner()
        swap = run_swap_of(me.claim.commit(msgspec.structs.replace(won, close=CLOSE), 0.1))
        (deposed,) = me.claim.run_swapped(swap, e.Conflict(found(register("other", 2))), 0.2)
        assert isinstance(deposed, e.Deposed)
        assert me.claim.state is e.ClaimState.IDLE
        assert not me.claim.may_decide(0.2)

    def test_it_waits_for_a_good_lease(self):
        me, won = self.owner()
        closed = msgspec.structs.replace(won, close=CLOSE)
        assert me.claim.commit(closed, 10.0) == []
        keep(me.lease, 10.1)
        run_swap_of(me.claim.tick(10.5))

    def test_numbers_only_grow_by_one(self):
        me, won = self.owner()
        with pytest.raises(AssertionError):
            me.claim.commit(msgspec.structs.replace(won, round=a_round(2, "a")), 0.1)

    def test_a_closed_run_forms_no_round(self):
        me = Claimant()
        won = me.wins(run=register("", 4, close=CLOSE))
        with pytest.raises(AssertionError, match="closed"):
            me.claim.commit(msgspec.structs.replace(won, round=a_round(1, "a")), 0.1)

    def test_who_does_not_own_the_run_cannot(self):
        with pytest.raises(AssertionError):
            Claimant().claim.commit(register("me", 1), 0.0)

    def test_who_loses_its_lease_is_deposed_once(self):
        me, _ = self.owner()
        me.lease.swapped(swap_of(me.lease.tick(1.0)), e.Conflict(found(revoked())), 1.1)
        assert not me.claim.may_decide(1.1)
        assert me.claim.tick(1.1) == [e.Deposed("its lease was revoked by other")]
        assert me.claim.tick(1.2) == []


class TestLettingGo:
    def test_the_run_is_nobodys_and_stays_as_it_was(self):
        me = Claimant()
        me.wins(run=register("", 4, round=a_round(3, "a")))
        swap = run_swap_of(me.claim.resign(0.1, 5.0))
        left = register("", 5, sequence=1, round=a_round(3, "a"))
        assert (swap.expected, e.decode_run(swap.value)) == (8, left)
        assert not me.claim.may_decide(0.1)
        assert me.claim.run_swapped(swap, e.Swapped(9), 0.2) == []
        assert me.claim.state is e.ClaimState.IDLE

    def test_an_unknown_outcome_is_followed_by_the_same_bytes(self):
        me = Claimant()
        me.wins()
        swap = run_swap_of(me.claim.resign(0.1))
        me.claim.run_swapped(swap, e.Unknown("timeout"), 0.2)
        assert me.claim.tick(0.6) == [swap]

    def test_it_stays_away_but_says_where_the_run_is(self):
        me = Claimant()
        me.wins()
        me.claim.run_swapped(run_swap_of(me.claim.resign(0.0, 2.0)), e.Swapped(9), 0.1)
        assert me.sees(register("", 1, sequence=1), 0.2) == []
        keep(me.lease, 1.2)
        actions = me.judges(serving(), 1.2, run=register("other", 2))
        assert actions == [e.OwnedElsewhere(THERE, "other")]

    def test_after_the_pause_it_takes_what_is_still_nobodys(self):
        me = Claimant()
        me.wins()
        me.claim.run_swapped(run_swap_of(me.claim.resign(0.0, 2.0)), e.Swapped(9), 0.1)
        assert me.sees(register("", 1, sequence=1), 0.2) == []
        keep(me.lease, 2.1)
        run_swap_of(me.sees(register("", 1, sequence=1), 2.1))

    def test_a_commit_that_is_under_way_is_done_first(self):
        me = Claimant()
        won = me.wins()
        commit = run_swap_of(me.claim.commit(msgspec.structs.replace(won, close=CLOSE), 0.1))
        assert me.claim.resign(0.2) == []
        committed, swap = me.claim.run_swapped(commit, e.Swapped(9), 0.3)
        assert isinstance(committed, e.RegisterWritten)
        assert isinstance(swap, e.SwapRun)
        assert (swap.expected, e.decode_run(swap.value).owner) == (9, "")

    def test_who_was_deposed_meanwhile_is_gone_too(self):
        me = Claimant()
        me.wins()
        swap = run_swap_of(me.claim.resign(0.1, 5.0))
        assert me.claim.run_swapped(swap, e.Conflict(found(register("other", 2))), 0.2) == []
        assert me.claim.state is e.ClaimState.IDLE
        assert me.claim.not_before_s == 5.2

    def test_a_claim_without_the_run_is_dropped(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        assert me.claim.resign(0.1) == []
        assert me.claim.state is e.ClaimState.IDLE


class TestWhatCannotBeRead:
    def test_bytes_of_something_else(self):
        with pytest.raises(e.UnreadableError, match="not a run head of Rallypoint"):
            e.decode_run(b'{"owner": 1}')

    def test_a_list_of_something_else(self):
        with pytest.raises(e.UnreadableError, match="it has no format number"):
            e.decode_lease(msgspec.msgpack.encode(["hello", 2]))

    def test_a_damaged_register(self):
        with pytest.raises(e.UnreadableError, match="this run head is damaged"):
            e.decode_run(msgspec.msgpack.encode([e.FORMAT, "ledger", "run", -4, "me"]))

    def test_a_newer_format(self):
        newer = msgspec.structs.replace(register(), format=3)
        with pytest.raises(e.OtherFormatError, match="format 3 was written by a newer release"):
            e.decode_run(e.encode(newer))

    def test_an_older_format(self):
        older = msgspec.structs.replace(register(), format=1)
        with pytest.raises(e.OtherFormatError, match="format 1 was written by an older release"):
            e.decode_run(e.encode(older))

    def test_a_newer_format_that_looks_quite_different(self):
        with pytest.raises(e.UnreadableError, match="newer release"):
            e.decode_lease(msgspec.msgpack.encode([3, {"process": "x"}]))

    def test_a_format_that_never_was(self):
        with pytest.raises(e.UnreadableError, match="format 0"):
            e.decode_run(e.encode(msgspec.structs.replace(register(), format=0)))

    def test_half_of_a_value(self):
        whole = e.encode(register(round=a_round(1, "a"), table=a_table("a")))
        for length in range(len(whole)):
            with pytest.raises(e.UnreadableError):
                e.decode_run(whole[:length])

    @given(st.binary(max_size=200))
    def test_whatever_the_bytes_nothing_else_is_raised(self, data: bytes):
        for decode in (e.decode_lease, e.decode_run):
            with contextlib.suppress(e.UnreadableError):
                decode(data)

    @given(st.binary(max_size=60), st.integers(0, 60))
    def test_nor_whatever_is_broken_in_a_value(self, noise: bytes, at: int):
        whole = e.encode(register(round=a_round(1, "a"), settings=RunSettings(), close=CLOSE))
        for decode in (e.decode_lease, e.decode_run):
            with contextlib.suppress(e.UnreadableError):
                decode(whole[:at] + noise + whole[at + len(noise) :])

    @pytest.mark.parametrize(
        "data", [b"\x91" * 100_000 + b"\x01", b"\xdd\xff\xff\xff\xff", b"\x92\x01\xa1\xff"]
    )
    def test_nor_for_what_is_deep_or_claims_to_be_large_or_is_no_text(self, data: bytes):
        with pytest.raises(e.UnreadableError):
            e.decode_lease(data)

    def test_what_was_encoded_is_decoded(self):
        for lease in (serving(), moving(), revoked()):
            assert e.decode_lease(e.encode(lease)) == lease
        chunk = e.Chunk(2, 3, 512, b"digest")
        table = e.Table(rows=a_table("a").rows, chunks=(chunk,))
        full = register(
            round=a_round(1, "a"), table=table, settings=RunSettings(), close=CLOSE, restarts=3
        )
        assert e.decode_run(e.encode(full)) == full

    def test_a_claim_says_why_and_asks_again(self):
        me = Claimant()
        asked = me.read_run(0.0)
        newer = msgspec.structs.replace(register(), format=e.FORMAT + 1)
        with pytest.raises(e.UnreadableError, match="newer release"):
            me.claim.run_read(asked, found(newer), 0.1)
        assert me.claim.tick(0.5) == [asked]
        run_swap_of(me.claim.run_read(asked, None, 0.6))

    def test_a_lease_that_it_cannot_read_is_not_taken_for_dead(self):
        me = Claimant()
        (asked,) = me.sees(register(), 0.0)
        assert isinstance(asked, e.ReadLease)
        with pytest.raises(e.UnreadableError):
            me.claim.lease_read(asked, e.Versioned(b"x", 3), 0.1)
        assert me.claim.tick(9.0) == [asked]

    @pytest.mark.parametrize("change", [{"run_id": "x"}, {"ledger_id": "x"}])
    def test_the_register_of_something_else_is_refused(self, change: dict[str, str]):
        me = Claimant()
        asked = me.read_run(0.0)
        with pytest.raises(e.UnreadableError, match="not of run run in ledger ledger"):
            me.claim.run_read(asked, found(msgspec.structs.replace(register(), **change)), 0.1)

    def test_the_lease_of_somebody_else_is_refused(self):
        me = Claimant()
        (asked,) = me.sees(register(), 0.0)
        assert isinstance(asked, e.ReadLease)
        with pytest.raises(e.UnreadableError, match="the lease of third, not of other"):
            me.claim.lease_read(asked, found(serving("third")), 0.1)


class TestYielding:
    def yielding(self) -> e.Resignation:
        """Owner since 5.0. At the first look, a second process renews its lease."""
        yielding = e.Resignation(10.0, 3.0)
        yielding.won(5.0)
        yielding.should_yield({"second": 1}, 12.0)
        return yielding

    def test_whom_nobody_reaches_yields_after_a_while_to_one_whose_lease_moves(self):
        assert not self.yielding().should_yield({"second": 2}, 14.9)
        assert self.yielding().should_yield({"second": 2}, 15.0)

    def test_who_has_nobody_to_yield_to_stays(self):
        assert not self.yielding().should_yield({}, 15.0)
        assert not self.yielding().should_yield({"second": 1}, 15.0), "its lease stands still"
        assert not self.yielding().should_yield({"third": 7}, 15.0), "seen once only"

    def test_where_the_others_cannot_be_listed_it_yields_to_whoever_comes(self):
        assert not self.yielding().should_yield(None, 14.9)
        assert self.yielding().should_yield(None, 15.0)

    def test_whom_somebody_reaches_stays(self):
        yielding = self.yielding()
        yielding.heard()
        assert not yielding.should_yield({"second": 2}, 100.0)

    def test_whom_nobody_reaches_any_more_yields_as_well(self):
        yielding = self.yielding()
        yielding.heard()
        yielding.unheard(50.0)
        yielding.unheard(55.0)
        assert not yielding.should_yield({"second": 9}, 59.0)
        assert yielding.should_yield({"second": 10}, 60.0)

    def test_it_looks_twice_before_it_may_yield_and_then_as_often(self):
        yielding = e.Resignation(10.0, 3.0)
        assert not yielding.should_look(4.0)
        yielding.won(5.0)
        looks_s = [t / 2 for t in range(10, 50) if yielding.should_look(t / 2)]
        assert looks_s == [12.0, 15.0, 18.0, 21.0, 24.0]

    def test_who_is_not_in_office_has_nothing_to_yield(self):
        assert not e.Resignation(10.0, 3.0).should_yield(None, 100.0)

    def test_each_time_it_stays_away_twice_as_long_up_to_a_bound(self):
        yielding = e.Resignation(10.0, 3.0)
        pauses_s = []
        for _ in range(8):
            yielding.won(0.0)
            pauses_s.append(yielding.pause_s())
        assert pauses_s == [20.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0]
        yielding.heard()
        assert yielding.pause_s() == 20.0

    def test_a_pause_ends_the_office(self):
        yielding = e.Resignation(10.0, 3.0)
        yielding.won(0.0)
        yielding.pause_s()
        assert not yielding.should_yield(None, 100.0)


class TestWhere:
    def test_nodes_attach_where_the_owners_lease_says(self):
        assert e.where(register(), serving()) == THERE

    @pytest.mark.parametrize(
        ("run", "lease"),
        [
            (None, serving()),
            (register(), None),
            (register(), serving("third")),
            (register(), moving()),
            (register(), revoked("other")),
            (register(""), serving()),
            (register(""), serving("")),
        ],
    )
    def test_or_nowhere(self, run: e.RunRegister | None, lease: e.Lease | None):
        assert e.where(run, lease) is None


class TestWhatAnotherPartOfTheProcessHasSeen:
    SEEN = e.Seen("other", 7, 10.0)

    def judging(self, seen: e.Seen | None, now_s: float) -> list[e.Action]:
        """A claim to a run of another owner, whose lease has version 7."""
        claim = e.Claim("run", "ledger", good(now_s))
        (asked,) = claim.begin(now_s, seen)
        assert isinstance(asked, e.ReadRun)
        (lease,) = claim.run_read(asked, found(register()), now_s)
        assert isinstance(lease, e.ReadLease)
        return claim.lease_read(lease, found(serving()), now_s)

    def test_need_not_be_watched_for_as_long_again(self):
        (revoke,) = self.judging(self.SEEN, 13.0)
        assert isinstance(revoke, e.SwapLease)
        assert (revoke.process, revoke.expected) == ("other", 7)

    def test_is_not_enough_before_the_ttl_is_over(self):
        (elsewhere,) = self.judging(self.SEEN, 12.9)
        assert isinstance(elsewhere, e.OwnedElsewhere)

    @pytest.mark.parametrize("seen", [None, e.Seen("other", 6, 10.0), e.Seen("third", 7, 10.0)])
    def test_counts_for_that_lease_at_that_version_only(self, seen: e.Seen | None):
        (elsewhere,) = self.judging(seen, 13.0)
        assert isinstance(elsewhere, e.OwnedElsewhere)

    def test_is_taken_by_a_claim_that_has_been_turned_down(self):
        claim = e.Claim("run", "ledger", good(12.0))
        (asked,) = claim.begin(12.0)
        assert isinstance(asked, e.ReadRun)
        (lease,) = claim.run_read(asked, found(register()), 12.0)
        assert isinstance(lease, e.ReadLease)
        claim.lease_read(lease, found(serving()), 12.0)
        assert claim.begin(13.0) == []
        (asked,) = claim.begin(13.0, self.SEEN)
        assert isinstance(asked, e.ReadRun)
        (lease,) = claim.run_read(asked, found(register()), 13.0)
        assert isinstance(lease, e.ReadLease)
        (revoke,) = claim.lease_read(lease, found(serving()), 13.0)
        assert isinstance(revoke, e.SwapLease)


class TestSeeker:
    def seeker(self, name: str = "a", **options: Any) -> e.Discovery:
        made = e.Discovery(name, TIMING, **{"candidates": 2, **options})
        made.seek(0.0, 0.0)
        return made

    def looks(
        self,
        seeker: e.Discovery,
        now_s: float,
        run: e.RunRegister | None,
        lease: e.Lease | None = None,
        jitter: float = 0.5,
    ) -> list[e.DiscoveryAction]:
        (asked,) = seeker.tick(now_s, jitter)
        assert isinstance(asked, e.ReadRun)
        findings = seeker.run_read(asked, None if run is None else found(run), now_s, jitter)
        if findings and isinstance(findings[0], e.ReadLease):
            there = None if lease is None else found(lease)
            return seeker.lease_read(findings[0], there, now_s, jitter)
        return findings

    def test_it_attaches_where_the_owner_listens(self):
        seeker = self.seeker()
        run = register(round=a_round(3, "a"))
        found_there = self.looks(seeker, 0.0, run, serving())
        assert found_there == [e.AttachTo(serving(), Stamp("ledger", 4, 3))]
        assert seeker.next_tick_s() is None

    @pytest.mark.parametrize(
        ("owner", "lease", "term"),
        [
            ("other", serving(), 4),
            ("other", None, 4),
            ("other", moving(), 5),
            ("other", revoked("other", by="me"), 5),
            ("", None, 5),
        ],
    )
    def test_r5_no_coordinator_of_a_term_that_has_ended_is_believed(
        self, owner: str, lease: e.Lease | None, term: int
    ):
        seeker = self.seeker()
        self.looks(seeker, 0.0, register(owner, 4), lease)
        assert seeker.floor == Stamp("ledger", term, 0)

    def test_it_stands_by_beside_an_owner_that_it_cannot_reach(self):
        """Otherwise an owner behind a firewall would never resign."""
        seeker = self.seeker(nodes=2)
        self.looks(seeker, 0.0, register(round=a_round(3, "a")), serving())
        assert not seeker.stands_by(1.0, 0.5)
        seeker.seek_again(1.0, 0.5)
        assert not seeker.stands_by(1.0 + 0.9 * TIMING.ttl_s, 0.99)
        assert seeker.stands_by(1.0 + TIMING.ttl_s, 0.99)
        seeker.seek(10.0, 0.0)  # It had a coordinator meanwhile.
        assert not seeker.stands_by(10.0, 0.5)

    @pytest.mark.parametrize("nodes", [10, 1_000, 10_000])
    def test_few_of_many_stand_by(self, nodes):
        rng = random.Random(nodes)
        seekers = [self.seeker(nodes=nodes, candidates=3) for _ in range(nodes)]
        for each in seekers:
            each.stands_by(0.0, rng.random())
        early_s = TIMING.ttl_s * 1.1
        assert sum(each.stands_by(early_s, 0.0) for each in seekers) <= 15
        late_s = 4 * TIMING.ttl_s
        assert any(each.stands_by(late_s, 0.0) for each in seekers)

    def test_it_looks_at_a_time_of_its_own(self):
        seeker = self.seeker(nodes=10_000)
        seeker.seek(10.0, 0.25)
        assert seeker.next_tick_s() == 10.25
        assert seeker.tick(10.2, 0.5) == []
        seeker.tick(10.25, 0.5)
        assert seeker.next_tick_s() == 10.25 + TIMING.ttl_s

    def test_a_small_run_looks_at_once_and_a_large_one_within_a_second(self):
        for nodes, latest_s in ((8, 10.004), (1_000, 10.5), (100_000, 11.0)):
            seeker = self.seeker(nodes=nodes)
            seeker.seek(10.0, 1.0)
            assert seeker.next_tick_s() == pytest.approx(latest_s)

    def test_the_nodes_of_a_large_run_look_rarer(self):
        for nodes, often_s in ((8, 1.0), (2_000, 1.0), (4_000, 2.0), (100_000, TIMING.ttl_s)):
            seeker = self.seeker(nodes=nodes)
            seeker.tick(0.0, 0.5)
            assert seeker.next_tick_s() == pytest.approx(often_s)

    def test_a_change_that_the_engine_tells_of_is_looked_at(self):
        seeker = self.seeker(nodes=10_000)
        seeker.seek(10.0, 0.9)
        seeker.look_now(10.1)
        assert seeker.tick(10.1, 0.5) == [e.ReadRun(1)]

    def test_not_by_all_nodes_at_the_same_moment(self):
        seeker = self.seeker(nodes=1_000)
        seeker.tick(0.0, 0.9)
        seeker.look_now(0.1, 0.5)
        assert seeker.next_tick_s() == pytest.approx(0.35)

    def test_in_a_small_run_every_node_stands_at_once(self):
        assert self.looks(self.seeker(nodes=2), 0.0, None) == [e.BecomeCandidate()]

    def test_in_a_large_one_a_node_stands_when_chance_says_so(self):
        assert self.looks(self.seeker(nodes=1_000), 0.0, None, jitter=0.001) == [
            e.BecomeCandidate()
        ]
        seeker = self.seeker(nodes=1_000)
        assert self.looks(seeker, 0.0, None, jitter=0.5) == []
        # 2 ** (t / 0.3 s) * 4 / 3 of 1,000 nodes are to stand by t: ln 2 of each is chance's half.
        due_s = 0.3 * math.log2(math.log(2) * 1_000 / (2 * 2 / 3))
        now_s = 0.0
        while now_s < due_s - 0.001:
            now_s = seeker.next_tick_s() or 0.0
            stood = self.looks(seeker, now_s, None, jitter=0.5)
        assert now_s == pytest.approx(due_s)
        assert stood == [e.BecomeCandidate()]

    def test_how_many_nodes_there_are_is_what_the_register_says(self):
        settings = RunSettings(min_nodes=300, max_nodes=900, expected_nodes=500)
        begun = register("", settings=settings)
        seeker = self.seeker(nodes=2)
        self.looks(seeker, 0.0, begun)
        assert seeker.nodes == 500
        seeker = self.seeker(nodes=2)
        self.looks(seeker, 0.0, register("", settings=settings, round=a_round(3, "x", "y", "z")))
        assert seeker.nodes == 3

    def test_who_was_not_reached_is_looked_at_again_when_its_lease_may_be_over(self):
        seeker = self.seeker(look_s=2.0)
        self.looks(seeker, 1.0, register(), serving())
        seeker.seek_again(1.0, 0.0)
        assert seeker.next_tick_s() == 2.0
        self.looks(seeker, 3.5, register(), serving())
        seeker.seek_again(3.5, 0.0)
        assert seeker.next_tick_s() == 1.0 + TIMING.ttl_s

    def test_an_engine_that_is_slow_to_answer_slows_the_growth(self):
        seeker = self.seeker(nodes=1_000)
        (asked,) = seeker.tick(0.0, 0.5)
        assert isinstance(asked, e.ReadRun)
        assert seeker.run_read(asked, None, 2.0, 0.5) == []
        while (now_s := seeker.next_tick_s() or 0.0) and not self.looks(seeker, now_s, None):
            pass
        assert now_s == pytest.approx(2.0 + 4.0 * math.log2(math.log(2) * 1_000 / (2 * 2 / 3)))

    @pytest.mark.parametrize("lease", [None, moving(), revoked("other")])
    def test_an_owner_that_does_not_serve_is_nobody(self, lease: e.Lease | None):
        assert self.looks(self.seeker(), 0.0, register(), lease) == [e.BecomeCandidate()]

    def test_an_owner_that_stands_still_for_the_ttl_is_nobody(self):
        seeker = self.seeker()
        for now_s in (0.0, 1.5):
            (attach,) = self.looks(seeker, now_s, register(), serving())
            assert isinstance(attach, e.AttachTo)
            seeker.seek(now_s, 0.0)
        assert self.looks(seeker, 3.0, register(), serving()) == [
            e.BecomeCandidate(e.Seen("other", 7, 0.0))
        ]

    def test_a_closed_run_is_over(self):
        for owner in ("other", ""):
            seeker = self.seeker()
            assert self.looks(seeker, 0.0, register(owner, close=CLOSE)) == [e.RunOver(CLOSE)]
            assert seeker.next_tick_s() is None

    def test_what_is_not_answered_is_asked_again(self):
        seeker = self.seeker()
        asked = seeker.tick(0.0, 0.5)
        assert seeker.tick(1.0, 0.5) == asked

    def test_a_late_answer_changes_nothing(self):
        seeker = self.seeker()
        (old,) = seeker.tick(0.0, 0.5)
        assert isinstance(old, e.ReadRun)
        seeker.seek(0.5, 0.0)
        seeker.tick(0.5, 0.5)
        assert seeker.run_read(old, None, 0.6, 0.5) == []
        assert seeker.lease_read(e.ReadLease("other", 1), None, 0.6, 0.5) == []

    def test_what_cannot_be_read_is_looked_at_again(self):
        seeker = self.seeker()
        (asked,) = seeker.tick(0.0, 0.5)
        assert isinstance(asked, e.ReadRun)
        with pytest.raises(e.UnreadableError):
            seeker.run_read(asked, e.Versioned(b"x", 1), 0.1, 0.5)
        assert seeker.tick(1.0, 0.5) == [asked]

    @pytest.mark.parametrize("wrong", [{"candidates": 0}, {"look_s": 0.0}])
    def test_settings_that_make_no_sense_are_refused(self, wrong: dict[str, Any]):
        with pytest.raises(ValueError, match="must be positive"):
            e.Discovery("a", TIMING, **{"candidates": 1, **wrong})


class TestWhatANewerReleaseAdded:
    """A release that does not know a field must not remove it (docs/compatibility.md)."""

    def test_fields_at_the_end_of_a_register_are_kept_when_it_is_sealed(self):
        newer = [*fields_of(register("other", 4)), {"pinned": ["n1"]}, 7]
        me = Claimant()
        there = e.Versioned(msgspec.msgpack.encode(newer), 7)
        (asked,) = me.claim.run_read(me.read_run(0.0), there, 0.0)
        assert isinstance(asked, e.ReadLease)
        sealed = run_swap_of(me.claim.lease_read(asked, None, 0.1))
        assert msgspec.msgpack.decode(sealed.value)[-2:] == [{"pinned": ["n1"]}, 7]
        assert e.decode_run(sealed.value).term == 5

    def test_fields_of_what_is_inside_are_kept_unless_it_is_replaced(self):
        raw = fields_of(register(settings=RunSettings(max_nodes=4), close=CLOSE))
        settings_at = e.RunRegister.__struct_fields__.index("settings")
        raw[settings_at] = [*raw[settings_at], "new setting"]
        read = e.decode_run(msgspec.msgpack.encode(raw))
        same = msgspec.structs.replace(read, settings=RunSettings(max_nodes=4), term=9)
        assert fields_of(same)[settings_at] == raw[settings_at]
        other = msgspec.structs.replace(read, settings=RunSettings(max_nodes=5))
        assert "new setting" not in fields_of(other)[settings_at]

    def test_fields_of_a_lease_are_kept_when_it_is_revoked(self):
        newer = e.decode_lease(msgspec.msgpack.encode([*fields_of(serving()), "zone-b"]))
        assert fields_of(e.revoked_by(newer, "me"))[-1] == "zone-b"

    def test_a_value_without_this_releases_last_fields_is_written_with_them(self):
        short = e.decode_lease(msgspec.msgpack.encode([e.FORMAT, "p", 3]))
        written = e.decode_lease(e.encode(msgspec.structs.replace(short, ttl_s=30.0)))
        assert (written.beat, written.ttl_s) == (3, 30.0)

    def test_nothing_is_kept_where_nothing_is_new(self):
        assert e.decode_lease(e.encode(serving())).as_read == ()


class TestTheTtlOfALease:
    """A15: the ttl in the lease counts, not the setting of the process that looks."""

    SLOW = msgspec.structs.replace(serving(), ttl_s=30.0)

    def test_a_claim_revokes_after_the_ttl_that_the_lease_names(self):
        me = Claimant()
        for now_s in (1.0, 4.0, 12.0, 29.0):
            keep(me.lease, now_s)
            (news,) = me.judges(self.SLOW, now_s)
            assert isinstance(news, e.OwnedElsewhere), now_s
        keep(me.lease, 31.0)
        (swap,) = me.judges(self.SLOW, 31.0)
        assert isinstance(swap, e.SwapLease)
        assert lease_in(swap).ttl_s == 30.0

    def test_a_revoked_lease_still_names_the_node_of_its_process(self):
        hosted = msgspec.structs.replace(serving(), node=NodeId("n", 5))
        assert e.revoked_by(hosted, "me").node == NodeId("n", 5)

    def test_a_lease_says_its_ttl_and_its_node(self):
        made = e.LeaseHolder("me", HERE, e.Timing.of(30.0), node=NodeId("n", 5))
        lease = lease_in(swap_of(made.tick(0.0)))
        assert (lease.ttl_s, lease.node) == (30.0, NodeId("n", 5))


def fields_of(value: e.Lease | e.RunRegister) -> list[Any]:
    raw: list[Any] = msgspec.msgpack.decode(e.encode(value))
    return raw


class TestTheFloor:
    """R1, R13: a run that begins again begins above every run that was removed."""

    FLOOR = e.Floor(e.FORMAT, 7, 40)

    def claim(self) -> tuple[e.Claim, e.ReadRun]:
        made = e.Claim("run", "ledger", good())
        (asked,) = made.begin(0.0)
        assert isinstance(asked, e.ReadRun)
        return made, asked

    def floor(self, actions: list[e.Action]) -> e.ReadFloor:
        (asked,) = actions
        assert isinstance(asked, e.ReadFloor)
        return asked

    def there(self, value: e.Floor) -> e.Versioned:
        return e.Versioned(e.encode(value), 3)

    def begins(self, floor: e.Versioned | None) -> tuple[e.Claim, e.SwapRun]:
        made, asked = self.claim()
        return made, run_swap_of(
            made.floor_read(self.floor(made.run_read(asked, None, 0.1)), floor, 0.2)
        )

    def test_a_new_run_begins_above_it(self):
        made, swap = self.begins(self.there(self.FLOOR))
        begun = e.decode_run(swap.value)
        assert (begun.term, begun.number, begun.sequence) == (8, 40, 0)
        checked = self.floor(made.run_swapped(swap, e.Swapped(8), 0.3))
        (won,) = made.floor_read(checked, self.there(self.FLOOR), 0.4)
        assert won == e.Elected(begun, 8)

    def test_with_no_floor_in_term_1(self):
        made, swap = self.begins(None)
        begun = e.decode_run(swap.value)
        assert (begun.term, begun.number) == (1, 0)
        (won,) = made.floor_read(self.floor(made.run_swapped(swap, e.Swapped(8), 0.3)), None, 0.4)
        assert isinstance(won, e.Elected)

    def test_a_register_that_is_created_late_is_lifted_before_the_run_is_won(self):
        """Between question and answer the run began elsewhere, and was removed."""
        made, swap = self.begins(None)
        checked = self.floor(made.run_swapped(swap, e.Swapped(8), 0.3))
        lift = run_swap_of(made.floor_read(checked, self.there(self.FLOOR), 0.4))
        lifted = e.decode_run(lift.value)
        assert (lift.expected, lifted.term, lifted.number) == (8, 8, 40)
        (won,) = made.run_swapped(lift, e.Swapped(9), 0.5)
        assert won == e.Elected(lifted, 9)

    def test_so_is_one_that_its_creator_never_checked(self):
        made, asked = self.claim()
        found_there = found(register("", 1))
        checked = self.floor(made.run_read(asked, found_there, 0.1))
        lift = e.decode_run(
            run_swap_of(made.floor_read(checked, self.there(self.FLOOR), 0.2)).value
        )
        assert (lift.term, lift.number) == (8, 40)

    def test_a_run_that_has_had_a_round_needs_no_floor(self):
        made, asked = self.claim()
        seal = run_swap_of(made.run_read(asked, found(register("", 3, round=a_round(2, "a"))), 0.1))
        assert e.decode_run(seal.value).term == 4

    def test_what_cannot_be_read_is_asked_again(self):
        made, asked = self.claim()
        floor = self.floor(made.run_read(asked, None, 0.1))
        with pytest.raises(e.UnreadableError):
            made.floor_read(floor, e.Versioned(b"x", 1), 0.2)
        assert made.tick(0.7) == [floor]
        assert made.floor_read(e.ReadFloor(99), None, 0.8) == []

    def test_it_only_rises(self):
        low = register("p", 3, round=a_round(90, "a"))
        assert self.FLOOR.raised(low) == e.Floor(e.FORMAT, 7, 90)
        assert self.FLOOR.raised(register("p", 2)) == self.FLOOR

    def test_a_newer_releases_fields_are_kept(self):
        raw = [*msgspec.msgpack.decode(e.encode(self.FLOOR)), "new"]
        kept = e.decode_floor(msgspec.msgpack.encode(raw)).raised(register("p", 9))
        assert msgspec.msgpack.decode(e.encode(kept)) == [e.FORMAT, 9, 40, "new"]
