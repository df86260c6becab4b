"""A claim becomes the owner of a run: adopting it, and judging the lease of its owner."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import election as e
from rallypoint.core.values import (
    Address,
    EndedOwner,
    NodeId,
    RunSettings,
)
from tests.core.claimant import (
    CLOSE,
    HOSTED,
    THERE,
    TIMING,
    Claimant,
    a_round,
    found,
    good,
    holder,
    keep,
    lease_in,
    moving,
    register,
    revoked,
    run_swap_of,
    serving,
    swap_of,
)


class TestAdopting:
    def test_a_new_run_begins_in_term_1(self):
        swap = run_swap_of(Claimant().sees(None, 0.0))
        assert swap.expected is None
        assert e.decode_run(swap.value) == register("me", 1)

    def test_the_first_swap_wins(self):
        me = Claimant()
        assert me.wins() == register("me", 1)
        assert me.claim.state is e.ClaimState.OWNED
        assert (me.claim.register, me.claim.version) == (register("me", 1), 8)
        assert me.claim.next_tick_s() is None

    def test_the_seal_keeps_everything_that_was_committed(self):
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

    def test_its_own_run_is_sealed_again(self):
        # What it had tried in its former reign may still be under way: R5.
        swap = run_swap_of(Claimant().sees(register("me", 4, sequence=2), 0.0))
        assert e.decode_run(swap.value) == register("me", 5, formers=("me",))

    @pytest.mark.parametrize("owner", [None, revoked("other"), moving()])
    def test_a_run_whose_owner_is_gone_revoked_or_moving_is_adopted_at_once(self, owner):
        swap = run_swap_of(Claimant().judges(owner, 0.0))
        assert swap.expected == 7
        assert e.decode_run(swap.value) == register("me", 5, formers=("other",))

    def test_after_an_unknown_outcome_the_same_bytes_are_sent_again(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        assert me.claim.run_swapped(swap, e.Unknown("timeout"), 0.2) == []
        assert me.claim.tick(0.5) == [swap]
        assert me.claim.tick(1.0) == [swap]
        (won,) = me.claim.run_swapped(swap, e.Conflict(e.Versioned(swap.value, 4)), 1.1)
        assert won == e.Elected(register("me", 1), 4)

    def test_the_slower_of_two_candidates_learns_the_winner(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        there = e.Conflict(found(register("other", 1), 1))
        (asked,) = me.claim.run_swapped(swap, there, 0.1)
        assert isinstance(asked, e.ReadLease)
        actions = me.claim.lease_read(asked, found(serving()), 0.2)
        assert actions == [e.OwnedElsewhere(THERE, "other")]

    def test_without_a_good_lease_no_run_is_adopted(self):
        me = Claimant(lease=holder())
        assert me.sees(None, 0.0) == []
        assert me.claim.state is e.ClaimState.WAITING

    def test_adoption_continues_when_the_lease_is_good_again(self):
        me = Claimant(lease=holder())
        take = swap_of(me.lease.tick(0.0))
        me.sees(None, 0.1)
        assert me.claim.tick(0.15) == []
        me.lease.swapped(take, e.Swapped(1), 0.2)
        run_swap_of(me.sees(None, 0.2))

    def test_a_swap_is_repeated_only_under_a_good_lease(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        assert me.claim.tick(5.0) == []
        keep(me.lease, 5.1)
        assert me.claim.tick(5.6) == [swap]

    def test_an_adoption_confirmed_too_late_is_not_won(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        assert me.claim.run_swapped(swap, e.Swapped(1), 10.0) == []
        assert not me.claim.may_decide(10.0)
        keep(me.lease, 10.1)
        again = run_swap_of(me.sees(register("me", 1), 10.2, 1))
        assert e.decode_run(again.value).term == 2

    def test_an_adoption_after_the_lease_was_revoked_is_not_won(self):
        me = Claimant()
        swap = run_swap_of(me.sees(None, 0.0))
        renewal = swap_of(me.lease.tick(1.0))
        me.lease.swapped(renewal, e.Conflict(found(revoked())), 1.1)
        assert me.claim.run_swapped(swap, e.Swapped(1), 1.2) == []
        assert me.claim.tick(50.0) == []
        assert me.claim.state is e.ClaimState.IDLE
        assert me.claim.begin(50.0) == []


class TestAnOwnerThatLives:
    def test_nodes_attach_to_the_owner(self):
        me = Claimant()
        assert me.judges(serving(), 0.0) == [e.OwnedElsewhere(THERE, "other")]
        assert me.claim.state is e.ClaimState.ELSEWHERE

    def test_the_owner_is_read_three_times_per_ttl(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        assert me.claim.next_tick_s() == pytest.approx(1.0)

    def test_an_owner_that_renews_keeps_its_run(self):
        me = Claimant()
        for beat in range(1, 20):
            if beat > 1:
                keep(me.lease, float(beat))
            actions = me.judges(serving(beat=beat), float(beat), version=beat)
            assert actions == [e.OwnedElsewhere(THERE, "other")]


class TestAnOwnerThatDoesNotRenew:
    def never_renews(self, me: Claimant, until_s: float, version: int = 3) -> list[e.Action]:
        """Look whenever the claim asks to, and find the owner's lease unchanged."""
        actions = me.judges(serving(), 0.0, version)
        while (now_s := me.claim.next_tick_s() or 0.0) <= until_s:
            keep(me.lease, now_s)
            actions = me.judges(serving(), now_s, version)
        return actions

    def test_a_lease_is_revoked_after_the_ttl_on_the_readers_clock(self):
        me = Claimant()
        swap = swap_of(self.never_renews(me, 3.0))
        assert (swap.process, swap.expected) == ("other", 3)
        assert lease_in(swap) == revoked("other", by="me")

    def test_a_lease_is_kept_until_the_ttl_is_over(self):
        me = Claimant()
        assert self.never_renews(me, 2.9) == [e.OwnedElsewhere(THERE, "other")]

    def test_the_last_read_is_when_the_ttl_ends(self):
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
    def test_only_a_node_whose_lease_was_revoked_counts_as_gone(
        self, owner: e.Lease | None, own_node: NodeId | None, former_host: NodeId | None
    ):
        me = Claimant(lease=good(0.0, node=own_node))
        adopt = run_swap_of(me.judges(owner, 0.0))
        (won,) = me.claim.run_swapped(adopt, e.Swapped(8), 0.1)
        assert isinstance(won, e.Elected)
        assert won.former_host == former_host

    def test_after_the_revocation_the_run_is_adopted_in_the_next_term(self):
        me = Claimant()
        swap = swap_of(self.never_renews(me, 3.0))
        adopt = run_swap_of(me.claim.lease_swapped(swap, e.Swapped(4), 3.1))
        assert adopt.expected == 7
        assert e.decode_run(adopt.value) == register("me", 5, formers=("other",))

    def test_own_bytes_in_a_conflict_mean_a_revocation(self):
        me = Claimant()
        swap = swap_of(self.never_renews(me, 3.0))
        run_swap_of(me.claim.lease_swapped(swap, e.Conflict(e.Versioned(swap.value, 4)), 3.1))

    def test_an_unknown_revocation_is_repeated_with_the_same_bytes(self):
        me = Claimant()
        swap = swap_of(self.never_renews(me, 3.0))
        assert me.claim.lease_swapped(swap, e.Unknown("timeout"), 3.2) == []
        assert me.claim.tick(3.5) == [swap]

    def test_a_renewal_before_the_revocation_keeps_the_lease(self):
        me = Claimant()
        swap = swap_of(self.never_renews(me, 3.0))
        (asked,) = me.claim.lease_swapped(swap, e.Conflict(found(serving(beat=2), 4)), 3.1)
        assert isinstance(asked, e.ReadRun)
        (judge,) = me.claim.run_read(asked, found(register()), 3.2)
        assert isinstance(judge, e.ReadLease)
        actions = me.claim.lease_read(judge, found(serving(beat=2), 4), 3.2)
        assert actions == [e.OwnedElsewhere(THERE, "other")]

    def test_a_candidate_that_revoked_and_died_leaves_the_run_to_the_next(self):
        me = Claimant()
        swap = swap_of(self.never_renews(me, 3.0))
        me.claim.lease_swapped(swap, e.Conflict(found(revoked("other", by="third"), 4)), 3.1)
        asked = me.claim.tick(3.6)[0]
        assert isinstance(asked, e.ReadRun)
        (judge,) = me.claim.run_read(asked, found(register()), 3.7)
        assert isinstance(judge, e.ReadLease)
        run_swap_of(me.claim.lease_read(judge, found(revoked("other", by="third"), 4), 3.7))

    def test_another_process_at_the_same_version_is_another_lease(self):
        me = Claimant()
        self.never_renews(me, 2.5, version=3)
        run = register("third", 5)
        actions = me.judges(serving("third"), 3.0, version=3, run=run)
        assert actions == [e.OwnedElsewhere((Address("third", 2),), "third")]

    def test_without_a_good_lease_nothing_is_revoked(self):
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
        TestAnOwnerThatDoesNotRenew().never_renews(made["revoking"], 3.0)
        made["checking"] = Claimant()
        made["checking"].claim.answers_floor = False
        made["checking"].sees(None, 0.0)
        made["contesting"] = Claimant()
        made["contesting"].judges(serving(), 0.0, 3)
        (asked,) = made["contesting"].claim.contest(EndedOwner("other", 3), 0.0)
        assert isinstance(asked, e.ReadRun)
        (judge,) = made["contesting"].claim.run_read(asked, found(register()), 0.0)
        assert isinstance(judge, e.ReadLease)
        made["contesting"].claim.lease_read(judge, found(serving(), 3), 0.0)
        return made

    @pytest.mark.parametrize("name", [*sorted(e.ClaimState), "committing"])
    def test_late_answers_are_ignored_in_every_state(self, name: str):
        claim = self.states()[name].claim
        before = (claim.state, claim.register, claim.version, claim.next_tick_s())
        another = e.SwapLease("third", 3, b"x")
        mine = e.SwapRun(3, e.encode(register("me", 9)))
        given: list[e.Action] = [
            *claim.run_read(e.ReadRun(99), found(register("me", 9)), 3.0),
            *claim.run_read(e.ReadRun(99), None, 3.0),
            *claim.floor_read(e.ReadFloor(99), None, 3.0),
            *claim.mistake_read(e.ReadMistake(99), has_mistake=False, now_s=3.0),
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

    def test_an_answer_to_an_earlier_read_is_ignored(self):
        me = Claimant()
        old = me.read_run(0.0)
        me.claim.deposed(0.1)
        me.read_run(0.2)
        assert me.claim.run_read(old, None, 0.3) == []

    def test_a_question_to_a_slow_engine_is_repeated_unchanged(self):
        # An answer that takes longer than retry_s must not be late for ever.
        me = Claimant()
        asked = me.read_run(0.0)
        assert me.claim.tick(0.5) == [asked]
        run_swap_of(me.claim.run_read(asked, None, 0.7))


class TestReadingAgain:
    def test_ticks_alone_detect_an_owner_that_dies_later(self):
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

    def test_the_run_of_an_owner_that_releases_it_is_claimed(self):
        me = Claimant()
        me.judges(serving(), 0.0)
        swap = run_swap_of(me.sees(register("", 4, sequence=3), 1.0))
        assert e.decode_run(swap.value) == register("me", 5)

    def after_a_resignation(self, *, is_yielding: bool) -> Claimant:
        """It has resigned in term 1, and waits 40 s."""
        me = Claimant()
        me.wins()
        swap = run_swap_of(me.claim.resign(0.0, 40.0, is_yielding=is_yielding))
        assert me.claim.run_swapped(swap, e.Swapped(9), 0.0) == []
        assert me.claim.state is e.ClaimState.IDLE
        return me

    def takes_s(self, me: Claimant, free: e.RunRegister) -> float:
        """When it takes a run that is free from now on."""
        asked = me.sees(free, 1.0)
        now_s = 1.0
        while now_s < 100.0:
            if asked and isinstance(asked[0], e.ReadRun):
                asked = me.claim.run_read(asked[0], found(free), now_s)
            if asked:
                return now_s
            now_s += 1.0
            keep(me.lease, now_s)
            asked = me.claim.tick(now_s)
        raise AssertionError("it does not take the run")

    def test_who_resigned_for_others_waits_until_they_had_the_time_to_try(self):
        me = self.after_a_resignation(is_yielding=True)
        assert self.takes_s(me, register("", 1)) == 40.0

    def test_r7_who_resigned_for_others_waits_no_longer_once_one_has_tried(self):
        """Else all who have tried wait at the same time, and nobody owns the run."""
        me = self.after_a_resignation(is_yielding=True)
        assert self.takes_s(me, register("", 2)) == 1.0 + TIMING.ttl_s

    def test_a_pause_after_an_error_is_kept(self):
        me = self.after_a_resignation(is_yielding=False)
        assert self.takes_s(me, register("", 2)) == 40.0

    def test_a_claim_that_has_not_begun_reads_nothing(self):
        claim = Claimant().claim
        assert claim.next_tick_s() is None
        assert claim.tick(100.0) == []


class TestObservationsOfAnotherPart:
    SEEN = e.Seen("other", 7, 10.0)

    def judging(self, seen: e.Seen | None, now_s: float) -> list[e.Action]:
        """A claim to a run of another owner, whose lease has version 7."""
        claim = e.Claim("run", "ledger", good(now_s))
        (asked,) = claim.begin(now_s, seen)
        assert isinstance(asked, e.ReadRun)
        (lease,) = claim.run_read(asked, found(register()), now_s)
        assert isinstance(lease, e.ReadLease)
        return claim.lease_read(lease, found(serving()), now_s)

    def test_a_lease_seen_elsewhere_need_not_be_watched_for_another_ttl(self):
        (revoke,) = self.judging(self.SEEN, 13.0)
        assert isinstance(revoke, e.SwapLease)
        assert (revoke.process, revoke.expected) == ("other", 7)

    def test_an_observation_before_the_ttl_is_over_is_not_enough(self):
        (elsewhere,) = self.judging(self.SEEN, 12.9)
        assert isinstance(elsewhere, e.OwnedElsewhere)

    @pytest.mark.parametrize("seen", [None, e.Seen("other", 6, 10.0), e.Seen("third", 7, 10.0)])
    def test_an_observation_counts_for_one_lease_at_one_version(self, seen: e.Seen | None):
        (elsewhere,) = self.judging(seen, 13.0)
        assert isinstance(elsewhere, e.OwnedElsewhere)

    def test_a_refused_claim_uses_an_observation(self):
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
