"""An owner that cannot be reached resigns, if another process may gather more nodes."""

from __future__ import annotations

import pytest

from rallypoint.core import election as e

ALONE = e.Heard(working=1, minimum=2, in_round=2, is_alone=True)
"""Its own node, where a round needs two."""
ENOUGH = e.Heard(working=1, minimum=1, in_round=3, is_alone=True)
"""Its own node, which is enough. The run had three nodes."""
TWO_OF_THREE = e.Heard(working=2, minimum=3, in_round=3, is_alone=False)
WELL = e.Heard(working=2, minimum=2, in_round=2, is_alone=False)


def others(beat: int, *, nodes: int = 1, replicas: int = 0) -> list[e.Other]:
    """The leases of nodes that wait and of replicas, after so many renewals."""
    waiting = [e.Other(f"node {i}", beat, waits=True) for i in range(nodes)]
    return waiting + [e.Other(f"serve {i}", beat, waits=False) for i in range(replicas)]


def resigns_s(
    resignation: e.Resignation,
    heard: e.Heard,
    *,
    nodes: int = 1,
    replicas: int = 0,
    since_s: float = 0.0,
    until_s: float = 2000.0,
) -> float | None:
    """When it resigns, if all others renew their leases in time; None: not before `until_s`."""
    at_s = since_s
    while at_s < until_s:
        resignation.heard(heard, at_s)
        if resignation.should_look(heard, at_s):
            found = others(int(at_s), nodes=nodes, replicas=replicas)
            if resignation.should_resign(found, heard, at_s):
                return at_s
        at_s += 1.0
    return None


class TestResigning:
    def yielding(self) -> e.Resignation:
        """Owner since 5.0. At the first look, a second process renews its lease."""
        yielding = e.Resignation(10.0, 3.0)
        yielding.won(5.0)
        yielding.heard(ALONE, 5.0)
        assert not yielding.should_resign(others(1), ALONE, 12.0)
        return yielding

    def test_an_unreachable_owner_resigns_to_a_process_that_renews(self):
        assert not self.yielding().should_resign(others(2), ALONE, 14.9)
        assert self.yielding().should_resign(others(2), ALONE, 15.0)

    def test_it_resigns_to_a_replica_too(self):
        assert resigns_s(e.Resignation(10.0, 3.0), ALONE, nodes=0, replicas=1) == 10.0

    def test_without_a_successor_the_owner_stays(self):
        assert not self.yielding().should_resign([], ALONE, 15.0)
        assert not self.yielding().should_resign(others(1), ALONE, 15.0), "its lease stands still"
        third = [e.Other("third", 7, waits=True)]
        assert not self.yielding().should_resign(third, ALONE, 15.0), "seen once only"

    def test_a_lease_that_was_seen_long_ago_proves_no_life(self):
        yielding = self.yielding()
        assert not yielding.should_resign(others(2), ALONE, 30.0)
        assert yielding.should_resign(others(3), ALONE, 33.0)

    def test_if_others_cannot_be_listed_the_owner_resigns_all_the_same(self):
        assert not self.yielding().should_resign(None, ALONE, 14.9)
        assert self.yielding().should_resign(None, ALONE, 15.0)
        assert not self.yielding().should_resign(None, ENOUGH, 15.0)

    def test_an_owner_that_a_node_reaches_stays(self):
        yielding = self.yielding()
        yielding.heard(WELL, 14.0)
        assert not yielding.should_resign(others(2), WELL, 15.0)
        assert resigns_s(yielding, WELL, since_s=15.0) is None

    def test_an_owner_that_is_no_longer_reached_resigns_too(self):
        yielding = self.yielding()
        yielding.heard(WELL, 14.0)
        assert resigns_s(yielding, ALONE, since_s=50.0) == 60.0

    def test_leases_are_read_twice_before_a_resignation(self):
        yielding = e.Resignation(10.0, 3.0)
        assert not yielding.should_look(ALONE, 4.0)
        yielding.won(5.0)
        looks_s = [t / 2 for t in range(10, 50) if yielding.should_look(ALONE, t / 2)]
        assert looks_s == [12.0, 15.0, 18.0, 21.0, 24.0]

    def test_only_an_owner_can_resign(self):
        assert not e.Resignation(10.0, 3.0).should_resign(None, ALONE, 100.0)

    def test_a_pause_ends_the_ownership(self):
        yielding = e.Resignation(10.0, 3.0)
        yielding.won(0.0)
        yielding.pause_s()
        assert not yielding.should_resign(None, ALONE, 100.0)

    def test_each_pause_is_twice_as_long_up_to_a_bound(self):
        yielding = e.Resignation(10.0, 3.0)
        pauses_s = []
        for _ in range(8):
            yielding.won(0.0)
            pauses_s.append(yielding.pause_s())
        assert pauses_s == [20.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0]
        yielding.heard(WELL, 1.0)
        assert yielding.pause_s() == 20.0


