"""What a seed draws before a job begins: its sizes, its settings, and the faults that meet it.

A plan is data: it can be printed, changed and played again (`Job(seed, plan=...)`). Each fault has
a chance of its own, so that a plan with fewer faults plays the others as before.

To add a size or a setting, add a field with a default and draw it last in `Plan.draw`: then the
plans of known seeds stay as they are in all other fields.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec


class PlannedFault(msgspec.Struct, frozen=True):
    """One fault. `kind`: its name in `faults.FAULTS`."""

    at_s: float
    """When it begins, in seconds after the world."""
    kind: str
    chance: int
    """The seed of its details: whom it meets, how, and for how long."""


class Plan(msgspec.Struct, frozen=True):
    """See above. Times in seconds."""

    nodes: int
    min_nodes: int
    faults: tuple[PlannedFault, ...] = ()
    ledger: str = "etcd"
    """A name in `ledgers.LEDGERS`."""
    program: str = "node"
    """What each node runs: a name in `programs.PROGRAMS`."""
    ledger_members: int = 1
    lease_ttl_s: float = 5.0
    wild_clocks: bool = False
    """Whether the machines' clocks run at different rates."""
    ends: bool = False
    """Whether workers finish once there is peace."""

    @classmethod
    def draw(cls, seed: int, kinds: Sequence[str]) -> Plan:
        """The plan of a seed. `kinds`: of which its faults are."""
        draw = random.Random(f"{seed}/plan")
        nodes = draw.choice((2, 3, 3, 4, 5))
        count, calm_s = draw.randrange(4, 24), draw.choice((0.3, 1.0, 4.0))
        faults, at_s = [], 2.0
        for _ in range(count):
            at_s += draw.expovariate(1.0 / calm_s)
            faults.append(PlannedFault(round(at_s, 3), draw.choice(kinds), draw.getrandbits(32)))
        return cls(
            nodes=nodes,
            min_nodes=draw.choice((1, max(1, nodes - 1), nodes)),
            faults=tuple(faults),
            ledger_members=draw.choice((1, 3)),
            lease_ttl_s=draw.choice((2.0, 5.0, 10.0)),
            wild_clocks=draw.random() < 0.2,
            ends=draw.random() < 0.5,
        )
