"""A node looks for the coordinator of its run, and finds out when to become a candidate."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from rallypoint.core import election as e
from rallypoint.core.values import (
    RunSettings,
    Stamp,
)
from tests.core.claimant import (
    CLOSE,
    THERE,
    TIMING,
    a_round,
    found,
    moving,
    register,
    revoked,
    serving,
)


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
