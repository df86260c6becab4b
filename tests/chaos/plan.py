"""What chaos does to a job, drawn from a seed before the job begins. Pure: no clock, no process.

A seed is a series of jobs, and each job is a list of faults with their times, hosts and lengths. So
one seed has one schedule. What the machine makes of it is not repeatable.

What must not be here: how a fault is done (faults.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

Ledger = Literal["etcd", "file"]
Who = Literal["nodes", "replicas", "both"]

AGENTS: Final = ("a1", "a2", "a3")
"""Hosts with an agent of `rallypoint run` and its worker."""
NATIVES: Final = ("n1", "n2")
"""Hosts whose program is a node itself."""
NODES: Final = AGENTS + NATIVES
SERVES: Final = ("s1", "s2")
ETCDS: Final = ("e1", "e2", "e3")
SAFE: Final = 2
"""How many nodes of a job no fault is aimed at, except as the coordinator."""
PEACE_EVERY: Final = 10
"""After as many faults all is mended, and must be well, before the next ones."""
PAUSES_S: Final = ((0.02, 0.4), (0.5, 2.5), (0.5, 2.5), (3.0, 7.0))
"""A fault that falls into the next one; one that has nearly been got over; one that is over."""
COORDINATOR: Final = "coordinator"
"""In place of a host: the one that decides when the fault begins."""


class Fault(msgspec.Struct, frozen=True):
    """One fault. `after_s`: the pause before it. `lasts_s`: until it is mended, or replaced."""

    after_s: float
    kind: str
    hosts: tuple[str, ...] = ()
    lasts_s: float = 0.0
    amount: float = 0.0

    def __str__(self) -> str:
        amount = f" {self.amount:+.2f}" if self.amount else ""
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"+{self.after_s:.2f} s  {self.kind} {' '.join(self.hosts)}{amount}{lasts}"


class JobPlan(msgspec.Struct, frozen=True):
    """One job: who coordinates, which settings it has, and its faults."""

    seed: int
    number: int
    ledger: Ledger
    who: Who
    settings: dict[str, str]
    clocks_s: dict[str, int]
    """By host: how far its monotonic clock is ahead."""
    safe: tuple[str, ...]
    faults: tuple[Fault, ...]

    def shown(self) -> str:
        """For a person: the whole schedule."""
        ahead = ", ".join(f"{host} +{ahead}" for host, ahead in self.clocks_s.items())
        lines = [
            f"job {self.number} of seed {self.seed}, over {self.ledger}: coordinators are "
            f"{self.who}; safe: {', '.join(self.safe)}; {self.settings}; clocks ahead: {ahead}",
            *map(str, self.faults),
        ]
        return "\n  ".join(lines)


class Kind(msgspec.Struct, frozen=True):
    """A kind of fault: how often it is drawn, against whom, and for how long."""

    weight: int
    hosts: Literal["node", "agent", "serve", "etcd", "any", "some", "ours", "coordinator", "none"]
    lasts_s: tuple[float, float] = (0.0, 0.0)
    amount: tuple[float, float] = (0.0, 0.0)
    ledger: Ledger | None = None


BACK_S: Final = (0.0, 4.0)
"""How long a killed process is away."""
KINDS: Final[dict[str, Kind]] = {
    "kill": Kind(4, "node", BACK_S),
    "kill coordinator": Kind(5, "coordinator", BACK_S),
    "kill worker": Kind(2, "agent"),
    "fail worker": Kind(2, "agent"),
    "depart": Kind(2, "node", BACK_S),
    "freeze": Kind(4, "node", (0.2, 9.0)),
    "freeze with worker": Kind(2, "agent", (0.2, 9.0)),
    "freeze coordinator": Kind(4, "coordinator", (0.2, 9.0)),
    "kill serve": Kind(3, "serve", BACK_S),
    "end serve": Kind(1, "serve", BACK_S),
    "kill etcd": Kind(2, "etcd", (0.3, 4.0), ledger="etcd"),
    "freeze etcd": Kind(2, "etcd", (0.3, 4.0), ledger="etcd"),
    "freeze all etcd": Kind(1, "none", (0.3, 6.0), ledger="etcd"),
    "cut": Kind(3, "some", (0.3, 12.0)),
    "deafen": Kind(3, "any", (0.3, 12.0)),
    "mute": Kind(3, "any", (0.3, 12.0)),
    "reset": Kind(3, "any", (0.05, 0.6)),
    "slow": Kind(3, "some", (1.0, 12.0), (0.005, 0.4)),
    "lossy": Kind(2, "some", (1.0, 12.0), (0.02, 0.3)),
    "lose host": Kind(2, "node", (0.5, 9.0)),
    "full disk": Kind(3, "none", (0.3, 8.0), ledger="file"),
    "step clock": Kind(2, "ours", amount=(-7200.0, 7200.0)),
    "restart all": Kind(1, "none", BACK_S),
}
OF_NODES: Final = ("node", "agent")


def draw(seed: int, number: int, ledger: Ledger, faults: int) -> JobPlan:
    """The job of this number, with as many faults."""
    chance = random.Random(f"{seed} {number} {ledger}")
    who: Who = chance.choice(("nodes", "nodes", "replicas", "both"))
    safe = tuple(chance.sample(NODES, SAFE))
    settings = {
        "RALLYPOINT_LEASE_TTL": chance.choice(("1", "2", "5")),
        "RALLYPOINT_COORDINATOR_SILENCE": chance.choice(("2", "6")),
        "RALLYPOINT_LOST_AFTER": chance.choice(("5", "8")),
    }
    hosts = (*NODES, *(SERVES if who != "nodes" else ()), *(ETCDS if ledger == "etcd" else ()))
    clocks = {host: chance.choice((0, 0, 1000, 500_000)) for host in hosts if host not in ETCDS}
    possible = {
        name: kind
        for name, kind in KINDS.items()
        if kind.ledger in (None, ledger) and not (kind.hosts == "serve" and who == "nodes")
    }
    drawn = []
    for _ in range(faults):
        (name,) = chance.choices(list(possible), [kind.weight for kind in possible.values()])
        drawn.append(_fault(chance, name, possible[name], hosts, safe))
    return JobPlan(seed, number, ledger, who, settings, clocks, safe, tuple(drawn))


def _fault(
    chance: random.Random, name: str, kind: Kind, hosts: Sequence[str], safe: Sequence[str]
) -> Fault:
    def some(among: Sequence[str], most: int = 1) -> tuple[str, ...]:
        those = [each for each in among if each in hosts and each not in safe]
        return tuple(sorted(chance.sample(those, min(len(those), chance.randint(1, most)))))

    match kind.hosts:
        case "node":
            whom = some(NODES)
        case "agent":
            whom = some(AGENTS)
        case "serve":
            whom = some(SERVES)
        case "etcd":
            whom = some(ETCDS)
        case "any":
            whom = some(hosts)
        case "ours":
            whom = some([*NODES, *SERVES])
        case "some":
            whom = some(hosts, 3)
        case "coordinator":
            whom = (COORDINATOR,)
        case "none":
            whom = ()
    low_s, high_s = kind.lasts_s
    return Fault(
        after_s=round(chance.uniform(*chance.choice(PAUSES_S)), 2),
        kind=name,
        hosts=whom,
        lasts_s=round(chance.triangular(low_s, high_s, low_s + (high_s - low_s) / 4), 2),
        amount=round(chance.uniform(*kind.amount), 3),
    )
