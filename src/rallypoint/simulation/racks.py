"""Which processes a fault meets together, and preemption: a notice, and death some time after it.

Nodes that are lost together are often neighbours: the hosts of a rack have numbers one after the
other, and so have the ranks that they were given.

The draws are of a Random of their own, so that seeds without them keep their histories.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from typing import Final

from rallypoint.simulation.operations import leave
from rallypoint.simulation.scene import Scene, StartedNode

NEIGHBOURS_PART: Final = 0.5
"""In which part of such faults the processes are neighbours."""
PREEMPTED_PART: Final = 0.3
"""In which part of such faults they are preempted, and how many of the living then."""
NOTICE_S: Final = (1.0, 30.0)
"""How long after its notice a preempted process ends, whether it has left or not."""


def neighbours(
    scene: Scene, chosen: Sequence[StartedNode], among: Sequence[StartedNode]
) -> list[StartedNode]:
    """These processes; or as many neighbours of the first, by their hosts or by their ranks."""
    if not chosen:
        return []
    first, count = chosen[0], len(chosen)
    draw = _own(scene, first, "neighbours")
    if draw.random() >= NEIGHBOURS_PART:
        return list(chosen)
    row = sorted(among, key=lambda each: each.index)
    if draw.random() < 0.5 and rank_of(first) is not None:
        in_round = [each for each in row if _is_beside(each, first)]
        row = sorted(in_round, key=lambda each: rank_of(each) or 0)
    at = max(0, min(row.index(first), len(row) - count))
    return row[at : at + count]


def rank_of(here: StartedNode) -> int | None:
    """Its node rank in the present round; None if it has none."""
    found = here.node.round if here.node is not None and here.is_working else None
    return found.seat.node_rank if found is not None else None


def _is_beside(here: StartedNode, other: StartedNode) -> bool:
    is_same = here.tokens[-1:] == other.tokens[-1:] and here.run_id == other.run_id
    return is_same and rank_of(here) is not None


def preempted(scene: Scene, chosen: Sequence[StartedNode]) -> bool:
    """At times, instead of another fault: give notice to a part of the living. Whether it did so.

    Each is told at the same moment. It departs, and it may leave before it ends.
    """
    if not chosen:
        return False
    draw = _own(scene, chosen[0], "preempted")
    if draw.random() >= PREEMPTED_PART:
        return False
    for each in chosen[: max(1, round(PREEMPTED_PART * len(scene.living)))]:
        _preempt(scene, each, draw)
    return True


def _preempt(scene: Scene, each: StartedNode, draw: random.Random) -> None:
    each.is_preempted = True
    scene.say(each.name, "is preempted")
    if each.system is not None:
        each.system.signal(signal.SIGTERM)
    elif draw.random() < 0.5:
        each.process.soon(_depart, each)
    else:
        leave(each)
    is_host = draw.random() < 0.5

    def end() -> None:
        if not each.process.is_alive:
            return
        gone = [each]
        if is_host:
            gone = scene.lose_power(each)
        each.process.kill()
        for one in gone:
            scene.start_again(one.index, draw.expovariate(0.2))

    scene.world.after(draw.uniform(*NOTICE_S), end)


def _depart(here: StartedNode) -> None:
    if here.node is not None and not here.is_over:
        here.node.depart("it is preempted")


def _own(scene: Scene, first: StartedNode, name: str) -> random.Random:
    return random.Random(f"{scene.world.seed}/{first.name}/{scene.world.steps}/{name}")
