"""The failures of a fleet, drawn from the seed before the job begins.

They depend on the seed and the workload alone, and not on any setting: so two simulations that
differ in a setting meet the same failures. Each machine has its own stream of numbers, and each
time between two failures is a number of that stream times the mean. So with a longer mean the same
failures come later.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator

import msgspec

from rallypoint.simulation.fleet.workload import KINDS, Workload


class Failure(msgspec.Struct, frozen=True):
    """What happens to some machines at once.

    `kind`: one of KINDS, or "preempt". `slots`: the numbers of the machines. `back_s`: after how
    long a node starts there again, or a frozen one goes on; 0 for a worker, whose node stays.
    """

    at_s: float
    kind: str
    slots: tuple[int, ...]
    back_s: float


def draw(workload: Workload, seed: int) -> list[Failure]:
    """All failures of the time that is simulated, in order."""
    streams = [_of_nodes(workload, seed), _of_racks(workload, seed), _preempted(workload, seed)]
    return list(heapq.merge(*streams, key=lambda failure: failure.at_s))


def _of_nodes(workload: Workload, seed: int) -> Iterator[Failure]:
    if math.isinf(workload.mtbf_s):
        return iter(())
    found: list[tuple[float, int, Failure]] = []
    kinds, weights = tuple(KINDS), [workload.shares.get(kind, 0.0) for kind in KINDS]
    for slot in range(workload.slots):
        chance = random.Random(f"{seed}/node/{slot}")
        at_s = 0.0
        while True:
            at_s += chance.expovariate(1.0) * workload.mtbf_s
            if at_s >= workload.seconds:
                break
            kind = chance.choices(kinds, weights)[0]
            wait = chance.expovariate(1.0)
            back_s = {
                "process": workload.restart_s,
                "host": workload.mttr_s,
                "freeze": workload.freeze_s * wait,
                "worker": 0.0,
            }[kind]
            found.append((at_s, slot, Failure(at_s, kind, (slot,), back_s)))
            at_s += back_s
    found.sort(key=lambda each: each[:2])
    return (failure for _, _, failure in found)


def _of_racks(workload: Workload, seed: int) -> Iterator[Failure]:
    if not workload.rack or math.isinf(workload.rack_mtbf_s):
        return iter(())
    found: list[Failure] = []
    for first in range(0, workload.slots, workload.rack):
        slots = tuple(range(first, min(first + workload.rack, workload.slots)))
        chance = random.Random(f"{seed}/rack/{first}")
        at_s = 0.0
        while True:
            at_s += chance.expovariate(1.0) * workload.rack_mtbf_s
            if at_s >= workload.seconds:
                break
            found.append(Failure(at_s, "host", slots, workload.mttr_s))
            at_s += workload.mttr_s
    found.sort(key=lambda each: (each.at_s, each.slots))
    return iter(found)


def _preempted(workload: Workload, seed: int) -> Iterator[Failure]:
    chance = random.Random(f"{seed}/preempt")
    found: list[Failure] = []
    for burst in workload.preemptions:
        at_s = burst.at_s
        while at_s < workload.seconds:
            count = round(burst.amount * workload.slots)
            slots = tuple(sorted(chance.sample(range(workload.slots), count)))
            if slots:
                found.append(Failure(at_s, "preempt", slots, workload.mttr_s))
            at_s += burst.every_s
    found.sort(key=lambda each: each.at_s)
    return iter(found)


def outages(workload: Workload) -> list[tuple[float, float]]:
    """(when the ledger goes away, for how long), in order."""
    found = []
    for burst in workload.outages:
        at_s = burst.at_s
        while at_s < workload.seconds:
            found.append((at_s, burst.amount))
            at_s += burst.every_s
    return sorted(found)


def coordinator_crashes(workload: Workload, seed: int) -> list[float]:
    """When the coordinator's process ends, besides the failures of its node."""
    if math.isinf(workload.coordinator_mtbf_s):
        return []
    chance = random.Random(f"{seed}/coordinator")
    found: list[float] = []
    at_s = 0.0
    while True:
        at_s += chance.expovariate(1.0) * workload.coordinator_mtbf_s
        if at_s >= workload.seconds:
            return found
        found.append(at_s)
