"""R1, R13: a run that begins again begins above every run that was removed."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import election as e
from tests.core.claimant import a_round, found, good, register, run_swap_of


class TestFloor:
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

    def test_a_new_run_begins_above_the_floor(self):
        made, swap = self.begins(self.there(self.FLOOR))
        begun = e.decode_run(swap.value)
        assert (begun.term, begun.number, begun.sequence) == (8, 40, 0)
        checked = self.floor(made.run_swapped(swap, e.Swapped(8), 0.3))
        (won,) = made.floor_read(checked, self.there(self.FLOOR), 0.4)
        assert won == e.Elected(begun, 8)

    def test_without_a_floor_a_run_begins_in_term_1(self):
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

    def test_a_register_that_its_creator_never_checked_is_lifted_too(self):
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

    def test_an_unreadable_floor_is_read_again(self):
        made, asked = self.claim()
        floor = self.floor(made.run_read(asked, None, 0.1))
        with pytest.raises(e.UnreadableError):
            made.floor_read(floor, e.Versioned(b"x", 1), 0.2)
        assert made.tick(0.7) == [floor]
        assert made.floor_read(e.ReadFloor(99), None, 0.8) == []

    def test_the_floor_only_rises(self):
        low = register("p", 3, round=a_round(90, "a"))
        assert self.FLOOR.raised(low) == e.Floor(e.FORMAT, 7, 90)
        assert self.FLOOR.raised(register("p", 2)) == self.FLOOR

    def test_fields_of_a_newer_release_are_kept(self):
        raw = [*msgspec.msgpack.decode(e.encode(self.FLOOR)), "new"]
        kept = e.decode_floor(msgspec.msgpack.encode(raw)).raised(register("p", 9))
        assert msgspec.msgpack.decode(e.encode(kept)) == [e.FORMAT, 9, 40, "new"]
