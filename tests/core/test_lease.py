"""The lease of a process: taking, renewing, losing and handing over, one idea in each test."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import election as e
from tests.core.claimant import (
    HERE,
    TIMING,
    found,
    good,
    holder,
    lease_in,
    revoked,
    serving,
    swap_of,
)


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
    def test_times_that_do_not_fit_together_are_refused(self, wrong: dict[str, float]):
        with pytest.raises(ValueError, match=r"must be (renewed|more than 0)"):
            msgspec.structs.replace(TIMING, **wrong)


class TestAcquiringAndRenewing:
    def test_a_lease_is_acquired_if_there_is_none(self):
        swap = swap_of(holder().tick(10.0))
        assert swap.expected is None
        assert lease_in(swap) == e.Lease(e.FORMAT, "me", 1, addresses=HERE, ttl_s=TIMING.ttl_s)

    def test_without_a_lease_no_decision_is_allowed(self):
        lease = holder()
        lease.tick(0.0)
        assert not lease.may_decide(0.0)

    def test_a_renewal_that_is_wanted_soon_comes_a_second_after_the_last_one(self):
        lease = e.LeaseHolder("me", HERE, e.Timing.of(30.0))
        lease.swapped(swap_of(lease.tick(0.0)), e.Swapped(1), 0.0)
        lease.renew_soon()
        assert lease.next_tick_s(0.2) == 1.0
        lease.swapped(swap_of(lease.tick(1.0)), e.Swapped(2), 1.1)
        assert lease.next_tick_s(1.2) == 11.0

    def test_the_next_renewal_is_timed_from_the_last_one_sent(self):
        lease = good(0.0)
        assert lease.next_tick_s(0.5) == 1.0
        assert lease.tick(0.9) == []
        swap = swap_of(lease.tick(1.0))
        assert (swap.expected, lease_in(swap).beat) == (1, 2)

    def test_a_lease_counts_from_when_the_renewal_was_sent(self):
        lease = holder()
        swap = swap_of(lease.tick(0.0))
        lease.swapped(swap, e.Swapped(1), 2.0)
        assert lease.may_decide(2.4)
        assert not lease.may_decide(2.5)

    def test_of_several_attempts_the_first_one_counts(self):
        lease = holder()
        lease.tick(0.0)
        swap = swap_of(lease.tick(0.5))
        lease.swapped(swap, e.Swapped(1), 0.6)
        assert not lease.may_decide(2.5)

    def test_after_a_stall_a_process_renews_before_it_decides(self):
        lease = good(0.0)
        assert not lease.may_decide(20.0)
        swap = swap_of(lease.tick(20.0))
        assert not lease.may_decide(20.0)
        lease.swapped(swap, e.Swapped(2), 20.1)
        assert lease.may_decide(20.1)


class TestUnknownOutcomes:
    def test_a_retry_sends_the_same_bytes(self):
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

    def test_a_renewal_confirmed_too_late_allows_no_decision(self):
        lease = good(0.0)
        swap = swap_of(lease.tick(1.0))
        lease.swapped(swap, e.Swapped(2), 21.0)
        assert not lease.may_decide(21.0)


class TestLosing:
    def lose(self, current: e.Versioned | None) -> e.LeaseHolder:
        lease = good(0.0)
        lease.swapped(swap_of(lease.tick(1.0)), e.Conflict(current), 1.1)
        return lease

    def test_a_revoked_lease_stays_lost(self):
        lease = self.lose(found(revoked()))
        assert lease.is_lost
        assert not lease.may_decide(1.1)
        assert lease.tick(100.0) == []
        assert lease.hand_over(100.0) == []

    def test_a_lost_lease_has_no_further_actions(self):
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
    def test_a_lost_lease_gives_its_reason(self, current: e.Versioned | None, why: str):
        assert why in self.lose(current).lost_reason

    def test_a_name_used_before_loses_its_lease_at_once(self):
        lease = holder()
        first = lease.tick(0.0)
        lease.swapped(swap_of(first), e.Conflict(found(serving("me", 40))), 0.1)
        assert lease.is_lost

    def test_late_answers_do_not_restore_a_lost_lease(self):
        lease = good(0.0)
        swap = swap_of(lease.tick(1.0))
        lease.swapped(swap, e.Conflict(found(revoked())), 1.1)
        lease.swapped(swap, e.Swapped(2), 1.2)
        assert lease.is_lost
        assert not lease.may_decide(1.2)


class TestHandingOver:
    def test_a_process_that_hands_over_writes_it_and_stops_deciding(self):
        lease = good(0.0)
        swap = swap_of(lease.hand_over(0.5))
        moved = e.Lease(e.FORMAT, "me", 2, e.LeaseState.MOVING, HERE, ttl_s=TIMING.ttl_s)
        assert lease_in(swap) == moved
        assert not lease.may_decide(0.5)

    def test_a_lease_that_is_handed_over_is_not_renewed(self):
        lease = good(0.0)
        lease.swapped(swap_of(lease.hand_over(0.5)), e.Swapped(2), 0.6)
        assert lease.has_moved
        assert not lease.may_decide(0.6)
        assert lease.next_tick_s(0.6) is None
        assert lease.tick(50.0) == []
        assert lease.hand_over(50.0) == []

    def test_a_handover_waits_for_the_outcome_of_a_renewal(self):
        lease = good(0.0)
        renewal = swap_of(lease.tick(1.0))
        assert lease.hand_over(1.1) == []
        assert not lease.may_decide(1.1)
        assert lease.tick(1.5) == [renewal]
        swap = swap_of(lease.swapped(renewal, e.Swapped(2), 1.6))
        assert (swap.expected, lease_in(swap).state) == (2, e.LeaseState.MOVING)

    def test_a_second_handover_changes_nothing(self):
        lease = good(0.0)
        swap = swap_of(lease.hand_over(0.5))
        assert lease.hand_over(0.6) == []
        assert lease.tick(1.0) == [swap]

    def test_without_a_lease_a_handover_writes_nothing(self):
        lease = holder()
        assert lease.hand_over(0.0) == []
        assert lease.has_moved
        assert lease.tick(1.0) == []

    def test_losing_the_lease_ends_the_handover(self):
        lease = good(0.0)
        lease.swapped(swap_of(lease.hand_over(0.5)), e.Conflict(found(revoked())), 0.6)
        assert lease.is_lost
        assert not lease.has_moved