def waits_s(heard: e.Heard, times: int) -> list[float | None]:
    """How long an owner waits before each of its resignations, while nobody else is heard."""
    yielding, waits = e.Resignation(10.0, 5.0), []
    for _ in range(times):
        yielding.won(0.0)
        waits.append(resigns_s(yielding, heard, nodes=2, until_s=8000.0))
        yielding.pause_s()
    return waits


class TestIsolation:
    """R7: nobody hands a run to and fro for long, and whoever can form a round has the time."""

    def test_without_enough_nodes_each_wait_is_longer_up_to_a_bound(self):
        assert waits_s(ALONE, 5) == [10.0, 20.0, 40.0, 40.0, 40.0]

    def test_an_owner_with_a_round_is_disturbed_ever_more_rarely(self):
        assert waits_s(ENOUGH, 5) == [10.0, 80.0, 640.0, 5120.0, 5120.0]

    @pytest.mark.parametrize(
        ("nodes", "replicas", "expected"),
        [(0, 0, None), (1, 0, None), (0, 2, None), (2, 0, 10.0), (1, 1, 10.0)],
    )
    def test_an_owner_with_a_round_resigns_to_a_larger_group_only(
        self, nodes: int, replicas: int, expected: float | None
    ):
        yielding = e.Resignation(10.0, 5.0)
        yielding.won(0.0)
        assert resigns_s(yielding, ENOUGH, nodes=nodes, replicas=replicas) == expected

    def test_the_run_had_others_though_its_round_is_smaller_by_now(self):
        yielding = e.Resignation(10.0, 5.0)
        yielding.won(0.0)
        yielding.heard(ENOUGH, 0.0)
        smaller = e.Heard(working=1, minimum=1, in_round=1, is_alone=True)
        assert resigns_s(yielding, smaller, nodes=2) == 10.0

    def test_a_run_of_one_node_that_never_had_others_reads_no_leases(self):
        yielding = e.Resignation(10.0, 5.0)
        yielding.won(0.0)
        single = e.Heard(working=1, minimum=1, in_round=1, is_alone=True)
        yielding.heard(single, 0.0)
        assert not any(yielding.should_look(single, float(at_s)) for at_s in range(1000))

    def test_who_hears_another_node_keeps_the_run_though_they_are_too_few(self):
        # One of three has finished. The round goes on with two, and a node that is cut off waits.
        assert resigns_s(e.Resignation(10.0, 5.0), TWO_OF_THREE) is None
        assert resigns_s(e.Resignation(10.0, 5.0), TWO_OF_THREE, nodes=2, replicas=1) is None

    def test_a_run_at_rest_reads_the_leases_ever_more_rarely(self):
        yielding = e.Resignation(10.0, 5.0)
        yielding.won(0.0)
        looks_s = []
        for at_s in range(300):
            yielding.heard(ENOUGH, float(at_s))
            if yielding.should_look(ENOUGH, float(at_s)):
                looks_s.append(at_s)
                assert not yielding.should_resign([], ENOUGH, float(at_s))
        assert looks_s == [5, 10, 20, 40, 80, 140, 200, 260]
