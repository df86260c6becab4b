"""An owner that no node reaches resigns, if another process can take the run."""

from __future__ import annotations

from rallypoint.core import election as e


class TestResigning:
    def yielding(self) -> e.Resignation:
        """Owner since 5.0. At the first look, a second process renews its lease."""
        yielding = e.Resignation(10.0, 3.0)
        yielding.won(5.0)
        yielding.should_resign({"second": 1}, 12.0)
        return yielding

    def test_an_unreachable_owner_resigns_to_a_process_that_renews(self):
        assert not self.yielding().should_resign({"second": 2}, 14.9)
        assert self.yielding().should_resign({"second": 2}, 15.0)

    def test_without_a_successor_the_owner_stays(self):
        assert not self.yielding().should_resign({}, 15.0)
        assert not self.yielding().should_resign({"second": 1}, 15.0), "its lease stands still"
        assert not self.yielding().should_resign({"third": 7}, 15.0), "seen once only"

    def test_if_others_cannot_be_listed_the_owner_resigns_all_the_same(self):
        assert not self.yielding().should_resign(None, 14.9)
        assert self.yielding().should_resign(None, 15.0)

    def test_an_owner_that_a_node_reaches_stays(self):
        yielding = self.yielding()
        yielding.heard()
        assert not yielding.should_resign({"second": 2}, 100.0)

    def test_an_owner_that_is_no_longer_reached_resigns_too(self):
        yielding = self.yielding()
        yielding.heard()
        yielding.unheard(50.0)
        yielding.unheard(55.0)
        assert not yielding.should_resign({"second": 9}, 59.0)
        assert yielding.should_resign({"second": 10}, 60.0)

    def test_leases_are_read_twice_before_a_resignation(self):
        yielding = e.Resignation(10.0, 3.0)
        assert not yielding.should_look(4.0)
        yielding.won(5.0)
        looks_s = [t / 2 for t in range(10, 50) if yielding.should_look(t / 2)]
        assert looks_s == [12.0, 15.0, 18.0, 21.0, 24.0]

    def test_only_an_owner_can_resign(self):
        assert not e.Resignation(10.0, 3.0).should_resign(None, 100.0)

    def test_each_pause_is_twice_as_long_up_to_a_bound(self):
        yielding = e.Resignation(10.0, 3.0)
        pauses_s = []
        for _ in range(8):
            yielding.won(0.0)
            pauses_s.append(yielding.pause_s())
        assert pauses_s == [20.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0]
        yielding.heard()
        assert yielding.pause_s() == 20.0

    def test_a_pause_ends_the_ownership(self):
        yielding = e.Resignation(10.0, 3.0)
        yielding.won(0.0)
        yielding.pause_s()
        assert not yielding.should_resign(None, 100.0)
