"""The size of a world, and how often each fault and each wish may come in it."""

from __future__ import annotations

from typing import Final

from rallypoint.core.values import FrozenStruct, RunSettings

FAULTS: Final = (
    "cut",
    "silence",
    "die",
    "restart",
    "crash",
    "freeze",
    "lose lease",
    "limit",
    "fail",
    "ready again",
    "depart",
    "leave",
    "close",
    "drain",
    "order drain",
    "order evict",
    "order admit",
    "order scale",
    "order close",
    "power off",
    "misses",
    "hang",
)
"""The moves that a healthy world does not make. Each has a budget, so that a world is finite."""

SETTLE_S: Final = 0.0625
"""It has no rounding errors, so that equal times are equal."""


class Limits(FrozenStruct, frozen=True, kw_only=True):
    """The size of a world, and how often each fault and each wish may come."""

    nodes: int = 3
    coordinators: int = 2
    rounds: int = 2
    """A node that has been in this many rounds says goodbye and asks for no other."""
    min_nodes: int = 2
    max_nodes: int | None = None
    """None: as many as there are nodes. With fewer, some nodes are on standby."""
    expected_nodes: int | None = None
    max_restarts: int | None = 1
    cuts: int = 0
    """Connections that end though both processes live. What was on the way is lost."""
    silences: int = 0
    """Nodes that are connected and not heard for `suspect_after_s`."""
    deaths: int = 0
    """Nodes that die: their kernels say so."""
    restarts: int = 0
    """Dead nodes that start again, with the same name and another incarnation."""
    crashes: int = 0
    """Coordinators that die."""
    freezes: int = 0
    """Coordinators that stand still until their lease has run out, and go on later."""
    lost_leases: int = 0
    refused_writes: int = 0
    """Writes that the ledger does not accept at first, because of a limit."""
    failures: int = 0
    """Workers that fail."""
    ready_again: int = 0
    """Nodes that ask for another round while theirs is active."""
    departures: int = 0
    leaves: int = 0
    """Nodes that say goodbye while their round is active."""
    closes: int = 0
    drains: int = 0
    """Nodes that are going to leave, while their round goes on."""
    drain_orders: int = 0
    """Operators ask a node to leave in order."""
    evictions: int = 0
    admissions: int = 0
    """Operators lift the eviction of a node. An evicted node starts again by `restarts`."""
    scales: int = 0
    sizes: tuple[tuple[int, int], ...] = ((1, 1),)
    """To which numbers of nodes operators scale the run: the minimum and the maximum."""
    close_orders: int = 0
    power_offs: int = 0
    """Nodes whose hosts lose power: no kernel says so, and witnesses are asked."""
    misses: int = 0
    """Nodes that live, and of which two heartbeats are missing."""
    has_witnesses: bool = False
    """Whether nodes are asked about each other's hosts. Each node has a host of its own."""
    hangs: int = 0
    """Workers that stand still. All nodes report progress then."""
    steps: int = 0
    """How many steps a worker makes at most in a round; 0: it asks about none."""
    successes: bool = True
    """Whether workers can finish."""
    is_embedded: bool = False
    """Whether coordinator i runs in the process of node i, and dies with it."""
    begins_in_round: bool = False
    """Whether it begins with as many nodes as there is place for in round 1, so that all moves are
    spent on what follows."""
    slots_per_node: int = 2
    """The most connections of a node at a time, with those that have ended only on its side."""
    first_in_order: bool = True
    """Whether node i + 1 makes its first move only after node i. See the package."""

    @property
    def budget(self) -> tuple[int, ...]:
        """How often each of FAULTS may come."""
        return (
            self.cuts,
            self.silences,
            self.deaths,
            self.restarts,
            self.crashes,
            self.freezes,
            self.lost_leases,
            self.refused_writes,
            self.failures,
            self.ready_again,
            self.departures,
            self.leaves,
            self.closes,
            self.drains,
            self.drain_orders,
            self.evictions,
            self.admissions,
            self.scales,
            self.close_orders,
            self.power_offs,
            self.misses,
            self.hangs,
        )

    def __str__(self) -> str:
        """For a person: the size, and which faults and wishes come, each how often at most."""
        low, high = self.min_nodes, self.settings.max_nodes
        size = [
            _count(self.nodes, "node"),
            _count(self.coordinators, "coordinator"),
            _count(self.rounds, "round"),
            f"{low} to {high} nodes in a round" if low < high else f"{low} nodes in a round",
        ]
        if self.is_embedded:
            size.append("coordinators inside nodes")
        limited = zip(FAULTS, self.budget, strict=True)
        may_come = [f"{name} {count}" for name, count in limited if count] or ["none"]
        return f"{', '.join(size)}; faults, at most: {', '.join(may_come)}"

    @property
    def settings(self) -> RunSettings:
        """The settings of the run."""
        return RunSettings(
            min_nodes=self.min_nodes,
            max_nodes=self.max_nodes or self.nodes,
            expected_nodes=self.expected_nodes,
            max_restarts=self.max_restarts,
            settle_s=SETTLE_S,
        )


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
