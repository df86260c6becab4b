"""The job and the machines that a simulation is about: everything that is no setting of a run."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from rallypoint.errors import UsageError

HOUR_S: Final = 3_600.0
KINDS: Final = ("process", "host", "freeze", "worker")
"""What can fail on a node: its agent's process ends, and its kernel says so; its machine is lost,
without a word; it stands still and comes back; one of its workers fails.
"""
LEDGERS: Final = ("etcd", "file", "memory")
NODES_MAX: Final = 100_000
SHARES: Final = {"process": 0.4, "host": 0.5, "freeze": 0.1, "worker": 0.0}


class Burst(msgspec.Struct, frozen=True):
    """Something at an hour of the job, once or again and again. Times in seconds.

    `amount`: a share of the nodes, or how long it lasts. `at_s`: the first time. `every_s`: the
    time between two; infinite: only once.
    """

    amount: float
    at_s: float
    every_s: float = math.inf


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The job and its machines. Durations in seconds.

    `nodes`: the job's size. `spares`: nodes beyond it, on standby. `shares`: of each kind of
    failure, by KINDS; they add up to 1. `mtbf_s`: of one node, of all kinds together; infinite: no
    node fails by itself. `peers_fail`: whether the loss of a process makes the workers of its peers
    fail, as with gloo; otherwise they hang. `coordinator`: "node" or "apart".

    Raises UsageError, which names the option.
    """

    nodes: int = 64
    spares: int = 0
    min_nodes: int | None = None
    nproc: int = 1
    seconds: float = 24 * HOUR_S
    mtbf_s: float = 5_000 * HOUR_S
    shares: dict[str, float] = msgspec.field(default_factory=lambda: dict(SHARES))
    mttr_s: float = 600.0
    restart_s: float = 30.0
    freeze_s: float = 20.0
    preemptions: tuple[Burst, ...] = ()
    notice_s: float = 30.0
    rack: int = 0
    rack_mtbf_s: float = math.inf
    start_s: float = 30.0
    stop_s: float = 1.0
    checkpoint_every_s: float = 900.0
    checkpoint_s: float = 10.0
    saves_on_change: bool = False
    peers_fail: bool = True
    coordinator: str = "node"
    coordinator_mtbf_s: float = math.inf
    ledger: str = "etcd"
    outages: tuple[Burst, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.nodes + self.spares <= NODES_MAX:
            raise UsageError(
                f"--nodes and --spares must be 1 to {NODES_MAX:,} nodes together, not "
                f"{self.nodes + self.spares:,}",
                hint="a run has at most that many members",
            )
        least = self.min_nodes
        if least is not None and least > self.nodes:
            raise UsageError(
                f"--min-nodes {least:,} is above --nodes {self.nodes:,}",
                hint="give --min-nodes at most the value of --nodes",
            )
        total = sum(self.shares.values())
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise UsageError(
                f"--kinds adds up to {total:.0%}, not to 100%",
                hint="for example --kinds process=40%,host=50%,freeze=10%",
            )
        if self.ledger == "memory" and self.outages:
            raise UsageError(
                "--ledger-away needs a ledger that can be away, and this run is in memory",
                hint="give --ledger etcd or --ledger file, or leave --ledger-away out",
            )

    @property
    def slots(self) -> int:
        """How many machines there are."""
        return self.nodes + self.spares

    @property
    def least(self) -> int:
        """The fewest nodes of a round: half of them, if not given."""
        return self.min_nodes if self.min_nodes is not None else max(1, (self.nodes + 1) // 2)
