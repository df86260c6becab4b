"""A dead coordinator is succeeded at once: a lease is contested before its ttl has passed."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import election as e
from rallypoint.core.values import EndedOwner, Stamp
from tests.core.claimant import (
    THERE,
    TIMING,
    Claimant,
    a_round,
    found,
    keep,
    lease_in,
    register,
    revoked,
    run_swap_of,
    serving,
    swap_of,
)

ENDED = EndedOwner("other", 3)
MISTAKE = e.Versioned(e.encode(e.Mistake(e.FORMAT, "third")), 1)


def contests(me: Claimant, ended: EndedOwner = ENDED, now_s: float = 0.2) -> list[e.Action]:
    """The claim has seen the owner alive, hears that it has ended, and reads its lease again."""
    me.judges(serving(), 0.1, 3)
    (asked,) = me.claim.contest(ended, now_s)
    assert isinstance(asked, e.ReadRun)
    (judge,) = me.claim.run_read(asked, found(register()), now_s)
    assert isinstance(judge, e.ReadLease)
    return me.claim.lease_read(judge, found(serving(), 3), now_s)


def answered(me: Claimant, actions: list[e.Action], mistake: e.Versioned | None) -> list[e.Action]:
    (asked,) = actions
    assert isinstance(asked, e.ReadMistake)
    return me.claim.mistake_read(asked, has_mistake=mistake is not None, now_s=0.3)


class TestClaim:
    def test_the_lease_of_an_owner_that_has_ended_is_revoked_before_its_ttl(self):
        me = Claimant()
        swap = swap_of(answered(me, contests(me), None))
        assert (swap.process, swap.expected) == ("other", 3)
        early = msgspec.structs.replace(revoked("other", by="me"), is_early=True)
        assert lease_in(swap) == early

    def test_the_head_says_for_how_long_the_former_owner_may_be_alive(self):
        me = Claimant()
        swap = swap_of(answered(me, contests(me), None))
        head = e.decode_run(run_swap_of(me.claim.lease_swapped(swap, e.Swapped(4), 0.4)).value)
        assert (head.owner, head.term, head.unsure_s) == ("me", 5, TIMING.ttl_s)

    def test_so_does_the_head_of_one_that_finds_a_lease_that_was_revoked_early(self):
        me = Claimant()
        early = msgspec.structs.replace(revoked("other", by="third"), is_early=True)
        assert e.decode_run(run_swap_of(me.judges(early, 0.0)).value).unsure_s == TIMING.ttl_s

    @pytest.mark.parametrize("owner", [None, revoked("other", by="third")])
    def test_a_lease_that_has_expired_leaves_no_doubt(self, owner: e.Lease | None):
        assert e.decode_run(run_swap_of(Claimant().judges(owner, 0.0)).value).unsure_s == 0.0

    def test_a_doubt_of_an_earlier_term_stays_while_its_round_does(self):
        me = Claimant()
        run = register("", 4, unsure_s=7.0, round=a_round(3, "a"))
        assert e.decode_run(run_swap_of(me.sees(run, 0.0)).value).unsure_s == 7.0

    def test_a_lease_that_was_renewed_since_is_kept(self):
        me = Claimant()
        assert contests(me, EndedOwner("other", 2)) == [e.OwnedElsewhere(THERE, "other")]

    def test_the_lease_of_another_process_is_kept(self):
        me = Claimant()
        assert contests(me, EndedOwner("third", 3)) == [e.OwnedElsewhere(THERE, "other")]

    def test_after_a_mistake_the_ttl_counts(self):
        me = Claimant()
        told = answered(me, contests(me), MISTAKE)
        assert told == [e.OwnedElsewhere(THERE, "other")]
        for now_s in (1.3, 2.3):
            keep(me.lease, now_s)
            assert me.judges(serving(), now_s, 3) == told
        keep(me.lease, 3.3)
        assert not lease_in(swap_of(me.judges(serving(), 3.3, 3))).is_early

    def test_it_is_tried_once_in_a_term(self):
        me = Claimant()
        swap = swap_of(answered(me, contests(me), None))
        renewed = e.Conflict(found(serving(beat=2), 4))
        (asked,) = me.claim.lease_swapped(swap, renewed, 0.4)
        assert isinstance(asked, e.ReadRun)
        (judge,) = me.claim.run_read(asked, found(register()), 0.4)
        assert isinstance(judge, e.ReadLease)
        me.claim.lease_read(judge, found(serving(beat=2), 4), 0.4)
        (asked,) = me.claim.contest(EndedOwner("other", 4), 0.5)
        assert isinstance(asked, e.ReadRun)
        (judge,) = me.claim.run_read(asked, found(register()), 0.5)
        assert isinstance(judge, e.ReadLease)
        told = me.claim.lease_read(judge, found(serving(beat=2), 4), 0.5)
        assert told == [e.OwnedElsewhere(THERE, "other")]

    def test_an_owner_is_not_contested_by_itself(self):
        me = Claimant()
        me.wins()
        assert me.claim.contest(EndedOwner("me", 1), 0.1) == []
        assert me.claim.state is e.ClaimState.OWNED

    def test_a_process_finds_out_that_it_was_alive(self):
        me = Claimant()
        renewal = swap_of(me.lease.tick(1.0))
        early = msgspec.structs.replace(revoked("me", by="other"), is_early=True)
        me.lease.swapped(renewal, e.Conflict(found(early)), 1.1)
        assert me.lease.is_lost
        assert me.lease.was_revoked_early

    def test_a_process_whose_lease_has_expired_was_no_mistake(self):
        me = Claimant()
        me.lease.swapped(swap_of(me.lease.tick(1.0)), e.Conflict(found(revoked())), 1.1)
        assert me.lease.is_lost
        assert not me.lease.was_revoked_early


class TestDiscovery:
    def test_a_node_becomes_a_candidate_at_once_if_the_owner_has_ended(self):
        node = Node()
        assert node.looks(0.0, serving(), 3) == [e.AttachTo(serving(), Stamp("ledger", 4, 0))]
        assert node.discovery.owner_ended(0.1, 0.5)
        (finding,) = node.looks(0.1, serving(), 3)
        assert isinstance(finding, e.BecomeCandidate)
        assert finding.ended == ENDED

    def test_an_owner_that_has_renewed_since_is_alive(self):
        node = Node()
        node.looks(0.0, serving(), 3)
        node.discovery.owner_ended(0.1, 0.5)
        found_there = node.looks(0.1, serving(beat=2), 4)
        assert found_there == [e.AttachTo(serving(beat=2), Stamp("ledger", 4, 0))]

    def test_an_owner_is_contested_once_in_a_term(self):
        node = Node()
        node.looks(0.0, serving(), 3)
        assert node.discovery.owner_ended(0.1, 0.5)
        node.looks(0.1, serving(beat=2), 4)
        assert not node.discovery.owner_ended(0.2, 0.5)

    def test_without_an_owner_none_has_ended(self):
        assert not Node().discovery.owner_ended(0.1, 0.5)


class Node:
    """A node of a small run that looks for its coordinator."""

    def __init__(self) -> None:
        self.discovery = e.Discovery("a", TIMING, candidates=2)
        self.discovery.search(0.0, 0.0)

    def looks(self, now_s: float, lease: e.Lease, version: int) -> list[e.DiscoveryAction]:
        (asked,) = self.discovery.tick(now_s, 0.5)
        assert isinstance(asked, e.ReadRun)
        (judge,) = self.discovery.run_read(asked, found(register()), now_s, 0.5)
        assert isinstance(judge, e.ReadLease)
        return self.discovery.lease_read(judge, found(lease, version), now_s, 0.5)
