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


class TestAddressesOfAnOwner:
    def test_nodes_attach_at_the_address_in_the_owners_lease(self):
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
    def test_without_a_serving_lease_there_is_no_address(
        self, run: e.RunRegister | None, lease: e.Lease | None
    ):
        assert e.where(run, lease) is None


class TestDiscovery:
    def discovery(self, name: str = "a", **options: Any) -> e.Discovery:
        made = e.Discovery(name, TIMING, **{"candidates": 2, **options})
        made.search(0.0, 0.0)
        return made

    def looks(
        self,
        discovery: e.Discovery,
        now_s: float,
        run: e.RunRegister | None,
        lease: e.Lease | None = None,
        jitter: float = 0.5,
    ) -> list[e.DiscoveryAction]:
        (asked,) = discovery.tick(now_s, jitter)
        assert isinstance(asked, e.ReadRun)
        findings = discovery.run_read(asked, None if run is None else found(run), now_s, jitter)
        if findings and isinstance(findings[0], e.ReadLease):
            there = None if lease is None else found(lease)
            return discovery.lease_read(findings[0], there, now_s, jitter)
        return findings

    def test_a_node_attaches_to_the_address_in_the_owners_lease(self):
        discovery = self.discovery()
        run = register(round=a_round(3, "a"))
        found_there = self.looks(discovery, 0.0, run, serving())
        assert found_there == [e.AttachTo(serving(), Stamp("ledger", 4, 3))]
        assert discovery.next_tick_s() is None

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
    def test_r5_a_coordinator_of_an_ended_term_is_ignored(
        self, owner: str, lease: e.Lease | None, term: int
    ):
        discovery = self.discovery()
        self.looks(discovery, 0.0, register(owner, 4), lease)
        assert discovery.floor == Stamp("ledger", term, 0)

    def test_a_node_becomes_a_candidate_if_it_cannot_reach_the_owner(self):
        """Otherwise an owner behind a firewall would never resign."""
        discovery = self.discovery(nodes=2)
        self.looks(discovery, 0.0, register(round=a_round(3, "a")), serving())
        assert not discovery.is_candidate_beside_owner(1.0, 0.5)
        discovery.search_again(1.0, 0.5)
        assert not discovery.is_candidate_beside_owner(1.0 + 0.9 * TIMING.ttl_s, 0.99)
        assert discovery.is_candidate_beside_owner(1.0 + TIMING.ttl_s, 0.99)
        discovery.search(10.0, 0.0)  # It had a coordinator meanwhile.
        assert not discovery.is_candidate_beside_owner(10.0, 0.5)

    @pytest.mark.parametrize("nodes", [10, 1_000, 10_000])
    def test_few_nodes_of_a_large_run_become_candidates(self, nodes):
        rng = random.Random(nodes)
        discoveries = [self.discovery(nodes=nodes, candidates=3) for _ in range(nodes)]
        for each in discoveries:
            each.is_candidate_beside_owner(0.0, rng.random())
        early_s = TIMING.ttl_s * 1.1
        assert sum(each.is_candidate_beside_owner(early_s, 0.0) for each in discoveries) <= 15
        late_s = 4 * TIMING.ttl_s
        assert any(each.is_candidate_beside_owner(late_s, 0.0) for each in discoveries)

    def test_each_node_reads_at_its_own_time(self):
        discovery = self.discovery(nodes=10_000)
        discovery.search(10.0, 0.25)
        assert discovery.next_tick_s() == 10.25
        assert discovery.tick(10.2, 0.5) == []
        discovery.tick(10.25, 0.5)
        assert discovery.next_tick_s() == 10.25 + TIMING.ttl_s

    def test_a_small_run_reads_at_once_and_a_large_one_within_a_second(self):
        for nodes, latest_s in ((8, 10.004), (1_000, 10.5), (100_000, 11.0)):
            discovery = self.discovery(nodes=nodes)
            discovery.search(10.0, 1.0)
            assert discovery.next_tick_s() == pytest.approx(latest_s)

    def test_the_nodes_of_a_large_run_read_less_often(self):
        for nodes, often_s in ((8, 1.0), (2_000, 1.0), (4_000, 2.0), (100_000, TIMING.ttl_s)):
            discovery = self.discovery(nodes=nodes)
            discovery.tick(0.0, 0.5)
            assert discovery.next_tick_s() == pytest.approx(often_s)

    def test_a_change_event_of_the_engine_causes_a_read(self):
        discovery = self.discovery(nodes=10_000)
        discovery.search(10.0, 0.9)
        discovery.look_now(10.1)
        assert discovery.tick(10.1, 0.5) == [e.ReadRun(1)]

    def test_nodes_read_at_different_times_after_a_change(self):
        discovery = self.discovery(nodes=1_000)
        discovery.tick(0.0, 0.9)
        discovery.look_now(0.1, 0.5)
        assert discovery.next_tick_s() == pytest.approx(0.35)

    def test_in_a_small_run_every_node_is_a_candidate_at_once(self):
        assert self.looks(self.discovery(nodes=2), 0.0, None) == [e.BecomeCandidate()]

    def test_in_a_large_run_chance_decides_when_a_node_is_a_candidate(self):
        assert self.looks(self.discovery(nodes=1_000), 0.0, None, jitter=0.001) == [
            e.BecomeCandidate()
        ]
        discovery = self.discovery(nodes=1_000)
        assert self.looks(discovery, 0.0, None, jitter=0.5) == []
        # 2 ** (t / 0.3 s) * 4 / 3 of 1,000 nodes are to stand by t: ln 2 of each is chance's half.
        due_s = 0.3 * math.log2(math.log(2) * 1_000 / (2 * 2 / 3))
        now_s = 0.0
        while now_s < due_s - 0.001:
            now_s = discovery.next_tick_s() or 0.0
            stood = self.looks(discovery, now_s, None, jitter=0.5)
        assert now_s == pytest.approx(due_s)
        assert stood == [e.BecomeCandidate()]

    def test_the_number_of_nodes_is_read_from_the_register(self):
        settings = RunSettings(min_nodes=300, max_nodes=900, expected_nodes=500)
        begun = register("", settings=settings)
        discovery = self.discovery(nodes=2)
        self.looks(discovery, 0.0, begun)
        assert discovery.nodes == 500
        discovery = self.discovery(nodes=2)
        self.looks(discovery, 0.0, register("", settings=settings, round=a_round(3, "x", "y", "z")))
        assert discovery.nodes == 3

    def test_an_unreachable_owner_is_read_again_when_its_lease_may_end(self):
        discovery = self.discovery(look_s=2.0)
        self.looks(discovery, 1.0, register(), serving())
        discovery.search_again(1.0, 0.0)
        assert discovery.next_tick_s() == 2.0
        self.looks(discovery, 3.5, register(), serving())
        discovery.search_again(3.5, 0.0)
        assert discovery.next_tick_s() == 1.0 + TIMING.ttl_s

    def test_a_slow_engine_slows_the_growth_of_the_chance(self):
        discovery = self.discovery(nodes=1_000)
        (asked,) = discovery.tick(0.0, 0.5)
        assert isinstance(asked, e.ReadRun)
        assert discovery.run_read(asked, None, 2.0, 0.5) == []
        while (now_s := discovery.next_tick_s() or 0.0) and not self.looks(discovery, now_s, None):
            pass
        assert now_s == pytest.approx(2.0 + 4.0 * math.log2(math.log(2) * 1_000 / (2 * 2 / 3)))

    @pytest.mark.parametrize("lease", [None, moving(), revoked("other")])
    def test_an_owner_that_does_not_serve_counts_as_no_owner(self, lease: e.Lease | None):
        assert self.looks(self.discovery(), 0.0, register(), lease) == [e.BecomeCandidate()]

    def test_an_owner_that_does_not_renew_for_the_ttl_counts_as_no_owner(self):
        discovery = self.discovery()
        for now_s in (0.0, 1.5):
            (attach,) = self.looks(discovery, now_s, register(), serving())
            assert isinstance(attach, e.AttachTo)
            discovery.search(now_s, 0.0)
        assert self.looks(discovery, 3.0, register(), serving()) == [
            e.BecomeCandidate(e.Seen("other", 7, 0.0))
        ]

    def test_a_closed_run_is_over(self):
        for owner in ("other", ""):
            discovery = self.discovery()
            assert self.looks(discovery, 0.0, register(owner, close=CLOSE)) == [e.RunOver(CLOSE)]
            assert discovery.next_tick_s() is None

    def test_an_unanswered_read_is_repeated(self):
        discovery = self.discovery()
        asked = discovery.tick(0.0, 0.5)
        assert discovery.tick(1.0, 0.5) == asked

    def test_a_late_answer_changes_nothing(self):
        discovery = self.discovery()
        (old,) = discovery.tick(0.0, 0.5)
        assert isinstance(old, e.ReadRun)
        discovery.search(0.5, 0.0)
        discovery.tick(0.5, 0.5)
        assert discovery.run_read(old, None, 0.6, 0.5) == []
        assert discovery.lease_read(e.ReadLease("other", 1), None, 0.6, 0.5) == []

    def test_an_unreadable_register_is_read_again(self):
        discovery = self.discovery()
        (asked,) = discovery.tick(0.0, 0.5)
        assert isinstance(asked, e.ReadRun)
        with pytest.raises(e.UnreadableError):
            discovery.run_read(asked, e.Versioned(b"x", 1), 0.1, 0.5)
        assert discovery.tick(1.0, 0.5) == [asked]

    @pytest.mark.parametrize("wrong", [{"candidates": 0}, {"look_s": 0.0}])
    def test_senseless_settings_are_refused(self, wrong: dict[str, Any]):
        with pytest.raises(ValueError, match="must be positive"):
            e.Discovery("a", TIMING, **{"candidates": 1, **wrong})
