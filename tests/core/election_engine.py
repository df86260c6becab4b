"""The engine of the simulated election, and what a seed draws for it.

What must not be here: a candidate, time, or which faults happen when.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from rallypoint.checkers.election_checker import ElectionChecker
from rallypoint.core import election as e
from rallypoint.ledger import single_value

LEDGER = "ledger"
TIMING = e.Timing()
SETTLE_S = TIMING.ttl_s + 3.5
"""The time after the faults have healed in which every candidate must know the one owner."""
NODES = ("node-a", "node-b")

Then = Callable[[Any], None]


class Plan(msgspec.Struct):
    """What a seed draws before the simulation begins."""

    candidates: int
    runs: int
    has_one_register: bool
    are_clocks_wild: bool
    """The rates of the clocks differ by more than the margin covers. Safety must hold even then."""
    is_versioned_together: bool
    """Whether all registers share one version counter, as in etcd, or each has its own."""
    chaos_s: float
    delay_s: float
    slow: float
    loss: float
    repeat: float
    trouble_s: float

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        return cls(
            candidates=rng.choice((3, 3, 3, 4, 4, 5, 7)),
            runs=rng.choice((1, 1, 1, 2)),
            has_one_register=rng.random() < 0.4,
            are_clocks_wild=rng.random() < 0.1,
            is_versioned_together=rng.random() < 0.5,
            chaos_s=rng.uniform(4.0, 12.0) if rng.random() < 0.85 else rng.uniform(12.0, 40.0),
            delay_s=rng.choice((0.002, 0.01, 0.03, 0.1)),
            slow=rng.choice((0.0, 0.01, 0.05)),
            loss=rng.choice((0.0, 0.02, 0.1, 0.3)),
            repeat=rng.choice((0.0, 0.02, 0.2)),
            trouble_s=rng.choice((0.2, 0.4, 0.8, 1.6)),
        )


class Engine:
    """Linearizable registers. The checker gets every write."""

    def __init__(self, plan: Plan, checker: ElectionChecker) -> None:
        self.cells: dict[str, e.Versioned] = {}
        self._checker = checker
        self._is_together = plan.is_versioned_together
        self._counters: dict[str, int] = {}
        if plan.has_one_register:
            empty = single_value.encode(single_value.RegisterMap.empty(LEDGER))
            self.cells["map"] = e.Versioned(empty, 1)

    def read(self, key: str) -> e.Versioned | None:
        return self.cells.get(key)

    def swap(self, key: str, expected: int | None, value: bytes) -> e.SwapOutcome:
        current = self.cells.get(key)
        if (None if current is None else current.version) != expected:
            return e.Conflict(current)
        counter = "" if self._is_together else key
        version = self._counters[counter] = self._counters.get(counter, 1) + 1
        self.cells[key] = e.Versioned(value, version)
        if key == "map":
            assert current is not None
            self._map_written(current.value, value)
        else:
            self._written(key, value)
        return e.Swapped(version)

    def leases(self) -> dict[str, e.Lease]:
        """The leases that exist, by key."""
        return {
            key: e.decode_lease(found.value)
            for key, found in self._logical().items()
            if key.startswith("lease/")
        }

    def sweep(self, key: str) -> None:
        """Remove a lease."""
        self._checker.lease_swept(key.removeprefix("lease/"))
        self._remove(key)

    def _remove(self, key: str) -> None:
        if "map" not in self.cells:
            del self.cells[key]
            return
        found = self.cells["map"]
        register_map = single_value.decode(found.value, "map").delete(key)
        assert register_map is not None
        self.cells["map"] = e.Versioned(single_value.encode(register_map), found.version + 1)
        self._counters["" if self._is_together else "map"] = found.version + 1

    def remove_run(self, key: str) -> None:
        """Remove a closed run: the floor first, as a coordinator does."""
        there = self._logical()
        register, floor = e.decode_run(there[key].value), there.get("floor")
        before = e.NO_FLOOR if floor is None else e.decode_floor(floor.value)
        self._put("floor", e.encode(before.raised(register)))
        self._remove(key)
        self._checker.run_removed(register.run_id)

    def _put(self, key: str, value: bytes) -> None:
        there = self._logical().get(key)
        expected = None if there is None else there.version
        if "map" not in self.cells:
            assert isinstance(self.swap(key, expected, value), e.Swapped)
            return
        found = self.cells["map"]
        placed = single_value.decode(found.value, "map").swap(key, expected, value)
        assert isinstance(placed, single_value.Placed)
        after = single_value.encode(placed.register_map)
        assert isinstance(self.swap("map", found.version, after), e.Swapped)

    def _logical(self) -> dict[str, e.Versioned]:
        if "map" not in self.cells:
            return self.cells
        register_map = single_value.decode(self.cells["map"].value, "map")
        return {
            key: e.Versioned(each.value, each.version) for key, each in register_map.entries.items()
        }

    def _map_written(self, before: bytes, after: bytes) -> None:
        old = single_value.decode(before, "map").entries
        changed = [
            (key, entry.value)
            for key, entry in single_value.decode(after, "map").entries.items()
            if old.get(key) != entry
        ]
        assert len(changed) == 1, changed
        self._written(*changed[0])

    def _written(self, key: str, value: bytes) -> None:
        if key.startswith("lease/"):
            self._checker.lease_written(e.decode_lease(value))
        elif key == "floor":
            self._checker.floor_written(e.decode_floor(value))
        else:
            self._checker.run_written(e.decode_run(value))
