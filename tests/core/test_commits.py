"""The owner of a run commits to its register, and gives the run up."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import election as e
from tests.core.claimant import (
    CLOSE,
    THERE,
    Claimant,
    a_round,
    found,
    keep,
    register,
    revoked,
    run_swap_of,
    serving,
    swap_of,
)


class TestCommitting:
    def owner(self) -> tuple[Claimant, e.RunRegister]:
        me = Claimant()
        return me, me.wins()

    def test_a_commit_names_the_version_and_counts_up(self):
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

    def test_the_next_commit_builds_on_the_last_one(self):
        me, won = self.owner()
        one = msgspec.structs.replace(won, round=a_round(1, "a"))
        me.claim.run_swapped(run_swap_of(me.claim.commit(one, 0.1)), e.Swapped(9), 0.1)
        two = msgspec.structs.replace(one, round=a_round(2, "a"))
        swap = run_swap_of(me.claim.commit(two, 0.2))
        assert (swap.expected, e.decode_run(swap.value).sequence) == (9, 2)

    def test_after_an_unknown_outcome_the_same_bytes_are_sent_again(self):
        me, won = self.owner()
        closed = msgspec.structs.replace(won, close=CLOSE)
        swap = run_swap_of(me.claim.commit(closed, 0.1))
        assert me.claim.run_swapped(swap, e.Unknown("timeout"), 0.3) == []
        assert me.claim.commit(closed, 0.4) == []
        assert me.claim.tick(0.6) == [swap]
        (committed,) = me.claim.run_swapped(swap, e.Conflict(e.Versioned(swap.value, 9)), 0.7)
        assert isinstance(committed, e.RegisterWritten)

    def test_a_second_commit_before_the_outcome_is_known_is_an_error(self):
        me, won = self.owner()
        me.claim.commit(msgspec.structs.replace(won, close=CLOSE), 0.1)
        with pytest.raises(AssertionError, match="outcome of another commit is not known"):
            me.claim.commit(msgspec.structs.replace(won, round=a_round(1, "a")), 0.2)

    def test_a_conflict_deposes_the_owner(self):
        me, won = self.owner()
        swap = run_swap_of(me.claim.commit(msgspec.structs.replace(won, close=CLOSE), 0.1))
        (deposed,) = me.claim.run_swapped(swap, e.Conflict(found(register("other", 2))), 0.2)
        assert isinstance(deposed, e.Deposed)
        assert me.claim.state is e.ClaimState.IDLE
        assert not me.claim.may_decide(0.2)

    def test_a_commit_waits_for_a_good_lease(self):
        me, won = self.owner()
        closed = msgspec.structs.replace(won, close=CLOSE)
        assert me.claim.commit(closed, 10.0) == []
        keep(me.lease, 10.1)
        run_swap_of(me.claim.tick(10.5))

    def test_round_numbers_grow_by_one(self):
        me, won = self.owner()
        with pytest.raises(AssertionError):
            me.claim.commit(msgspec.structs.replace(won, round=a_round(2, "a")), 0.1)

    def test_a_closed_run_forms_no_round(self):
        me = Claimant()
        won = me.wins(run=register("", 4, close=CLOSE))
        with pytest.raises(AssertionError, match="closed"):
            me.claim.commit(msgspec.structs.replace(won, round=a_round(1, "a")), 0.1)

    def test_only_the_owner_can_commit(self):
        with pytest.raises(AssertionError):
            Claimant().claim.commit(register("me", 1), 0.0)

    def test_losing_the_lease_deposes_the_owner_once(self):
        me, _ = self.owner()
        me.lease.swapped(swap_of(me.lease.tick(1.0)), e.Conflict(found(revoked())), 1.1)
        assert not me.claim.may_decide(1.1)
        assert me.claim.tick(1.1) == [e.Deposed("its lease was revoked by other")]
        assert me.claim.tick(1.2) == []


class TestReleasing:
    def test_a_released_run_has_no_owner_and_keeps_its_record(self):
        me = Claimant()
        me.wins(run=register("", 4, round=a_round(3, "a")))
        swap = run_swap_of(me.claim.resign(0.1, 5.0))
        left = register("", 5, sequence=1, round=a_round(3, "a"), formers=("me",))
        assert (swap.expected, e.decode_run(swap.value)) == (8, left)
        assert not me.claim.may_decide(0.1)
        assert me.claim.run_swapped(swap, e.Swapped(9), 0.2) == []
        assert me.claim.state is e.ClaimState.IDLE

    def test_after_an_unknown_outcome_the_same_bytes_are_sent_again(self):
        me = Claimant()
        me.wins()
        swap = run_swap_of(me.claim.resign(0.1))
        me.claim.run_swapped(swap, e.Unknown("timeout"), 0.2)
        assert me.claim.tick(0.6) == [swap]

    def test_the_former_owner_does_not_claim_and_reports_the_new_owner(self):
        me = Claimant()
        me.wins()
        me.claim.run_swapped(run_swap_of(me.claim.resign(0.0, 2.0)), e.Swapped(9), 0.1)
        assert me.sees(register("", 1, sequence=1), 0.2) == []
        keep(me.lease, 1.2)
        actions = me.judges(serving(), 1.2, run=register("other", 2))
        assert actions == [e.OwnedElsewhere(THERE, "other")]

    def test_after_the_pause_it_claims_a_run_without_an_owner(self):
        me = Claimant()
        me.wins()
        me.claim.run_swapped(run_swap_of(me.claim.resign(0.0, 2.0)), e.Swapped(9), 0.1)
        assert me.sees(register("", 1, sequence=1), 0.2) == []
        keep(me.lease, 2.1)
        run_swap_of(me.sees(register("", 1, sequence=1), 2.1))

    def test_a_commit_in_progress_ends_before_the_release(self):
        me = Claimant()
        won = me.wins()
        commit = run_swap_of(me.claim.commit(msgspec.structs.replace(won, close=CLOSE), 0.1))
        assert me.claim.resign(0.2) == []
        committed, swap = me.claim.run_swapped(commit, e.Swapped(9), 0.3)
        assert isinstance(committed, e.RegisterWritten)
        assert isinstance(swap, e.SwapRun)
        assert (swap.expected, e.decode_run(swap.value).owner) == (9, "")

    def test_an_owner_deposed_meanwhile_is_released_too(self):
        me = Claimant()
        me.wins()
        swap = run_swap_of(me.claim.resign(0.1, 5.0))
        assert me.claim.run_swapped(swap, e.Conflict(found(register("other", 2))), 0.2) == []
        assert me.claim.state is e.ClaimState.IDLE
        assert me.claim.not_before_s == 5.2

    def test_a_claim_that_does_not_own_the_run_is_dropped(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        assert me.claim.resign(0.1) == []
        assert me.claim.state is e.ClaimState.IDLE
