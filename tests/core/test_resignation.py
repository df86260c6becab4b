"""An owner that no node reaches resigns, if another process can take the run."""

from __future__ import annotations

from rallypoint.core import election as e


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
