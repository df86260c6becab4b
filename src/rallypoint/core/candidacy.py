"""When a node of a run without a coordinator becomes a candidate: each node draws a random time.

A node does not know which other nodes are alive, so the time depends neither on ranks nor on the
member table. Each of the `nodes` draws once when it sees that there is no coordinator. The hazard
begins with `candidates * AT_ONCE` expected candidates in the first moment, and doubles every
`doubling_s`. If all nodes live, about `candidates` of them are candidates before the others see the
first one, if that takes not much longer than `doubling_s`. If only one node in a thousand lives, it
becomes a candidate ten doublings later.
"""

from __future__ import annotations

import math
from typing import Final

AT_ONCE: Final = 2 / 3
"""The part of `candidates` that become candidates at once, on average. The rest follow before the
first ones are seen. With three candidates there is none at once in one case of seven (e ** -2)."""


def candidate_after_s(chance: float, nodes: int, candidates: int, doubling_s: float) -> float:
    """How many seconds after it misses a coordinator a node becomes a candidate.

    `chance` is drawn from [0, 1). `nodes`: how many nodes the run has, dead or alive. If they are
    no more than `candidates`, all become candidates at once.
    """
    if nodes <= candidates:
        return 0.0
    hazard = -math.log1p(-chance)  # exponentially distributed, with mean 1
    growth = hazard * nodes / (candidates * AT_ONCE)
    return doubling_s * math.log2(growth) if growth > 1 else 0.0
